package sandbox

import (
	"context"
	"fmt"
	"slices"

	"criserver/pkg/flight"
	"criserver/pkg/sandbox/compose"
	"criserver/pkg/sandbox/confine"
	"criserver/pkg/sandbox/handler"
	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/ns"
	"criserver/pkg/sandbox/podspace"
	"criserver/pkg/sandbox/spec"
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
func (s *Service) writeBundle(ctx context.Context, st ContainerStatus, pod PodStatus, h handler.Usable, img want.Image, mounts []spec.Mount, labels confine.Labels, pid spec.PIDMode, pidNS *ns.Held) (spec.User, error) {
	out, u, err := compose.Spec(ctx, compose.Input{
		ID: st.ID, Want: st.Config, Image: img, RootFS: s.bundles.RootFS(st.ID), Mounts: mounts,
		Pod: s.spaces.Spec(pod), PodAnnotations: pod.Config.Annotations, PID: pid, PIDNS: pidNS.Path(), Labels: labels,
		Handler: h, CDISpecDirs: s.config.CDISpecDirs, Files: s.hostFiles,
	})
	if err == nil {
		err = s.adjust(ctx, st, out)
	}
	if err != nil {
		return u, err
	}
	u.AdditionalGIDs = slices.Sorted(slices.Values(out.Process.User.AdditionalGids)) // devices and plugins may have added some
	if st.Config.Checkpoint != "" {
		if u, err = s.adaptRestored(st, out); err != nil {
			return u, err
		}
		if h.Command != nil && out.Process.Terminal {
			return u, fmt.Errorf("tty: %w: runtime handler %q does not restore terminals, builtin does", want.ErrInvalid, h.Name)
		}
	}
	return u, s.bundles.WriteSpec(st.ID, out)
}

// pidNamespace finds the PID namespace that a container is to join.
func (s *Service) pidNamespace(pod PodStatus, n want.Namespaces) (spec.PIDMode, *ns.Held, error) {
	switch n.PID {
	case want.NamespaceNode:
		return spec.PIDHost, nil, nil
	case want.NamespacePod:
		held, err := s.podPIDNS(pod)
		return spec.PIDPath, held, err
	case want.NamespaceTarget:
		target, err := s.Container(n.TargetID)
		if err != nil {
			return 0, nil, fmt.Errorf("target_id: %w: %w", want.ErrInvalid, err)
		}
		if target.PodID != pod.ID {
			return 0, nil, fmt.Errorf("target_id: container %s is in another pod: %w", n.TargetID, want.ErrInvalid)
		}
		if target.PID == 0 || target.Phase.Terminal() {
			return 0, nil, fmt.Errorf("target_id: container %s is %s: %w", n.TargetID, target.Phase, ErrState)
		}
		held, err := podspace.HoldPID(target.PID, target.CgroupPath)
		return spec.PIDPath, held, err
	}
	return spec.PIDContainer, nil, nil
}
