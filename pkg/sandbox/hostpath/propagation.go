package hostpath

import (
	"fmt"
	"strings"

	"github.com/moby/sys/mountinfo"

	"criserver/pkg/sandbox/spec"
)

// CheckPropagation refuses mounts that could not propagate as they are to: from a private mount of the host nothing comes, and
// into one that is not shared nothing goes (mount_namespaces(7)). The sources are resolved.
func CheckPropagation(mounts []spec.Mount) error {
	for _, m := range mounts {
		if m.Propagation == spec.PropagationPrivate {
			continue
		}
		at, err := mountOf(m.Source)
		if err != nil {
			return err
		}
		shared, slave := strings.Contains(at.Optional, "shared:"), strings.Contains(at.Optional, "master:")
		switch {
		case m.Propagation == spec.PropagationBidirectional && !shared:
			return spec.Invalidf("mounts.propagation", "PROPAGATION_BIDIRECTIONAL of %s: %s, where it is mounted, is not shared; "+
				"run: mount --make-rshared %s", m.Source, at.Mountpoint, at.Mountpoint)
		case m.Propagation == spec.PropagationHostToContainer && !shared && !slave:
			return spec.Invalidf("mounts.propagation", "PROPAGATION_HOST_TO_CONTAINER of %s: %s, where it is mounted, is neither "+
				"shared nor slave; run: mount --make-rshared %s", m.Source, at.Mountpoint, at.Mountpoint)
		}
	}
	return nil
}

// mountOf finds the mount that a path is on. It does not touch the path.
func mountOf(path string) (*mountinfo.Info, error) {
	above, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var found *mountinfo.Info
	for _, m := range above {
		if found == nil || len(m.Mountpoint) >= len(found.Mountpoint) { // the last of several on one directory is on top
			found = m
		}
	}
	if found == nil {
		return nil, fmt.Errorf("no mount has %s", path)
	}
	return found, nil
}
