package cri

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/imagesvc"
	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/idmap"
	"criserver/pkg/sandbox/signals"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/want"
)

func encodePod(p sandbox.PodStatus) *runtimeapi.PodSandbox {
	return &runtimeapi.PodSandbox{
		Id: p.ID, Metadata: podMetadata(p), State: podState(p), CreatedAt: p.CreatedAt.UnixNano(),
		Labels: p.Config.Labels, Annotations: p.Config.Annotations, RuntimeHandler: p.Config.Handler,
	}
}

func podMetadata(p sandbox.PodStatus) *runtimeapi.PodSandboxMetadata {
	return &runtimeapi.PodSandboxMetadata{
		Name: p.Config.Name, Uid: p.Config.UID, Namespace: p.Config.Namespace, Attempt: p.Config.Attempt,
	}
}

func podState(p sandbox.PodStatus) runtimeapi.PodSandboxState {
	if p.Phase == sandbox.PodReady {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

func encodePodStatus(p sandbox.PodStatus) *runtimeapi.PodSandboxStatus {
	network := &runtimeapi.PodSandboxNetworkStatus{}
	for i, ip := range p.IPs {
		if i == 0 {
			network.Ip = ip.String()
			continue
		}
		network.AdditionalIps = append(network.AdditionalIps, &runtimeapi.PodIP{Ip: ip.String()})
	}
	return &runtimeapi.PodSandboxStatus{
		Id: p.ID, Metadata: podMetadata(p), State: podState(p), CreatedAt: p.CreatedAt.UnixNano(), Network: network,
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{
			Options: encodeNamespaces(p.Config.Namespaces),
		}},
		Labels: p.Config.Labels, Annotations: p.Config.Annotations, RuntimeHandler: p.Config.Handler,
	}
}

func encodeNamespaces(n want.Namespaces) *runtimeapi.NamespaceOption {
	modes := map[want.NamespaceMode]runtimeapi.NamespaceMode{
		want.NamespacePod:       runtimeapi.NamespaceMode_POD,
		want.NamespaceContainer: runtimeapi.NamespaceMode_CONTAINER,
		want.NamespaceNode:      runtimeapi.NamespaceMode_NODE,
		want.NamespaceTarget:    runtimeapi.NamespaceMode_TARGET,
	}
	out := &runtimeapi.NamespaceOption{Network: modes[n.Network], Ipc: modes[n.IPC], Pid: modes[n.PID], TargetId: n.TargetID}
	if n.Users != nil {
		out.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: encodeRanges(n.Users.UIDs), Gids: encodeRanges(n.Users.GIDs)}
	}
	return out
}

func encodeRanges(ranges []idmap.Range) []*runtimeapi.IDMapping {
	out := make([]*runtimeapi.IDMapping, len(ranges))
	for i, r := range ranges {
		out[i] = &runtimeapi.IDMapping{ContainerId: r.Container, HostId: r.Host, Length: r.Size}
	}
	return out
}

func encodeContainer(c sandbox.ContainerStatus) *runtimeapi.Container {
	return &runtimeapi.Container{
		Id: c.ID, PodSandboxId: c.PodID, Metadata: containerMetadata(c), Image: containerImageSpec(c), ImageRef: c.ImageRef,
		ImageId: c.ImageID, State: containerState(c), CreatedAt: c.CreatedAt.UnixNano(),
		Labels: c.Config.Labels, Annotations: c.Config.Annotations,
	}
}

func containerMetadata(c sandbox.ContainerStatus) *runtimeapi.ContainerMetadata {
	return &runtimeapi.ContainerMetadata{Name: c.Config.Name, Attempt: c.Config.Attempt}
}

func containerImageSpec(c sandbox.ContainerStatus) *runtimeapi.ImageSpec {
	return &runtimeapi.ImageSpec{Image: c.Config.ImageName, UserSpecifiedImage: c.Config.ImageName, ImageRef: c.ImageRef}
}

func containerState(c sandbox.ContainerStatus) runtimeapi.ContainerState {
	switch c.Phase {
	case sandbox.ContainerRemoving: // its removal has failed, or is under way
		if !c.FinishedAt.IsZero() {
			return runtimeapi.ContainerState_CONTAINER_EXITED
		}
	case sandbox.ContainerCreating, sandbox.ContainerCreated:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	case sandbox.ContainerRunning:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case sandbox.ContainerExited:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	}
	return runtimeapi.ContainerState_CONTAINER_UNKNOWN
}

