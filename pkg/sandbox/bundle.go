package sandbox

import (
	"context"
	"fmt"

	"criserver/pkg/sandbox/confine"
	"criserver/pkg/sandbox/device"
	"criserver/pkg/sandbox/flight"
	"criserver/pkg/sandbox/handler"
	"criserver/pkg/sandbox/host"
	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/qosclass"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/user"
	"criserver/pkg/sandbox/want"
)

// resolveMounts readies the host paths of a container. ErrRecursiveReadOnly.
func (s *Service) resolveMounts(ctx context.Context, h handler.Usable, in []spec.Mount) ([]spec.Mount, error) {
	mounts, err := s.hostPaths.Resolve(ctx, in, func(source string) { flight.Stage(ctx, "it waits for host path "+source) })
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		if m.RecursiveReadOnly && !h.Features.RecursiveReadOnlyMounts {
			return nil, fmt.Errorf("mount %s: %w: that takes mount_setattr of Linux 5.12, and a runtime that knows it", m.Destination,
				ErrRecursiveReadOnly)
		}
	}
	return mounts, hostpath.CheckPropagation(mounts)
}

// writeBundle writes the container's OCI specification and tells who its workload runs as.
func (s *Service) writeBundle(ctx context.Context, st ContainerStatus, pod PodStatus, h handler.Usable, img want.Image, mounts []spec.Mount) (spec.User, error) {
	c := st.Config
	who := c.User
	who.ImageUser = img.Config.User
	u, err := user.Resolve(s.bundles.RootFS(st.ID), who)
	if err != nil {
		return u, err
	}
	pid, pidNS, err := s.pidNamespace(pod, c.Namespaces)
	if err != nil {
		return u, err
	}
	in := spec.Container{
		ID: st.ID, Name: c.Name, ImageName: c.ImageName, RootFS: s.bundles.RootFS(st.ID), Image: img.Config,
		Command: c.Command, Args: c.Args, WorkingDir: c.WorkingDir, Env: c.Env,
		Mounts: mounts, Annotations: c.Annotations, User: u, PID: pid, PIDNS: pidNS,
		Privileged: c.Privileged, NoNewPrivs: c.NoNewPrivs, ReadOnlyRootFS: c.ReadOnlyRootFS,
		Capabilities: c.Capabilities, MaskedPaths: c.MaskedPaths, ReadonlyPaths: c.ReadonlyPaths,
		Seccomp: c.Seccomp, Resources: c.Resources, TTY: c.TTY,
	}
	if c.Seccomp == spec.SeccompLocalhost {
		if in.SeccompProfile, err = confine.Seccomp(ctx, c.SeccompProfile); err != nil {
			return u, err
		}
	}
	if in.AppArmorProfile, err = c.AppArmor.Resolve(ctx, c.Privileged); err != nil {
		return u, err
	}
	if in.Devices, err = device.Find(ctx, c.Devices); err != nil {
		return u, err
	}
	cdi, err := device.CDINames(c.CDIDevices, c.Annotations)
	if err != nil {
		return u, err
	}
	if err := h.Prepare(&in); err != nil {
		return u, err
	}
	if err := host.AddFacts(&in); err != nil {
		return u, err
	}
	out, err := spec.Build(s.specPod(pod), in)
	if err != nil {
		return u, err
	}
	if err := device.InjectCDI(ctx, s.config.CDISpecDirs, out, cdi); err != nil {
		return u, err
	}
	if err := h.Adapt(ctx, out, pod.Config.Annotations); err != nil {
		return u, err
	}
	if err := qosclass.Apply(out, c.Name, c.Annotations, pod.Config.Annotations); err != nil {
		return u, err
	}
	return u, s.bundles.WriteSpec(st.ID, out)
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
