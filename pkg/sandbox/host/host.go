// Package host tells what a container's specification takes from the machine.
package host

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/sys/capability"
	"github.com/moby/sys/devices"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/cgroup/hierarchy"
	"criserver/pkg/sandbox/spec"
)

// facts are what a specification takes from the machine. They do not change while this process runs.
type facts struct {
	capabilities   []string // those that this process holds and can give away
	oomScoreAdj    int
	mayLowerOOM    bool
	maskedPaths    []string
	unified        bool
	swapAccounting bool
	cgroupOptions  []string
	hugepages      bool     // there is a hugetlb controller
	pageSizes      []string // of huge pages, as "2MB"
}

var read = sync.OnceValues(readFacts)

func readFacts() (facts, error) {
	f := facts{unified: hierarchy.Unified()}
	own, err := capability.NewPid2(0)
	if err == nil {
		err = own.Load()
	}
	if err != nil {
		return f, fmt.Errorf("read own capabilities: %w", err)
	}
	for _, c := range capability.ListKnown() {
		if own.Get(capability.PERMITTED, c) {
			f.capabilities = append(f.capabilities, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	// Lowering a score below one's own needs the capability (proc_pid_oom_score_adj(5)).
	f.mayLowerOOM = slices.Contains(f.capabilities, "CAP_SYS_RESOURCE")
	if !f.mayLowerOOM {
		logrus.Warn("without CAP_SYS_RESOURCE no container gets an oom_score_adj below criserver's own")
	}
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	if err == nil {
		f.oomScoreAdj, err = strconv.Atoi(strings.TrimSpace(string(score)))
	}
	if err != nil {
		return f, fmt.Errorf("read own oom_score_adj: %w", err)
	}
	f.maskedPaths, _ = filepath.Glob("/sys/devices/system/cpu/cpu*/thermal_throttle")
	if f.unified {
		f.cgroupOptions = cgroupOptions()
	}
	f.swapAccounting, f.hugepages, f.pageSizes = cgroup.CanLimitSwap(), cgroup.CanLimitHugepages(), cgroups.HugePageSizes()
	return f, nil
}

// cgroupOptions are the options of the one cgroup2 superblock that a container could change by mounting it anew.
func cgroupOptions() []string {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter("/sys/fs/cgroup"))
	if err != nil || len(mounts) == 0 {
		return nil
	}
	var options []string
	for o := range strings.SplitSeq(mounts[0].VFSOptions, ",") {
		if o == "nsdelegate" || o == "memory_recursiveprot" {
			options = append(options, o)
		}
	}
	return options
}

// AddFacts puts in what the specification of a container takes from the host.
func AddFacts(c *spec.Container) error {
	f, err := read()
	if err != nil {
		return err
	}
	c.HeldCapabilities = f.capabilities
	c.MinOOMScoreAdj, c.MayLowerOOMScore = f.oomScoreAdj, f.mayLowerOOM
	c.HostMaskedPaths = f.maskedPaths
	c.UnifiedCgroup, c.CgroupMountOptions = f.unified, f.cgroupOptions
	c.SwapAccounting = f.swapAccounting
	if c.Resources, err = f.possible(c.Resources); err != nil {
		return err
	}
	if c.Privileged {
		c.HostDevices, err = hostDevices()
	}
	return err
}

// possible refuses limits that this machine cannot set, and leaves out those that mean nothing on it.
func (f facts) possible(r spec.Resources) (spec.Resources, error) {
	if err := f.check(r); err != nil {
		return r, err
	}
	// The kubelet sends a zero for every page size that a container has not asked for, whether or not there is a controller.
	r.HugepageLimits = maps.Clone(r.HugepageLimits)
	maps.DeleteFunc(r.HugepageLimits, func(size string, _ uint64) bool { return !f.hugepages || !slices.Contains(f.pageSizes, size) })
	return r, nil
}

// Limits turns an update of limits into those of the OCI specification, as far as this machine has them.
func Limits(r spec.Resources) (*specs.LinuxResources, error) {
	f, err := read()
	if err != nil {
		return nil, err
	}
	if r, err = f.possible(r); err != nil {
		return nil, err
	}
	return spec.LinuxResources(r, f.swapAccounting)
}

// OOMScore is the lowest oom_score_adj that this process may set, or the one that is wanted.
func OOMScore(wanted int) (int, error) {
	f, err := read()
	if err != nil || f.mayLowerOOM {
		return wanted, err
	}
	return max(wanted, f.oomScoreAdj), nil
}

// RecursiveReadOnly tells whether the kernel can make mounts read-only with all that is mounted below (Linux 5.12).
var RecursiveReadOnly = sync.OnceValue(func() bool {
	// No attribute to set and none to clear: nothing is done, so that no path is looked at (mount_setattr(2)).
	return unix.MountSetattr(-1, "", 0, &unix.MountAttr{}) == nil
})

// hostDevices lists the device nodes of the host, for a privileged container. They change: each start asks anew.
func hostDevices() ([]specs.LinuxDevice, error) {
	found, err := devices.HostDevices()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list host devices: %w", err)
	}
	out := make([]specs.LinuxDevice, 0, len(found))
	for _, d := range found {
		mode, uid, gid := d.FileMode.Perm(), d.Uid, d.Gid
		out = append(out, specs.LinuxDevice{
			Path: d.Path, Type: string(d.Type), Major: d.Major, Minor: d.Minor, FileMode: &mode, UID: &uid, GID: &gid,
		})
	}
	return out, nil
}
