// Package compose makes the specification of a container of all that has a say in it: what is wanted, the image, the pod, the
// runtime handler, the files of the root file system, the node's profiles, devices and classes. It changes nothing.
package compose

import (
	"context"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/confine"
	"criserver/pkg/sandbox/device"
	"criserver/pkg/sandbox/handler"
	"criserver/pkg/sandbox/host"
	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/target"
	"criserver/pkg/sandbox/user"
	"criserver/pkg/sandbox/want"
)

// Input is what a container is made of.
type Input struct {
	ID   string
	Want want.Container
	// Image is the image, RootFS where its root file system is mounted.
	Image  want.Image
	RootFS string
	// Mounts are the host paths and image volumes, as they were found.
	Mounts []spec.Mount
	// Pod is the container's pod; PodAnnotations are its annotations.
	Pod            spec.Pod
	PodAnnotations map[string]string
	// PID says which PID namespace it gets, PIDNS where that is, with spec.PIDPath.
	PID   spec.PIDMode
	PIDNS string
	// Labels are its SELinux labels.
	Labels confine.Labels
	// Handler is how it is to be run.
	Handler handler.Usable
	// CDISpecDirs hold the files that describe CDI devices, a later directory before an earlier one.
	CDISpecDirs []string
	// Files are the host's: profiles and devices.
	Files hostpath.Files
}

// Spec makes the specification, and tells who the workload runs as. What is wrong with the request is a want.ErrInvalid or a
// spec.ErrInvalid.
func Spec(ctx context.Context, in Input) (*specs.Spec, spec.User, error) {
	c := in.Want
	who := c.User
	who.ImageUser = in.Image.Config.User
	u, err := user.Resolve(in.RootFS, who)
	if err != nil {
		return nil, u, err
	}
	values := spec.Container{
		ID: in.ID, Name: c.Name, ImageName: c.ImageName, RootFS: in.RootFS, Image: in.Image.Config,
		Command: c.Command, Args: c.Args, WorkingDir: c.WorkingDir, Env: c.Env,
		Mounts: in.Mounts, Annotations: c.Annotations, User: u, PID: in.PID, PIDNS: in.PIDNS,
		Privileged: c.Privileged, NoNewPrivs: c.NoNewPrivs, ReadOnlyRootFS: c.ReadOnlyRootFS,
		Capabilities: c.Capabilities, MaskedPaths: c.MaskedPaths, ReadonlyPaths: c.ReadonlyPaths,
		Seccomp: c.Seccomp, Resources: c.Resources, TTY: c.TTY, ProcessLabel: in.Labels.Process, MountLabel: in.Labels.Mount,
	}
	if err := in.addNode(ctx, &values, c); err != nil {
		return nil, u, err
	}
	cdi, err := device.CDINames(c.CDIDevices, c.Annotations)
	if err != nil {
		return nil, u, err
	}
	if err := in.Handler.Prepare(&values); err != nil {
		return nil, u, err
	}
	if err := host.AddFacts(&values); err != nil {
		return nil, u, err
	}
	out, err := spec.Build(in.Pod, values)
	if err != nil {
		return nil, u, err
	}
	where := "working_dir"
	if c.WorkingDir == "" {
		where = "image: config.WorkingDir"
	}
	if err := target.Check(ctx, in.Files.Asker, out, in.Mounts, where); err != nil {
		return nil, u, err
	}
	if err := device.InjectCDI(ctx, in.CDISpecDirs, out, cdi); err != nil {
		return nil, u, err
	}
	if err := in.Handler.Adapt(ctx, out, in.Pod.Hostname, in.PodAnnotations); err != nil {
		return nil, u, err
	}
	if err := in.Handler.Classes.Apply(out, c.Name, c.Annotations, in.PodAnnotations); err != nil {
		return nil, u, err
	}
	return out, u, nil
}

// addNode adds what the container wants of the node by name: profiles and devices.
func (in Input) addNode(ctx context.Context, values *spec.Container, c want.Container) error {
	var err error
	if c.Seccomp == spec.SeccompLocalhost {
		if values.SeccompProfile, err = confine.Seccomp(ctx, in.Files, c.SeccompProfile); err != nil {
			return err
		}
	}
	if values.AppArmorProfile, err = c.AppArmor.Resolve(ctx, c.Privileged); err != nil {
		return err
	}
	if values.Devices, err = device.Find(ctx, in.Files.Asker, c.Devices); err != nil {
		return err
	}
	return nil
}
