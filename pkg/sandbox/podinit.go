package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"criserver/pkg/sandbox/cgroup/driver"
	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/ns"
	"criserver/pkg/sandbox/podspace"
	"criserver/pkg/wholefile"
)

// A pod whose containers share a PID namespace has a process 1, "crimonitor pod-init", see spec.PodInit.

func podInitID(podID string) string { return podID + "-init" }

func (s *Service) startPodInit(ctx context.Context, st PodStatus) error {
	id := podInitID(st.ID)
	dir, err := s.spaces.MakeInit(ctx, st, id, s.config.Monitor.Binary)
	if err != nil {
		return fmt.Errorf("make pod init: %w", err)
	}
	if _, err := s.monitor.Create(ctx, monitor.CreateRequest{ID: id, Bundle: dir}); err != nil {
		return fmt.Errorf("make pod init: %w", err)
	}
	state, err := s.monitor.Start(ctx, id)
	if err != nil {
		return fmt.Errorf("start pod init: %w", err)
	}
	return wholefile.Write(filepath.Join(dir, "pid"), fmt.Appendf(nil, "%d", state.PID))
}

// podPIDNS is the PID namespace that the pod's containers share.
func (s *Service) podPIDNS(pod PodStatus) (*ns.Held, error) {
	var pid int
	text, err := os.ReadFile(filepath.Join(s.spaces.InitBundle(pod.ID), "pid"))
	if err == nil {
		pid, err = strconv.Atoi(string(text))
	}
	if err != nil {
		return nil, fmt.Errorf("find the pod's PID namespace: %w", err)
	}
	return podspace.HoldPID(pid, driver.ContainerPath(pod.CgroupPath, podInitID(pod.ID)))
}

// stopPodInit ends process 1 and with it the pod's PID namespace. It is idempotent.
func (s *Service) stopPodInit(ctx context.Context, podID string) error {
	if err := s.monitor.Delete(ctx, podInitID(podID), s.spaces.InitBundle(podID)); err != nil {
		return fmt.Errorf("stop pod init: %w", err)
	}
	return nil
}
