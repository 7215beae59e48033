// Package device finds the devices of the node that a container is given: nodes by their paths, and those that vendors
// describe in CDI files. Errors that the caller is to blame for are spec.FieldErrors.
package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/sys/devices"
	"github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/spec"
)

// Want is a device as the CRI names it (Device in api.proto).
type Want struct {
	// HostPath is a device node, or a directory of such.
	HostPath string
	// ContainerPath is where the node, or the directory, is in the container; "" is HostPath.
	ContainerPath string
	// Permissions are letters of "rwm"; "" is all.
	Permissions string
}

// Find finds the nodes, by way of paths. A symlink is followed; of a directory all nodes in it and below count.
func Find(ctx context.Context, paths *hostpath.Asker, wants []Want) ([]spec.Device, error) {
	var out []spec.Device
	for _, w := range wants {
		if w.ContainerPath == "" {
			w.ContainerPath = w.HostPath
		}
		if w.Permissions == "" {
			w.Permissions = "rwm"
		}
		found, err := hostpath.Soon(ctx, paths, w.HostPath, func() ([]spec.Device, error) { return find(ctx, paths, w) })
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

func find(ctx context.Context, paths *hostpath.Asker, w Want) ([]spec.Device, error) {
	if !path.IsAbs(w.HostPath) {
		return nil, spec.Invalidf("devices.host_path", "%q is not absolute", w.HostPath)
	}
	real, err := filepath.EvalSymlinks(w.HostPath)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, spec.Invalidf("devices.host_path", "the node has no %s", w.HostPath)
	}
	if err != nil {
		return nil, fmt.Errorf("find device: %w", err)
	}
	one, err := Node(real, w.ContainerPath, w.Permissions)
	if err == nil {
		return []spec.Device{one}, nil
	}
	if !errors.Is(err, devices.ErrNotADevice) {
		return nil, fmt.Errorf("find device: %w", err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return nil, fmt.Errorf("find device: %w", err)
	}
	if !info.IsDir() {
		return nil, spec.Invalidf("devices.host_path", "%s is neither a device nor a directory", w.HostPath)
	}
	if err := hostpath.Below(ctx, paths, real); err != nil {
		return nil, err
	}
	all, err := devices.GetDevices(real)
	if err != nil {
		return nil, fmt.Errorf("list devices in %s: %w", w.HostPath, err)
	}
	if len(all) == 0 {
		return nil, spec.Invalidf("devices.host_path", "no device is in the directory %s", w.HostPath)
	}
	var out []spec.Device
	for _, d := range all {
		out = append(out, ociDevice(d, path.Join(w.ContainerPath, strings.TrimPrefix(d.Path, real)), w.Permissions))
	}
	return out, nil
}

// Node is the device node that is at hostPath, itself and not behind a symlink, as the one at a path in the container.
// devices.ErrNotADevice.
func Node(hostPath, at, permissions string) (spec.Device, error) {
	d, err := devices.DeviceFromPath(hostPath, permissions)
	if err != nil {
		return spec.Device{}, err
	}
	return ociDevice(d, at, permissions), nil
}

func ociDevice(d *config.Device, at, permissions string) spec.Device {
	mode, uid, gid := d.FileMode.Perm(), d.Uid, d.Gid
	return spec.Device{
		LinuxDevice: specs.LinuxDevice{
			Path: at, Type: string(d.Type), Major: d.Major, Minor: d.Minor, FileMode: &mode, UID: &uid, GID: &gid,
		},
		Permissions: permissions,
	}
}