func encodeContainerStatus(c sandbox.ContainerStatus) *runtimeapi.ContainerStatus {
	st := &runtimeapi.ContainerStatus{
		Id: c.ID, Metadata: containerMetadata(c), State: containerState(c),
		CreatedAt: c.CreatedAt.UnixNano(), StartedAt: nanos(c.StartedAt), FinishedAt: nanos(c.FinishedAt),
		ExitCode: int32(c.ExitCode), Reason: c.Reason, Message: c.Message,
		Image: containerImageSpec(c), ImageRef: c.ImageRef, ImageId: c.ImageID,
		Labels: c.Config.Labels, Annotations: c.Config.Annotations, LogPath: c.LogPath,
		Resources:  &runtimeapi.ContainerResources{Linux: encodeResources(c.Config.Resources)},
		StopSignal: encodeSignal(c.StopSignal),
	}
	if c.Phase != sandbox.ContainerCreating {
		user := &runtimeapi.LinuxContainerUser{Uid: int64(c.User.UID), Gid: int64(c.User.GID)}
		for _, gid := range c.User.AdditionalGIDs {
			user.SupplementalGroups = append(user.SupplementalGroups, int64(gid))
		}
		st.User = &runtimeapi.ContainerUser{Linux: user}
	}
	for _, m := range c.Config.Mounts {
		mount := &runtimeapi.Mount{
			ContainerPath: m.Destination, HostPath: m.Source, Readonly: m.ReadOnly,
			RecursiveReadOnly: m.RecursiveReadOnly, MountOptions: m.Options, SelinuxRelabel: m.Relabel,
			Propagation: map[spec.Propagation]runtimeapi.MountPropagation{
				spec.PropagationPrivate:         runtimeapi.MountPropagation_PROPAGATION_PRIVATE,
				spec.PropagationHostToContainer: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
				spec.PropagationBidirectional:   runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL,
			}[m.Propagation],
		}
		if m.Users != nil {
			mount.UidMappings, mount.GidMappings = encodeRanges(m.Users.UIDs), encodeRanges(m.Users.GIDs)
		}
		st.Mounts = append(st.Mounts, mount)
	}
	for _, v := range c.Config.Volumes {
		st.Mounts = append(st.Mounts, &runtimeapi.Mount{
			ContainerPath: v.Destination, Readonly: true, ImageSubPath: v.SubPath, MountOptions: v.Options,
			Image: &runtimeapi.ImageSpec{Image: v.ImageID, UserSpecifiedImage: v.ImageName},
		})
	}
	return st
}

func encodeResources(r spec.Resources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{
		CpuPeriod: r.CPUPeriod, CpuQuota: r.CPUQuota, CpuShares: r.CPUShares, MemoryLimitInBytes: r.MemoryLimit,
		MemorySwapLimitInBytes: r.MemorySwap, CpusetCpus: r.CpusetCPUs, CpusetMems: r.CpusetMems,
		OomScoreAdj: r.OOMScoreAdj, Unified: r.Unified,
	}
	for _, size := range slices.Sorted(maps.Keys(r.HugepageLimits)) {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: size, Limit: r.HugepageLimits[size]})
	}
	return out
}

// encodeSignal is the CRI's value of a signal as an image or a pod writes it. It has none for two numbers that images may have too.
func encodeSignal(written string) runtimeapi.Signal {
	value := func(name string) runtimeapi.Signal {
		name = strings.TrimPrefix(strings.ToUpper(name), "SIG")
		return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_SIG"+strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)])
	}
	if s := value(written); s != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return s // before another name of the same
	}
	n, err := signals.Parse(written)
	if err != nil {
		return runtimeapi.Signal_SIGNAL_SIGTERM // what a stop sends then
	}
	return value(signals.Name(n))
}

func encodeImage(img imagesvc.Image) *runtimeapi.Image {
	out := &runtimeapi.Image{
		Id: img.ID.String(), RepoTags: img.Tags, RepoDigests: img.Digests, Size: uint64(img.Size), Pinned: img.Pinned,
		Spec: &runtimeapi.ImageSpec{Image: img.ID.String(), Annotations: img.Annotations},
	}
	// Of "user:group" only the user counts; a number is a uid (OCI image spec, config.User).
	who, _, _ := strings.Cut(img.Config.Config.User, ":")
	if uid, err := strconv.ParseInt(who, 10, 64); err == nil {
		out.Uid = &runtimeapi.Int64Value{Value: uid}
	} else {
		out.Username = who
	}
	return out
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// verbose is the info map that crictl prints with inspect.
func verbose(v any) map[string]string {
	data, err := json.Marshal(v)
	if err != nil {
		return map[string]string{"info": strconv.Quote(err.Error())}
	}
	return map[string]string{"info": string(data)}
}

// containerInfo is what verbose ContainerStatus tells beside the status. The environment is left out: it may hold
// secrets.
func containerInfo(c sandbox.ContainerStatus) any {
	return map[string]any{
		"sandboxID": c.PodID, "pid": c.PID, "cgroupPath": c.CgroupPath, "phase": c.Phase, "imageID": c.ImageID,
		"logBytesLost": c.LogBytesLost, "logBytesDropped": c.LogBytesDropped,
	}
}

func imageInfo(img imagesvc.Image) any {
	return map[string]any{
		"imageSpec": img.Config, "diffIDs": img.DiffIDs, "pulled": img.Pulled, "manifest": img.Manifest, "artifact": img.Artifact,
	}
}

// matchID tells whether an ID fits a filter: crictl sends prefixes.
func matchID(filter, id string) bool { return strings.HasPrefix(id, filter) }

func matchLabels(selector, labels map[string]string) bool {
	for k, v := range maps.All(selector) {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// newestFirst gives a list a stable order.
func newestFirst[T any](items []T, key func(T) (int64, string)) {
	slices.SortFunc(items, func(a, b T) int {
		at, aid := key(a)
		bt, bid := key(b)
		return cmp.Or(cmp.Compare(bt, at), cmp.Compare(aid, bid))
	})
}
