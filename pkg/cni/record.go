package cni

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// attachment is what is needed to take a pod down from one network.
type attachment struct {
	ID    string `json:"id"`
	NetNS string `json:"netns"`
	// IfName is the pod's interface; "" is the first one, as records of an earlier version have it.
	IfName       string            `json:"ifName,omitempty"`
	Network      string            `json:"network"`
	CNIVersion   string            `json:"cniVersion"`
	Plugins      []json.RawMessage `json:"plugins"`
	Args         [][2]string       `json:"args"`
	DisableCheck bool              `json:"disableCheck,omitempty"`
	DisableGC    bool              `json:"disableGC,omitempty"`
	// Capabilities are the capability arguments.
	Capabilities map[string]any `json:"capabilities,omitempty"`
}

// newAttachments are those of a pod to its networks, in the order of its interfaces. Host ports are the first network's
// that can do them: two networks' rules for a port would be in each other's way.
func newAttachments(lists []*libcni.NetworkConfigList, p Pod) ([]attachment, error) {
	var all []attachment
	for i, list := range lists {
		a, err := newAttachment(list, interfaceName(i), p)
		if err != nil {
			return nil, err
		}
		if a.Capabilities[portMappingsCapability] != nil {
			p.Ports = nil
		}
		all = append(all, a)
	}
	return all, nil
}

func newAttachment(list *libcni.NetworkConfigList, ifName string, p Pod) (attachment, error) {
	args, err := capabilities(list, p)
	if err != nil {
		return attachment{}, err
	}
	a := attachment{
		ID: p.ID, NetNS: p.NetNS, IfName: ifName, Network: list.Name, CNIVersion: list.CNIVersion,
		DisableCheck: list.DisableCheck, DisableGC: list.DisableGC,
		Capabilities: args,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Namespace},
			{"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ID},
			{"K8S_POD_UID", p.UID},
		},
	}
	for _, plugin := range list.Plugins {
		a.Plugins = append(a.Plugins, plugin.Bytes)
	}
	return a, nil
}

// cachedAttachment is what libcni keeps of an attachment.
func cachedAttachment(c *libcni.NetworkAttachment) (attachment, error) {
	list, err := libcni.NetworkConfFromBytes(c.Config)
	if err != nil {
		return attachment{}, fmt.Errorf("read cached network: %w", err)
	}
	a, err := newAttachment(list, c.IfName, Pod{ID: c.ContainerID, NetNS: c.NetNS})
	if err != nil {
		return attachment{}, err
	}
	a.Args, a.Capabilities = c.CniArgs, c.CapabilityArgs
	return a, nil
}

// list is the chain that the pod was set up with.
func (a attachment) list() (*libcni.NetworkConfigList, error) {
	list := &libcni.NetworkConfigList{Name: a.Network, CNIVersion: a.CNIVersion, DisableCheck: a.DisableCheck, DisableGC: a.DisableGC}
	for _, b := range a.Plugins {
		plugin, err := libcni.NetworkPluginConfFromBytes(b)
		if err != nil {
			return nil, fmt.Errorf("read recorded plugin: %w", err)
		}
		list.Plugins = append(list.Plugins, plugin)
	}
	// libcni caches the list's text with the result.
	text, err := json.Marshal(map[string]any{"name": a.Network, "cniVersion": a.CNIVersion, "plugins": a.Plugins})
	if err != nil {
		return nil, fmt.Errorf("encode network: %w", err)
	}
	list.Bytes = text
	return list, nil
}

func (a attachment) runtimeConf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: a.ID, NetNS: a.NetNS, IfName: a.IfName, Args: a.Args, CapabilityArgs: a.Capabilities,
	}
}

// cachedAttachments are those of a pod that libcni has a result of, in the order of the pod's interfaces.
func (c *chains) cachedAttachments(id string) ([]attachment, error) {
	cached, err := c.GetCachedAttachments(id)
	if err != nil {
		return nil, fmt.Errorf("read CNI cache: %w", err)
	}
	slices.SortFunc(cached, func(a, b *libcni.NetworkAttachment) int {
		return cmp.Or(len(a.IfName)-len(b.IfName), strings.Compare(a.IfName, b.IfName)) // eth10 is after eth9
	})
	var all []attachment
	for _, c := range cached {
		a, err := cachedAttachment(c)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

// records are the attachments on disk, one file a pod, named by the pod's id: a list of those that were begun, in the
// order of its interfaces. An earlier version, which knew one network a pod, wrote that without a list.
type records struct{ dir string }

const temporaryPrefix = ".new-" // no pod's id starts with a dot

func openRecords(dir string) (records, error) {
	r := records{dir}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return r, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return r, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), temporaryPrefix) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}

// write makes the record appear as a whole or not at all. It is not synced: after a power cut no pod is left.
func (r records) write(id string, all []attachment) error {
	b, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("encode attachments: %w", err)
	}
	temporary := filepath.Join(r.dir, temporaryPrefix+id)
	if err := os.WriteFile(temporary, b, 0o600); err != nil {
		return fmt.Errorf("record attachments: %w", err)
	}
	if err := os.Rename(temporary, filepath.Join(r.dir, id)); err != nil {
		return fmt.Errorf("record attachments: %w", err)
	}
	return nil
}

// read returns an error that is fs.ErrNotExist if there is no record, and another one if it cannot be read.
func (r records) read(id string) ([]attachment, error) {
	b, err := os.ReadFile(filepath.Join(r.dir, id))
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(b, []byte("{")) {
		b = slices.Concat([]byte("["), b, []byte("]"))
	}
	var all []attachment
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, fmt.Errorf("read attachments: %w", err)
	}
	for i := range all {
		if all[i].ID != id || len(all[i].Plugins) == 0 {
			return nil, errors.New("read attachments: the record is not of this pod")
		}
		all[i].IfName = cmp.Or(all[i].IfName, InterfaceName)
	}
	if len(all) == 0 {
		return nil, errors.New("read attachments: the record is empty")
	}
	return all, nil
}

func (r records) remove(id string) error {
	if err := os.Remove(filepath.Join(r.dir, id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget attachments: %w", err)
	}
	return nil
}

func (r records) ids() ([]string, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, fmt.Errorf("list attachments: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), temporaryPrefix) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}
