package confine

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/flight"
	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/spec"
)

const fieldSELinux = "security_context.selinux_options"

// SELinux is what a caller wants of a label (SELinuxOption in api.proto). On a node without SELinux it has no effect: the same pods run
// on both kinds of nodes.
type SELinux struct {
	User, Role, Type, Level string
}

// Labels are what SELinux knows the processes of a container by, and the files that they may use. Both are "" on a node that does
// not confine by SELinux, or has no policy for containers.
type Labels struct {
	Process string `json:",omitempty"`
	Mount   string `json:",omitempty"`
}

// PodLabels makes the labels of a pod. What the caller does not say is from the policy's own file
// (/etc/selinux/…/contexts/lxc_contexts), but for the level: it is one that no other pod has, which is held until Release.
func PodLabels(o SELinux) (Labels, error) {
	if !selinux.GetEnabled() {
		return Labels{}, nil
	}
	l, err := initLabels(o)
	if err != nil || l.Process == "" {
		return Labels{}, err
	}
	if err := l.check(); err != nil {
		if o.Level == "" { // one that was asked for may be another pod's too
			l.Release()
		}
		if o == (SELinux{}) {
			warnNoPolicy(l.Process, err)
			return Labels{}, nil
		}
		return Labels{}, err
	}
	return l, nil
}

// ForContainer are the labels of a container in the pod that these are of, which the host paths of mounts get that want it. They are
// the pod's own, or, if the container says anything, what it says and for the rest what the policy says, with the pod's level: the
// containers of a pod share files.
func (l Labels) ForContainer(ctx context.Context, o SELinux, mounts []spec.Mount) (Labels, error) {
	out, err := l.override(o)
	if err != nil || out.Mount == "" {
		return Labels{}, err
	}
	for _, m := range mounts {
		if m.Relabel {
			if err := relabel(ctx, m.Source, out.Mount); err != nil {
				return Labels{}, fmt.Errorf("mount %s: %w", m.Destination, err)
			}
		}
	}
	return out, nil
}

func (l Labels) override(o SELinux) (Labels, error) {
	if l.Process == "" || o == (SELinux{}) {
		return l, nil
	}
	pod, err := selinux.NewContext(l.Process)
	if err != nil {
		return Labels{}, fmt.Errorf("SELinux label of the pod: %w", err)
	}
	level := o.Level
	o.Level = pod["level"] // which is held already
	out, err := initLabels(o)
	if err == nil && level != "" {
		out, err = out.withLevel(level)
	}
	if err == nil {
		err = out.check()
	}
	return out, err
}

func (l Labels) withLevel(level string) (Labels, error) {
	for _, part := range []*string{&l.Process, &l.Mount} {
		c, err := selinux.NewContext(*part)
		if err != nil {
			return Labels{}, spec.Invalidf(fieldSELinux, "%v", err)
		}
		c["level"] = level
		*part = c.Get()
	}
	return l, nil
}

// Reserve holds the level of a pod that was made by another process.
func (l Labels) Reserve() {
	if l.Process == "" {
		return
	}
	if err := selinux.ReserveLabelV2(l.Process); err != nil && !errors.Is(err, selinux.ErrMCSAlreadyExists) { // pods may want the same
		logrus.WithError(err).WithField("label", l.Process).Warn("the level of a pod's SELinux label may be given to another pod")
	}
}

// Release lets other pods have the level.
func (l Labels) Release() { selinux.ReleaseLabel(l.Process) }

// SameLevel tells whether both have the same level, by their pods' wish.
func (l Labels) SameLevel(other Labels) bool {
	if l.Process == "" || other.Process == "" {
		return false
	}
	a, errA := selinux.NewContext(l.Process)
	b, errB := selinux.NewContext(other.Process)
	return errA == nil && errB == nil && a["level"] == b["level"]
}

// initLabels does not ask the kernel whether there are such labels.
func initLabels(o SELinux) (Labels, error) {
	var options []string
	for _, part := range []struct{ name, value string }{{"user", o.User}, {"role", o.Role}, {"type", o.Type}, {"level", o.Level}} {
		if part.value != "" {
			options = append(options, part.name+":"+part.value)
		}
	}
	process, mount, err := label.InitLabels(options)
	switch {
	case err != nil:
		return Labels{}, spec.Invalidf(fieldSELinux, "%v", err)
	case process == "" && len(options) > 0:
		return Labels{}, spec.Invalidf(fieldSELinux, "%q: the node's SELinux policy has no labels for containers; install one that has "+
			"contexts/lxc_contexts, such as container-selinux", options)
	}
	return Labels{Process: process, Mount: mount}, nil
}

// check asks the kernel whether the policy knows the labels.
func (l Labels) check() error {
	for _, part := range []string{l.Process, l.Mount} {
		if err := selinux.SecurityCheckContext(part); err != nil {
			return spec.Invalidf(fieldSELinux, "the node's SELinux policy does not know the label %s: %v", part, err)
		}
	}
	return nil
}

var policyWarning sync.Once

func warnNoPolicy(label string, err error) {
	policyWarning.Do(func() {
		logrus.WithError(err).WithField("label", label).
			Warn("containers run without SELinux labels: the policy has no such label for them, as container-selinux would")
	})
}

// relabel labels a host path, which was found, and all below it. A file system that keeps no labels, such as NFS, is left as it is.
func relabel(ctx context.Context, path, mountLabel string) error {
	flight.Stage(ctx, "host path "+path+" gets its SELinux label")
	_, err := hostpath.Ask(ctx, nil, path, func() (struct{}, error) { return struct{}{}, label.Relabel(path, mountLabel, false) })
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	return nil
}
