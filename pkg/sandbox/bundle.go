package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/host"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/user"
	"criserver/pkg/sandbox/want"
	"criserver/pkg/snapshot"
)

// mountRootFS makes the container's snapshot and mounts it in its bundle.
func (s *Service) mountRootFS(ctx context.Context, id string, layers []digest.Digest) error {
	mounts, err := s.snapshots.Prepare(ctx, id, layers)
	if err != nil {
		return fmt.Errorf("prepare snapshot: %w", err)
	}
	if err := os.Mkdir(s.bundle(id), 0o711); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	if err := os.Mkdir(s.rootfs(id), 0o711); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	if err := snapshot.MountAll(mounts, s.rootfs(id)); err != nil {
		return fmt.Errorf("mount root file system: %w", err)
	}
	return nil
}

// writeBundle writes the container's OCI specification and tells who its workload runs as.
func (s *Service) writeBundle(st ContainerStatus, pod PodStatus, img want.Image, mounts []spec.Mount) (spec.User, error) {
	c := st.Config
	who := c.User
	who.ImageUser = img.Config.User
	u, err := user.Resolve(s.rootfs(st.ID), who)
	if err != nil {
		return u, err
	}
	pid, pidNS, err := s.pidNamespace(pod, c.Namespaces)
	if err != nil {
		return u, err
	}
	in := spec.Container{
		ID: st.ID, Name: c.Name, ImageName: c.ImageName, RootFS: s.rootfs(st.ID), Image: img.Config,
		Command: c.Command, Args: c.Args, WorkingDir: c.WorkingDir, Env: c.Env,
		Mounts: mounts, Annotations: c.Annotations, User: u, PID: pid, PIDNS: pidNS,
		Privileged: c.Privileged, NoNewPrivs: c.NoNewPrivs, ReadOnlyRootFS: c.ReadOnlyRootFS,
		Capabilities: c.Capabilities, MaskedPaths: c.MaskedPaths, ReadonlyPaths: c.ReadonlyPaths,
		Seccomp: c.Seccomp, Resources: c.Resources,
	}
	if err := host.AddFacts(&in); err != nil {
		return u, err
	}
	out, err := spec.Build(s.specPod(pod), in)
	if err != nil {
		return u, err
	}
	data, err := json.Marshal(out)
	if err != nil {
		return u, fmt.Errorf("encode specification: %w", err)
	}
	if err := writeWhole(filepath.Join(s.bundle(st.ID), "config.json"), data); err != nil {
		return u, fmt.Errorf("write specification: %w", err)
	}
	return u, nil
}

// pidNamespace finds the PID namespace that a container is to join.
func (s *Service) pidNamespace(pod PodStatus, n want.Namespaces) (spec.PIDMode, string, error) {
	switch n.PID {
	case want.NamespaceNode:
		return spec.PIDHost, "", nil
	case want.NamespacePod:
		path, err := s.podPIDNS(pod.ID)
		return spec.PIDPath, path, err
	case want.NamespaceTarget:
		target, err := s.Container(n.TargetID)
		if err != nil {
			return 0, "", fmt.Errorf("target_id: %w: %w", want.ErrInvalid, err)
		}
		if target.PodID != pod.ID {
			return 0, "", fmt.Errorf("target_id: container %s is in another pod: %w", n.TargetID, want.ErrInvalid)
		}
		if target.PID == 0 {
			return 0, "", fmt.Errorf("target_id: container %s is %s: %w", n.TargetID, target.Phase, ErrState)
		}
		return spec.PIDPath, fmt.Sprintf("/proc/%d/ns/pid", target.PID), nil
	}
	return spec.PIDContainer, "", nil
}

// processOf reads the process of a container's specification, the model of every command that is run in it.
func (s *Service) processOf(id string) (*specs.Process, error) {
	data, err := os.ReadFile(filepath.Join(s.bundle(id), "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read specification: %w", err)
	}
	var v struct {
		Process *specs.Process `json:"process"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, fmt.Errorf("decode specification: %w", err)
	}
	return v.Process, nil
}

// writeWhole writes a file that is there whole or not at all, wherever this process is killed.
func writeWhole(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
