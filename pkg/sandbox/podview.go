package sandbox

import (
	"errors"
	"fmt"
	"os"

	"github.com/moby/sys/mountinfo"

	"criserver/pkg/sandbox/ns"
	"criserver/pkg/sandbox/podfiles"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/want"
)

// specPod is the pod as its containers' specifications see it.
func (s *Service) specPod(st PodStatus) spec.Pod {
	p := spec.Pod{
		ID: st.ID, Name: st.Config.Name, Namespace: st.Config.Namespace, UID: st.Config.UID,
		Hostname:     st.Config.Hostname,
		ResolvConf:   podfiles.ResolvConf(s.podDir(st.ID)),
		HostnameFile: podfiles.Hostname(s.podDir(st.ID)),
		HostsFile:    podfiles.Hosts(s.podDir(st.ID)),
		ShmPath:      "/dev/shm",
		CgroupPath:   st.CgroupPath,
		Privileged:   st.Config.Privileged,
	}
	if st.Config.Namespaces.Network == want.NamespacePod {
		p.NetNS, p.UTSNS = ns.Path(s.nsDir(st.ID), ns.Net), ns.Path(s.nsDir(st.ID), ns.UTS)
	}
	if st.Config.Namespaces.IPC == want.NamespacePod {
		p.IPCNS, p.ShmPath = ns.Path(s.nsDir(st.ID), ns.IPC), podfiles.Shm(s.podDir(st.ID))
	}
	if p.Hostname == "" {
		p.Hostname, _ = os.Hostname()
	}
	return p
}

// podIntact tells whether the pod's namespaces and shared memory outlived the daemon's absence: a reboot takes them.
func (s *Service) podIntact(st PodStatus) bool {
	dir := s.nsDir(st.ID)
	if st.Config.Namespaces.Network == want.NamespacePod && !ns.Pinned(dir, ns.Net) {
		return false
	}
	return st.Config.Namespaces.IPC != want.NamespacePod || (ns.Pinned(dir, ns.IPC) && mounted(podfiles.Shm(s.podDir(st.ID))))
}

func mounted(path string) bool {
	ok, err := mountinfo.Mounted(path)
	return err == nil && ok
}

// makePodFiles makes the pod's directory and log directory, and what its containers share.
func (s *Service) makePodFiles(st PodStatus) error {
	if err := os.Mkdir(s.podDir(st.ID), 0o711); err != nil {
		return fmt.Errorf("make pod directory: %w", err)
	}
	if dir := st.Config.LogDirectory; dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make log directory: %w", err)
		}
	}
	c := podfiles.Config{Hostname: st.Config.Hostname, Shm: st.Config.Namespaces.IPC == want.NamespacePod}
	if dns := st.Config.DNS; dns != nil {
		c.DNS = &podfiles.DNS{Servers: dns.Servers, Searches: dns.Searches, Options: dns.Options}
	}
	if c.Hostname == "" || st.Config.Namespaces.Network == want.NamespaceNode {
		var err error
		if c.Hostname, err = os.Hostname(); err != nil {
			return err
		}
	}
	return podfiles.Make(s.podDir(st.ID), c)
}

// removePodFiles undoes makePodFiles but for the log directory, whose logs are the kubelet's.
func (s *Service) removePodFiles(id string) error {
	if err := podfiles.Remove(s.podDir(id)); err != nil {
		return err
	}
	if err := os.RemoveAll(s.podInitBundle(id)); err != nil {
		return fmt.Errorf("remove pod init: %w", err)
	}
	if err := os.Remove(s.podDir(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove pod directory: %w", err)
	}
	return nil
}
