package adjust

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// target is a specification as the generator of the NRI module changes it (generate.UnderlyingGenerator). The stock one, of
// opencontainers/runtime-tools, does not build with the current runtime specification. A specification of package spec
// has process, linux and resources; hooks and maps may be nil.
type target struct{ spec *specs.Spec }

func (t *target) Spec() *specs.Spec { return t.spec }

func (t *target) resources() *specs.LinuxResources {
	if t.spec.Linux.Resources == nil {
		t.spec.Linux.Resources = &specs.LinuxResources{}
	}
	return t.spec.Linux.Resources
}

func (t *target) cpu() *specs.LinuxCPU {
	r := t.resources()
	if r.CPU == nil {
		r.CPU = &specs.LinuxCPU{}
	}
	return r.CPU
}

func (t *target) memory() *specs.LinuxMemory {
	r := t.resources()
	if r.Memory == nil {
		r.Memory = &specs.LinuxMemory{}
	}
	return r.Memory
}

func (t *target) hooks() *specs.Hooks {
	if t.spec.Hooks == nil {
		t.spec.Hooks = &specs.Hooks{}
	}
	return t.spec.Hooks
}

// put sets a key of a map that may not be there yet.
func put(m *map[string]string, key, value string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[key] = value
}

func (t *target) AddAnnotation(key, value string)  { put(&t.spec.Annotations, key, value) }
func (t *target) RemoveAnnotation(key string)      { delete(t.spec.Annotations, key) }
func (t *target) AddLinuxSysctl(key, value string) { put(&t.spec.Linux.Sysctl, key, value) }
func (t *target) RemoveLinuxSysctl(key string)     { delete(t.spec.Linux.Sysctl, key) }

func (t *target) SetProcessArgs(args []string)    { t.spec.Process.Args = slices.Clone(args) }
func (t *target) SetProcessOOMScoreAdj(score int) { t.spec.Process.OOMScoreAdj = &score }
func (t *target) SetLinuxCgroupsPath(path string) { t.spec.Linux.CgroupsPath = path }
func (t *target) ClearProcessEnv()                { t.spec.Process.Env = nil }

func (t *target) AddProcessEnv(name, value string) {
	t.spec.Process.Env = slices.DeleteFunc(t.spec.Process.Env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
	t.spec.Process.Env = append(t.spec.Process.Env, name+"="+value)
}

func (t *target) AddPreStartHook(h specs.Hook) {
	t.hooks().Prestart = append(t.hooks().Prestart, h) //nolint:staticcheck // deprecated; NRI has it
}
func (t *target) AddPostStartHook(h specs.Hook) { t.hooks().Poststart = append(t.hooks().Poststart, h) }
func (t *target) AddPostStopHook(h specs.Hook)  { t.hooks().Poststop = append(t.hooks().Poststop, h) }

func (t *target) Mounts() []specs.Mount   { return t.spec.Mounts }
func (t *target) AddMount(m specs.Mount)  { t.spec.Mounts = append(t.spec.Mounts, m) }
func (t *target) ClearMounts()            { t.spec.Mounts = nil }
func (t *target) RemoveMount(dest string) { t.spec.Mounts = mountsBut(t.spec.Mounts, dest) }

// mountsBut makes a new list: the generator still reads the old one.
func mountsBut(all []specs.Mount, dest string) []specs.Mount {
	return slices.DeleteFunc(slices.Clone(all), func(m specs.Mount) bool { return m.Destination == dest })
}

func (t *target) SetLinuxRootPropagation(mode string) error {
	switch mode {
	case "", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable":
		t.spec.Linux.RootfsPropagation = mode
		return nil
	}
	return fmt.Errorf("propagation of the root: %q is unknown", mode)
}

func (t *target) AddDevice(d specs.LinuxDevice) {
	t.RemoveDevice(d.Path)
	t.spec.Linux.Devices = append(t.spec.Linux.Devices, d)
}

func (t *target) RemoveDevice(path string) {
	t.spec.Linux.Devices = slices.DeleteFunc(t.spec.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == path })
}

// namespaces are the names of the OCI specification.
var namespaces = []specs.LinuxNamespaceType{
	specs.CgroupNamespace, specs.IPCNamespace, specs.MountNamespace, specs.NetworkNamespace, specs.PIDNamespace, specs.TimeNamespace,
	specs.UserNamespace, specs.UTSNamespace,
}

func (t *target) AddOrReplaceLinuxNamespace(name, path string) error {
	if err := t.RemoveLinuxNamespace(name); err != nil {
		return err
	}
	t.spec.Linux.Namespaces = append(t.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(name), Path: path})
	return nil
}

func (t *target) RemoveLinuxNamespace(name string) error {
	kind := specs.LinuxNamespaceType(name)
	if !slices.Contains(namespaces, kind) {
		return fmt.Errorf("namespaces: %q is none of %q", name, namespaces)
	}
	t.spec.Linux.Namespaces = slices.DeleteFunc(t.spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
	return nil
}

func (t *target) AddLinuxResourcesDevice(allow bool, kind string, major, minor *int64, access string) {
	r := t.resources()
	r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: major, Minor: minor, Access: access})
}

func (t *target) AddLinuxResourcesHugepageLimit(size string, limit uint64) {
	r := t.resources()
	r.HugepageLimits = slices.DeleteFunc(slices.Clone(r.HugepageLimits), func(l specs.LinuxHugepageLimit) bool { return l.Pagesize == size })
	r.HugepageLimits = append(r.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
}

func (t *target) AddLinuxResourcesUnified(key, value string) {
	r := t.resources()
	r.Unified = maps.Clone(r.Unified)
	put(&r.Unified, key, value)
}

func (t *target) SetLinuxResourcesCPUCpus(cpus string)        { t.cpu().Cpus = cpus }
func (t *target) SetLinuxResourcesCPUMems(mems string)        { t.cpu().Mems = mems }
func (t *target) SetLinuxResourcesCPUPeriod(v uint64)         { t.cpu().Period = &v }
func (t *target) SetLinuxResourcesCPUQuota(v int64)           { t.cpu().Quota = &v }
func (t *target) SetLinuxResourcesCPURealtimePeriod(v uint64) { t.cpu().RealtimePeriod = &v }
func (t *target) SetLinuxResourcesCPURealtimeRuntime(v int64) { t.cpu().RealtimeRuntime = &v }
func (t *target) SetLinuxResourcesCPUShares(v uint64)         { t.cpu().Shares = &v }
func (t *target) SetLinuxResourcesMemoryLimit(v int64)        { t.memory().Limit = &v }
func (t *target) SetLinuxResourcesMemorySwap(v int64)         { t.memory().Swap = &v }
