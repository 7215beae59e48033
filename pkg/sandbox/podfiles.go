package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"criserver/pkg/cni"
	"criserver/pkg/sandbox/ns"
	"criserver/pkg/sandbox/spec"
)

// shmSize is the size of a pod's /dev/shm in bytes, the kernel's and every runtime's custom.
const shmSize = 64 << 20

func (s *Service) shmPath(id string) string        { return filepath.Join(s.podDir(id), "shm") }
func (s *Service) resolvConfPath(id string) string { return filepath.Join(s.podDir(id), "resolv.conf") }
func (s *Service) hostnamePath(id string) string   { return filepath.Join(s.podDir(id), "hostname") }

// makePodFiles makes the pod's directory with what its containers share: /dev/shm, resolv.conf, hostname.
func (s *Service) makePodFiles(st PodStatus) error {
	if err := os.Mkdir(s.podDir(st.ID), 0o711); err != nil {
		return fmt.Errorf("make pod directory: %w", err)
	}
	if dir := st.Config.LogDirectory; dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make log directory: %w", err)
		}
	}
	conf, err := resolvConf(st.Config.DNS)
	if err != nil {
		return err
	}
	hostname := st.Config.Hostname
	if hostname == "" || st.Config.Namespaces.Network == NamespaceNode {
		if hostname, err = os.Hostname(); err != nil {
			return err
		}
	}
	if err := errors.Join(
		os.WriteFile(s.resolvConfPath(st.ID), []byte(conf), 0o644),
		os.WriteFile(s.hostnamePath(st.ID), []byte(hostname+"\n"), 0o644),
	); err != nil {
		return fmt.Errorf("write pod files: %w", err)
	}
	if st.Config.Namespaces.IPC != NamespacePod {
		return nil
	}
	shm := s.shmPath(st.ID)
	if err := os.Mkdir(shm, 0o1777); err != nil {
		return fmt.Errorf("make /dev/shm: %w", err)
	}
	if err := unix.Mount("shm", shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC,
		fmt.Sprintf("mode=1777,size=%d", shmSize)); err != nil {
		return fmt.Errorf("mount /dev/shm at %s: %w", shm, err)
	}
	return nil
}

// removePodFiles undoes makePodFiles but for the log directory, whose logs are the kubelet's.
func (s *Service) removePodFiles(id string) error {
	if err := unmount(s.shmPath(id)); err != nil {
		return err
	}
	if err := s.removePodInitFiles(id); err != nil {
		return err
	}
	dir := s.podDir(id)
	for _, f := range []string{s.resolvConfPath(id), s.hostnamePath(id), dir} {
		// Not RemoveAll: whatever is mounted below by mistake must survive.
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove pod files: %w", err)
		}
	}
	return nil
}

// resolvConf renders resolv.conf(5); without DNS settings the host's is copied.
func resolvConf(dns *cni.DNS) (string, error) {
	if dns == nil {
		data, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("copy the host's DNS settings: %w", err)
		}
		return string(data), nil
	}
	var b strings.Builder
	if len(dns.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.Searches, " "))
	}
	for _, server := range dns.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(dns.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.Options, " "))
	}
	return b.String(), nil
}

// specPod is the pod as its containers' specifications see it.
func (s *Service) specPod(st PodStatus) spec.Pod {
	p := spec.Pod{
		ID: st.ID, Name: st.Config.Name, Namespace: st.Config.Namespace, UID: st.Config.UID,
		Hostname:     st.Config.Hostname,
		ResolvConf:   s.resolvConfPath(st.ID),
		HostnameFile: s.hostnamePath(st.ID),
		ShmPath:      "/dev/shm",
		CgroupPath:   st.CgroupPath,
		Privileged:   st.Config.Privileged,
	}
	if st.Config.Namespaces.Network == NamespacePod {
		p.NetNS, p.UTSNS = ns.Path(s.nsDir(st.ID), ns.Net), ns.Path(s.nsDir(st.ID), ns.UTS)
	}
	if st.Config.Namespaces.IPC == NamespacePod {
		p.IPCNS, p.ShmPath = ns.Path(s.nsDir(st.ID), ns.IPC), s.shmPath(st.ID)
	}
	if p.Hostname == "" {
		p.Hostname, _ = os.Hostname()
	}
	return p
}

// podIntact tells whether the pod's namespaces and shared memory outlived the daemon's absence: a reboot takes them.
func (s *Service) podIntact(st PodStatus) bool {
	dir := s.nsDir(st.ID)
	if st.Config.Namespaces.Network == NamespacePod && !ns.Pinned(dir, ns.Net) {
		return false
	}
	return st.Config.Namespaces.IPC != NamespacePod || (ns.Pinned(dir, ns.IPC) && mounted(s.shmPath(st.ID)))
}

func mounted(path string) bool {
	ok, err := mountinfo.Mounted(path)
	return err == nil && ok
}
