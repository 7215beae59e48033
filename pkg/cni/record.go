package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

// attachment is what is needed to take a pod down.
type attachment struct {
	ID           string            `json:"id"`
	NetNS        string            `json:"netns"`
	Network      string            `json:"network"`
	CNIVersion   string            `json:"cniVersion"`
	Plugins      []json.RawMessage `json:"plugins"`
	Args         [][2]string       `json:"args"`
	DisableCheck bool              `json:"disableCheck,omitempty"`
	// Capabilities are the capability arguments.
	Capabilities map[string]any `json:"capabilities,omitempty"`
}

func newAttachment(list *libcni.NetworkConfigList, p Pod) (attachment, error) {
	args, err := capabilities(list, p)
	if err != nil {
		return attachment{}, err
	}
	a := attachment{
		ID: p.ID, NetNS: p.NetNS, Network: list.Name, CNIVersion: list.CNIVersion, DisableCheck: list.DisableCheck,
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
	a, err := newAttachment(list, Pod{ID: c.ContainerID, NetNS: c.NetNS})
	if err != nil {
		return attachment{}, err
	}
	a.Args, a.Capabilities = c.CniArgs, c.CapabilityArgs
	return a, nil
}

// list is the chain that the pod was set up with.
func (a attachment) list() (*libcni.NetworkConfigList, error) {
	list := &libcni.NetworkConfigList{Name: a.Network, CNIVersion: a.CNIVersion, DisableCheck: a.DisableCheck}
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
		ContainerID: a.ID, NetNS: a.NetNS, IfName: InterfaceName, Args: a.Args, CapabilityArgs: a.Capabilities,
	}
}

// records are the attachments on disk, one file each, named by the pod's id.
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
func (r records) write(a attachment) error {
	b, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode attachment: %w", err)
	}
	temporary := filepath.Join(r.dir, temporaryPrefix+a.ID)
	if err := os.WriteFile(temporary, b, 0o600); err != nil {
		return fmt.Errorf("record attachment: %w", err)
	}
	if err := os.Rename(temporary, filepath.Join(r.dir, a.ID)); err != nil {
		return fmt.Errorf("record attachment: %w", err)
	}
	return nil
}

// read returns an error that is fs.ErrNotExist if there is no record, and another one if it cannot be read.
func (r records) read(id string) (attachment, error) {
	b, err := os.ReadFile(filepath.Join(r.dir, id))
	if err != nil {
		return attachment{}, err
	}
	var a attachment
	if err := json.Unmarshal(b, &a); err != nil {
		return attachment{}, fmt.Errorf("read attachment: %w", err)
	}
	if a.ID != id || len(a.Plugins) == 0 {
		return attachment{}, errors.New("read attachment: the record is not of this pod")
	}
	return a, nil
}

func (r records) remove(id string) error {
	if err := os.Remove(filepath.Join(r.dir, id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget attachment: %w", err)
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
