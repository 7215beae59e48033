package device

import (
	"context"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/spec"
)

// CDINames are the CDI devices of a container, such as "vendor.com/gpu=0": those that the CRI names, and those that
// annotations of the form cdi.k8s.io/… do, as device plugins of old wrote them.
func CDINames(names []string, annotations map[string]string) ([]string, error) {
	_, more, err := cdi.ParseAnnotations(annotations)
	if err != nil {
		return nil, spec.Invalidf("annotations", "%v", err)
	}
	var out []string
	for _, name := range slices.Concat(names, more) {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out, nil
}

// InjectCDI makes the changes to a specification that the CDI files in dirs, a later one before an earlier one, tell for
// the devices. The files are read anew: plugins write them while this process runs. The directories are the operator's to choose.
func InjectCDI(ctx context.Context, dirs []string, s *specs.Spec, names []string) error {
	if len(names) == 0 {
		return nil
	}
	if len(dirs) == 0 {
		return spec.Invalidf("CDI_devices", "%q: the node has no CDI devices, its cdi_spec_dirs is empty", names)
	}
	cache, err := hostpath.Ask(ctx, nil, dirs[0], func() (*cdi.Cache, error) {
		return cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	})
	if err != nil {
		return err
	}
	if _, err := cache.InjectDevices(s, names...); err != nil {
		return spec.Invalidf("CDI_devices", "%v; CDI files are looked for in %q", err, dirs)
	}
	return nil
}
