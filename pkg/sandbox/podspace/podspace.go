// Package podspace keeps what the containers of a pod share beside its network: a directory with the files that each of them
// sees, the pod's namespaces, pinned in it, and what its process 1 is made of.
package podspace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/flight"
	"criserver/pkg/sandbox/cgroup/kill"
	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/idmap"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/ns"
	"criserver/pkg/sandbox/podfiles"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/want"
)

// Store holds the directories of pods below Root, by the IDs of pods. Who is root in a pod passes Root, and of what is in it
// nothing but the directory of that pod.
type Store struct {
	Root string
	// Helper is the program that makes user namespaces, see ns.Config.
	Helper string
	// Paths makes the log directories of pods, which may be where it hangs.
	Paths *hostpath.Resolver
}

// Dir is a pod's directory.
func (s Store) Dir(id string) string { return filepath.Join(s.Root, id) }

// InitBundle is the place in a pod's directory for the bundle of its process 1. Remove removes it.
func (s Store) InitBundle(id string) string { return filepath.Join(s.Root, id, "init") }

func (s Store) nsDir(id string) string { return filepath.Join(s.Root, id, "ns") }

// NetNS is the path of a pod's network namespace; "" if the pod has none.
func (s Store) NetNS(id string) string {
	if !ns.Pinned(s.nsDir(id), ns.Net) {
		return ""
	}
	return ns.Path(s.nsDir(id), ns.Net)
}

// Namespaces are the pod's namespaces that are pinned.
func (s Store) Namespaces(id string) []specs.LinuxNamespace {
	var out []specs.LinuxNamespace
	for kind, t := range map[ns.Kind]specs.LinuxNamespaceType{
		ns.IPC: specs.IPCNamespace, ns.Net: specs.NetworkNamespace, ns.UTS: specs.UTSNamespace, ns.User: specs.UserNamespace,
	} {
		if dir := s.nsDir(id); ns.Pinned(dir, kind) {
			out = append(out, specs.LinuxNamespace{Type: t, Path: ns.Path(dir, kind)})
		}
	}
	return out
}

// Make makes the directory with its files, the pod's log directory, and the namespaces. After an error Unpin and Remove undo
// what there is.
func (s Store) Make(ctx context.Context, p ledger.PodStatus) error {
	if err := idmap.Mkdir(s.Dir(p.ID), p.Config.Namespaces.Users); err != nil {
		return fmt.Errorf("make pod directory: %w", err)
	}
	if dir := p.Config.LogDirectory; dir != "" {
		if err := s.Paths.MakeDir(ctx, dir, func() { flight.Stage(ctx, "it waits for log_directory "+dir) }); err != nil {
			return fmt.Errorf("log_directory: %w", err)
		}
	}
	if err := s.makeFiles(p); err != nil {
		return err
	}
	return s.makeNamespaces(ctx, p)
}

func (s Store) makeFiles(p ledger.PodStatus) error {
	name, err := hostname(p)
	if err != nil {
		return err
	}
	c := podfiles.Config{Hostname: name, Shm: p.Config.Namespaces.IPC == want.NamespacePod, Label: p.Labels.Mount}
	if users := p.Config.Namespaces.Users; users != nil {
		c.UID, c.GID = users.Root()
	}
	if dns := p.Config.DNS; dns != nil {
		c.DNS = &podfiles.DNS{Servers: dns.Servers, Searches: dns.Searches, Options: dns.Options}
	}
	return podfiles.Make(s.Dir(p.ID), c)
}

// hostname is the pod's host name, which is the node's on the node's network.
func hostname(p ledger.PodStatus) (string, error) {
	if p.Config.Namespaces.Network == want.NamespaceNode {
		return os.Hostname()
	}
	return p.Config.HostName(), nil
}

