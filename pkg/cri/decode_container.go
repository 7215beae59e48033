package cri

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"unicode/utf8"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/imagesvc"
	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/device"
	"criserver/pkg/sandbox/idmap"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/user"
	"criserver/pkg/sandbox/want"
)

// decodeContainer turns the CRI's configuration of a container into the runtime's, and refuses what this version does not
// honour.
func decodeContainer(c *runtimeapi.ContainerConfig) (want.Container, error) {
	var none want.Container
	if err := checkContainer(c); err != nil {
		return none, err
	}
	sc := c.GetLinux().GetSecurityContext()
	namespaces, err := decodeNamespaces("linux.security_context.namespace_options", sc.GetNamespaceOptions())
	if err != nil {
		return none, err
	}
	env, err := decodeEnv(c.GetEnvs())
	if err != nil {
		return none, err
	}
	mounts, err := decodeMounts(c.GetMounts())
	if err != nil {
		return none, err
	}
	seccomp, seccompProfile, err := decodeSeccomp(sc)
	if err != nil {
		return none, err
	}
	appArmor, err := decodeAppArmor(sc)
	if err != nil {
		return none, err
	}
	return want.Container{
		Name: c.GetMetadata().GetName(), Attempt: c.GetMetadata().GetAttempt(),
		ImageName: cmp.Or(c.GetImage().GetUserSpecifiedImage(), c.GetImage().GetImage()),
		Command:   c.GetCommand(), Args: c.GetArgs(), WorkingDir: c.GetWorkingDir(), Env: env, Mounts: mounts,
		Labels: c.GetLabels(), Annotations: c.GetAnnotations(), LogPath: c.GetLogPath(),
		Resources:  decodeResources(c.GetLinux().GetResources()),
		Namespaces: namespaces, Privileged: sc.GetPrivileged(), ReadOnlyRootFS: sc.GetReadonlyRootfs(),
		NoNewPrivs: sc.GetNoNewPrivs(),
		Capabilities: spec.Capabilities{
			Add: sc.GetCapabilities().GetAddCapabilities(), Drop: sc.GetCapabilities().GetDropCapabilities(),
			Ambient: sc.GetCapabilities().GetAddAmbientCapabilities(),
		},
		MaskedPaths: decodePaths(sc, sc.GetMaskedPaths()), ReadonlyPaths: decodePaths(sc, sc.GetReadonlyPaths()), Seccomp: seccomp,
		SeccompProfile: seccompProfile, AppArmor: appArmor, SELinux: decodeSELinux(sc.GetSelinuxOptions()),
		Devices: decodeDevices(c.GetDevices()), CDIDevices: decodeCDI(c.GetCDIDevices()),
		User: user.Want{
			UID: optional(sc.GetRunAsUser()), GID: optional(sc.GetRunAsGroup()), Username: sc.GetRunAsUsername(),
			SupplementalGIDs: sc.GetSupplementalGroups(),
			StrictGroups:     sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Strict,
		},
		TTY: c.GetTty(), Stdin: c.GetStdin(), StdinOnce: c.GetStdinOnce(),
		StopSignal: decodeSignal(c.GetStopSignal()),
	}, nil
}

// checkContainer refuses the fields that this version does not honour.
func checkContainer(c *runtimeapi.ContainerConfig) error {
	if c == nil {
		return invalid("config", "missing")
	}
	sc := c.GetLinux().GetSecurityContext()
	switch {
	case c.GetWindows() != nil:
		return unsupported("windows", "a Windows container")
	case runtimeapi.SupplementalGroupsPolicy_name[int32(sc.GetSupplementalGroupsPolicy())] == "":
		return invalid("linux.security_context.supplemental_groups_policy", "%v", sc.GetSupplementalGroupsPolicy())
	case sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "":
		return invalid("linux.security_context.run_as_group", "run_as_user or run_as_username must be set with it")
	case sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "":
		return invalid("linux.security_context.run_as_username", "run_as_user is set too")
	}
	return nil
}

func decodeEnv(in []*runtimeapi.KeyValue) ([]string, error) {
	var out []string
	for _, kv := range in {
		if kv.GetKey() == "" || strings.ContainsAny(kv.GetKey(), "=\x00") || strings.ContainsRune(string(kv.GetValue()), 0) {
			return nil, invalid("envs", "%q is no name of a variable, or its value has a NUL byte", kv.GetKey())
		}
		if !utf8.Valid(kv.GetValue()) {
			return nil, invalid("envs", "the value of %s is not UTF-8: an OCI specification, which is JSON, cannot hold it", kv.GetKey())
		}
		out = append(out, kv.GetKey()+"="+string(kv.GetValue()))
	}
	return out, nil
}

// decodePaths reads masked_paths or readonly_paths. Protobuf does not tell an empty list from none; the kubelet sends its
// default list, or an empty one for procMount Unmasked, so that empty means none, as in containerd. Only who says nothing
// of security gets the defaults.
func decodePaths(sc *runtimeapi.LinuxContainerSecurityContext, paths []string) []string {
	if sc != nil && paths == nil {
		return []string{}
	}
	return paths
}

func decodeDevices(in []*runtimeapi.Device) []device.Want {
	var out []device.Want
	for _, d := range in {
		out = append(out, device.Want{HostPath: d.GetHostPath(), ContainerPath: d.GetContainerPath(), Permissions: d.GetPermissions()})
	}
	return out
}

