package handler

import (
	"context"
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/spec"
)

// containerType is the annotation that tells a pod from its containers.
const containerType = "io.kubernetes.cri.container-type"

// Adapt makes a specification the handler's: its version, the annotations that it passes on or adds, defaults and hooks. hostname is the
// pod's. spec.ErrInvalid: it has what the handler cannot do.
func (u Usable) Adapt(ctx context.Context, s *specs.Spec, hostname string, podAnnotations map[string]string) error {
	s.Version = u.SpecVersion
	all := maps.Clone(u.Annotations)
	if all == nil {
		all = map[string]string{}
	}
	for name, value := range podAnnotations {
		if u.ofPods(name) {
			all[name] = value
		}
	}
	maps.Copy(all, s.Annotations)
	s.Annotations = all
	if u.Command != nil && u.Command.Sandbox {
		if err := u.isolate(s, hostname); err != nil {
			return err
		}
	}
	u.addDefaults(s)
	return u.addHooks(ctx, s, all)
}

// isolate makes a specification that of a container with a kernel of its own, which joins no namespaces but the network's.
func (u Usable) isolate(s *specs.Spec, hostname string) error {
	// With it runsc would put the container into the sandbox of another one that has the pod's ID: here each has its own.
	delete(s.Annotations, containerType)
	pid := slices.IndexFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
	if err := u.CheckProcesses(pid < 0 || s.Linux.Namespaces[pid].Path != ""); err != nil {
		return spec.Invalidf("linux.security_context.namespace_options.pid", "%v", err)
	}
	for i := range s.Linux.Namespaces {
		if n := &s.Linux.Namespaces[i]; n.Type == specs.UTSNamespace {
			n.Path = ""
			s.Hostname = hostname
		}
	}
	return nil
}
