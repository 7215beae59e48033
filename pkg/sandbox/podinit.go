package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/monitor"
)

// A pod whose containers share a PID namespace has a process 1 that reaps orphans: "crimonitor pod-init", run by
// crimonitor as a container of its own that sees nothing but its own binary. It must not run in the host's mount
// namespace: a container's root could reach the host by /proc/1/root.
const (
	podInitBinary = "/pod-init"
	podInitUser   = 65535 // as the pause image's; nobody in a container can be expected to have it
)

func podInitID(podID string) string                  { return podID + "-init" }
func (s *Service) podInitBundle(podID string) string { return filepath.Join(s.podDir(podID), "init") }

func (s *Service) startPodInit(ctx context.Context, st PodStatus) error {
	bundle := s.podInitBundle(st.ID)
	if err := os.MkdirAll(filepath.Join(bundle, "rootfs"), 0o711); err != nil {
		return fmt.Errorf("make pod init: %w", err)
	}
	data, err := json.Marshal(s.podInitSpec(st))
	if err != nil {
		return err
	}
	if err := writeWhole(filepath.Join(bundle, "config.json"), data); err != nil {
		return fmt.Errorf("make pod init: %w", err)
	}
	id := podInitID(st.ID)
	if _, err := s.monitor.Create(ctx, monitor.CreateRequest{ID: id, Bundle: bundle}); err != nil {
		return fmt.Errorf("make pod init: %w", err)
	}
	state, err := s.monitor.Start(ctx, id)
	if err != nil {
		return fmt.Errorf("start pod init: %w", err)
	}
	return writeWhole(filepath.Join(bundle, "pid"), fmt.Appendf(nil, "%d", state.PID))
}

// podPIDNS is the path of the PID namespace that the pod's containers share.
func (s *Service) podPIDNS(podID string) (string, error) {
	pid, err := os.ReadFile(filepath.Join(s.podInitBundle(podID), "pid"))
	if err != nil {
		return "", fmt.Errorf("find the pod's PID namespace: %w", err)
	}
	return "/proc/" + string(pid) + "/ns/pid", nil
}

func (s *Service) podInitSpec(st PodStatus) *specs.Spec {
	p := s.specPod(st)
	namespaces := []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}}
	for kind, path := range map[specs.LinuxNamespaceType]string{
		specs.NetworkNamespace: p.NetNS, specs.IPCNamespace: p.IPCNS, specs.UTSNamespace: p.UTSNS,
	} {
		if path != "" {
			namespaces = append(namespaces, specs.LinuxNamespace{Type: kind, Path: path})
		}
	}
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Args:            []string{podInitBinary, "pod-init"},
			Cwd:             "/",
			User:            specs.User{UID: podInitUser, GID: podInitUser},
			NoNewPrivileges: true,
			Capabilities:    &specs.LinuxCapabilities{},
		},
		Root: &specs.Root{Path: filepath.Join(s.podInitBundle(st.ID), "rootfs"), Readonly: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: podInitBinary, Type: "bind", Source: s.config.Monitor.Binary,
				Options: []string{"bind", "ro", "nosuid", "nodev"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: filepath.Join(st.CgroupPath, podInitID(st.ID)),
			Namespaces:  namespaces,
		},
	}
}

// stopPodInit ends process 1 and with it the pod's PID namespace. It is idempotent.
func (s *Service) stopPodInit(ctx context.Context, podID string) error {
	if err := s.monitor.Delete(ctx, podInitID(podID), s.podInitBundle(podID)); err != nil {
		return fmt.Errorf("stop pod init: %w", err)
	}
	return nil
}