func decodeCDI(in []*runtimeapi.CDIDevice) []string {
	var out []string
	for _, d := range in {
		out = append(out, d.GetName())
	}
	return out
}

// checkImageMount refuses what does not go with the image of a mount, or without one. Image volumes are read-only, with all of what is
// in them, and have the labels of their pod's SELinux level: readonly, recursive_read_only and selinux_relabel ask for what they are.
func checkImageMount(field string, m *runtimeapi.Mount) error {
	switch {
	case m.GetImage() == nil && m.GetImageSubPath() != "":
		return invalid(field+"image_sub_path", "no image is set")
	case m.GetImage() == nil && m.GetHostPath() == "":
		return invalid(field+"host_path", "empty")
	case m.GetImage() == nil:
		return nil
	case m.GetImage().GetImage() == "":
		return invalid(field+"image.image", "empty")
	case m.GetHostPath() != "":
		return invalid(field+"host_path", "image is set too")
	case m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return invalid(field+"propagation", "%v of an image volume", m.GetPropagation())
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return invalid(field+"recursive_read_only", "readonly must be set with it")
	}
	return nil
}

func decodeMounts(in []*runtimeapi.Mount) ([]spec.Mount, error) {
	var out []spec.Mount
	for i, m := range in {
		field := fmt.Sprintf("mounts[%d].", i)
		if err := checkImageMount(field, m); err != nil {
			return nil, err
		}
		if m.GetImage() != nil {
			continue // see decodeVolumes
		}
		propagation, ok := map[runtimeapi.MountPropagation]spec.Propagation{
			runtimeapi.MountPropagation_PROPAGATION_PRIVATE:           spec.PropagationPrivate,
			runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: spec.PropagationHostToContainer,
			runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:     spec.PropagationBidirectional,
		}[m.GetPropagation()]
		if !ok {
			return nil, invalid(field+"propagation", "%v", m.GetPropagation())
		}
		out = append(out, spec.Mount{
			Source: m.GetHostPath(), Destination: m.GetContainerPath(), ReadOnly: m.GetReadonly(), Propagation: propagation,
			RecursiveReadOnly: m.GetRecursiveReadOnly(), Relabel: m.GetSelinuxRelabel(), Options: m.GetMountOptions(),
			Users: decodeMountUsers(m),
		})
	}
	return out, nil
}

// decodeMountUsers takes the mappings of a mount; none leave the owners as they are.
func decodeMountUsers(m *runtimeapi.Mount) *idmap.Mappings {
	if len(m.GetUidMappings()) == 0 && len(m.GetGidMappings()) == 0 {
		return nil
	}
	return &idmap.Mappings{UIDs: decodeRanges(m.GetUidMappings()), GIDs: decodeRanges(m.GetGidMappings())}
}

// decodeVolumes finds the images that are to be mounted.
func decodeVolumes(ctx context.Context, in []*runtimeapi.Mount, b Backends) ([]want.ImageVolume, error) {
	var out []want.ImageVolume
	for i, m := range in {
		name := m.GetImage().GetImage()
		if name == "" {
			continue
		}
		if err := b.checkImage(fmt.Sprintf("mounts[%d].image", i), m.GetImage()); err != nil {
			return nil, err
		}
		img, err := b.Images.Ready(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("%w of %s: %w", sandbox.ErrImageVolume, m.GetContainerPath(), err)
		}
		out = append(out, want.ImageVolume{
			ImageName: cmp.Or(m.GetImage().GetUserSpecifiedImage(), name), ImageID: img.ID.String(), Layers: img.DiffIDs,
			Destination: m.GetContainerPath(), SubPath: m.GetImageSubPath(), Options: m.GetMountOptions(), Users: decodeMountUsers(m),
		})
	}
	return out, nil
}

func decodeResources(r *runtimeapi.LinuxContainerResources) spec.Resources {
	out := spec.Resources{
		CPUPeriod: r.GetCpuPeriod(), CPUQuota: r.GetCpuQuota(), CPUShares: r.GetCpuShares(),
		MemoryLimit: r.GetMemoryLimitInBytes(), MemorySwap: r.GetMemorySwapLimitInBytes(),
		CpusetCPUs: r.GetCpusetCpus(), CpusetMems: r.GetCpusetMems(), OOMScoreAdj: r.GetOomScoreAdj(),
		Unified: r.GetUnified(),
	}
	for _, h := range r.GetHugepageLimits() {
		if out.HugepageLimits == nil {
			out.HugepageLimits = map[string]uint64{}
		}
		out.HugepageLimits[h.GetPageSize()] = h.GetLimit()
	}
	return out
}

// decodeSignal is the name of a stop signal, "" for the image's own.
func decodeSignal(s runtimeapi.Signal) string {
	if s == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return ""
	}
	// SIGNAL_SIGRTMINPLUS3 in the protobuf is SIGRTMIN+3 everywhere else.
	return strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(strings.TrimPrefix(s.String(), "SIGNAL_"))
}

func optional(v *runtimeapi.Int64Value) *int64 {
	if v == nil {
		return nil
	}
	return &v.Value
}

// containerImage is the image as a container needs it.
func containerImage(img imagesvc.Image) want.Image {
	ref := img.ID.String()
	if len(img.Digests) > 0 {
		ref = img.Digests[0]
	}
	return want.Image{ID: img.ID.String(), Ref: ref, Layers: img.DiffIDs, Config: img.Config.Config}
}