func (s Store) makeNamespaces(ctx context.Context, p ledger.PodStatus) error {
	name, err := hostname(p)
	if err != nil {
		return err
	}
	c := ns.Config{Dir: s.nsDir(p.ID), Hostname: name, Sysctls: p.Config.Sysctls, Users: p.Config.Namespaces.Users, Helper: s.Helper}
	if p.Config.Namespaces.Network == want.NamespacePod {
		c.Kinds = append(c.Kinds, ns.Net, ns.UTS)
	}
	if p.Config.Namespaces.IPC == want.NamespacePod {
		c.Kinds = append(c.Kinds, ns.IPC)
	}
	if len(c.Kinds) == 0 && c.Users == nil {
		return nil
	}
	err = ns.Make(ctx, c)
	if errors.Is(err, ns.ErrSysctl) {
		return fmt.Errorf("linux.sysctls: %w: %w", want.ErrInvalid, err)
	}
	return err
}

// Intact tells whether the namespaces and the shared memory of a pod that is ready are there: a reboot takes them.
func (s Store) Intact(p ledger.PodStatus) bool {
	dir := s.nsDir(p.ID)
	if p.Config.Namespaces.Network == want.NamespacePod && !ns.Pinned(dir, ns.Net) {
		return false
	}
	if p.Config.Namespaces.Users != nil && !ns.Pinned(dir, ns.User) {
		return false
	}
	return p.Config.Namespaces.IPC != want.NamespacePod || (ns.Pinned(dir, ns.IPC) && mounted(podfiles.Shm(s.Dir(p.ID))))
}

func mounted(path string) bool {
	ok, err := mountinfo.Mounted(path)
	return err == nil && ok
}

// Spec is the pod as its containers' specifications see it.
func (s Store) Spec(p ledger.PodStatus) spec.Pod {
	dir, nsDir := s.Dir(p.ID), s.nsDir(p.ID)
	out := spec.Pod{
		ID: p.ID, Name: p.Config.Name, Namespace: p.Config.Namespace, UID: p.Config.UID,
		ResolvConf:   podfiles.ResolvConf(dir),
		HostnameFile: podfiles.Hostname(dir),
		HostsFile:    podfiles.Hosts(dir),
		ShmPath:      "/dev/shm",
		CgroupPath:   p.CgroupPath,
		Privileged:   p.Config.Privileged,
	}
	if p.Config.Namespaces.Network == want.NamespacePod {
		out.NetNS, out.UTSNS = ns.Path(nsDir, ns.Net), ns.Path(nsDir, ns.UTS)
	}
	if p.Config.Namespaces.IPC == want.NamespacePod {
		out.IPCNS, out.ShmPath = ns.Path(nsDir, ns.IPC), podfiles.Shm(dir)
	}
	if p.Config.Namespaces.Users != nil {
		out.UserNS, out.Users = ns.Path(nsDir, ns.User), p.Config.Namespaces.Users
	}
	out.Hostname, _ = hostname(p)
	return out
}

// Unpin gives the namespaces up; the kernel frees each with its last process. It is idempotent.
func (s Store) Unpin(id string) error { return ns.Remove(s.nsDir(id)) }

// Remove removes the directory, whose namespaces are unpinned, but not the log directory, whose logs are the kubelet's. It is
// idempotent.
func (s Store) Remove(id string) error {
	if err := podfiles.Remove(s.Dir(id)); err != nil {
		return err
	}
	if err := os.RemoveAll(s.InitBundle(id)); err != nil {
		return fmt.Errorf("remove pod init: %w", err)
	}
	if err := os.Remove(s.Dir(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove pod directory: %w", err)
	}
	return nil
}

// HoldPID holds the PID namespace of a process in a cgroup, known by its PID, which by the time that a runtime looks may be another's, of a
// process of the host. So whoever was to join the namespace is to be checked before its workload runs. ErrState: the process has ended.
func HoldPID(pid int, cgroupPath string) (*ns.Held, error) {
	held, err := ns.Hold(pid, ns.PID, func() bool { return kill.Within(cgroupPath, pid) })
	if err != nil {
		return nil, fmt.Errorf("join a PID namespace: %w: %w", err, ledger.ErrState)
	}
	return held, nil
}
