package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"criserver/pkg/sandbox/cgroup/hierarchy"
	"criserver/pkg/sandbox/cgroup/limit"
	"criserver/pkg/sandbox/host"
	"criserver/pkg/sandbox/spec"
)

// memoryLimit reads the limit of a container from its cgroup.
func (f *fixture) memoryLimit(id string) int64 {
	f.t.Helper()
	path := filepath.Join("/sys/fs/cgroup/memory", f.status(id).CgroupPath, "memory.limit_in_bytes")
	if hierarchy.Unified() {
		path = filepath.Join("/sys/fs/cgroup", f.status(id).CgroupPath, "memory.max")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		f.t.Fatal(err)
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return n
}

func TestUpdateContainer(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod(f.podConfig())
	c := script("a", "while :; do sleep 0.1; done")
	c.Resources = spec.Resources{CPUShares: 512, MemoryLimit: 64 << 20}
	id, err := f.CreateContainer(t.Context(), pod, c, f.image)
	if err != nil {
		t.Fatal(err)
	}
	for _, mib := range []int64{96, 32} { // created, then running; up, then down
		if err := f.UpdateContainer(t.Context(), id, spec.Resources{MemoryLimit: mib << 20, CPUShares: 2 * mib}); err != nil {
			t.Fatal(err)
		}
		if got := f.memoryLimit(id); got != mib<<20 {
			t.Errorf("limit = %d, want %d MiB", got, mib)
		}
		if got := f.status(id).Config.Resources; got.MemoryLimit != mib<<20 || got.CPUShares != 2*mib {
			t.Errorf("status: %+v", got)
		}
		if f.status(id).Phase == ContainerCreated {
			if err := f.StartContainer(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	}
	// One value that is refused, and none has changed.
	bad := spec.Resources{MemoryLimit: 48 << 20, CPUShares: 99, CpusetMems: "900"}
	if err := f.UpdateContainer(t.Context(), id, bad); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "cpuset_mems") {
		t.Errorf("a memory node that is not there: %v", err)
	}
	if err := f.UpdateContainer(t.Context(), id, spec.Resources{MemoryLimit: 4096}); !errors.Is(err, limit.ErrInUse) {
		t.Errorf("less than is in use: %v", err)
	}
	if err := f.UpdateContainer(t.Context(), id, spec.Resources{CPUPeriod: 1}); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("a period of 1 µs: %v", err)
	}
	check := func(when string) {
		t.Helper()
		if got := f.status(id); got.Config.Resources.MemoryLimit != 32<<20 || got.Config.Resources.CPUShares != 64 || got.Updating != nil {
			t.Errorf("%s: status %+v", when, got)
		}
		if got := f.memoryLimit(id); got != 32<<20 {
			t.Errorf("%s: limit = %d", when, got)
		}
	}
	if err := f.UpdateContainer(t.Context(), id, spec.Resources{CPUShares: 99, OOMScoreAdj: 1001}); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("an OOM score of 1001: %v", err)
	}
	check("after refusals")
	if err := f.UpdateContainer(t.Context(), id, spec.Resources{OOMScoreAdj: 777}); err != nil {
		t.Fatal(err)
	}
	score := func(when string, want int) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(f.status(id).PID), "oom_score_adj"))
		if got := strings.TrimSpace(string(data)); err != nil || got != strconv.Itoa(want) {
			t.Errorf("%s: the process has the score %s, %v, want %d", when, got, err, want)
		}
		if got, err := f.bundles.Score(id); err != nil || got != want || f.status(id).Config.Resources.OOMScoreAdj != int64(want) {
			t.Errorf("%s: the specification has the score %d, %v, want %d; the status %d", when, got, err, want,
				f.status(id).Config.Resources.OOMScoreAdj)
		}
	}
	score("after an update", 777)
	f.reopen(nil)
	check("after a restart")
	f.cutOffUpdate(id)
	f.reopen(nil)
	check("after a restart in the middle of an update")
	score("after a restart in the middle of an update", 777)
	if err := f.StopContainer(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.UpdateContainer(t.Context(), id, spec.Resources{CPUShares: 5}); !errors.Is(err, ErrState) {
		t.Errorf("update of a container that has exited: %v", err)
	}
	if err := f.UpdateContainer(t.Context(), "nobody", spec.Resources{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("update of an unknown container: %v", err)
	}
}

// cutOffUpdate leaves an update where a crash of the daemon would leave it: recorded, and half done.
func (f *fixture) cutOffUpdate(id string) {
	f.t.Helper()
	c, err := f.ledger.Container(id)
	if err != nil {
		f.t.Fatal(err)
	}
	limits, err := host.Limits(spec.Resources{MemoryLimit: 200 << 20, CPUShares: 300})
	if err != nil {
		f.t.Fatal(err)
	}
	plan, err := limit.For(f.status(id).CgroupPath, limits)
	if err != nil {
		f.t.Fatal(err)
	}
	plan = slices.Insert(plan, 0, limit.Score(f.status(id).CgroupPath, 777, 888))
	f.ledger.UpdateContainer(c, func(st *ContainerStatus) { st.Updating = plan })
	if err := errors.Join(f.ledger.SaveContainer(f.t.Context(), c), plan[:len(plan)-1].Apply(), f.bundles.SetScore(id, 888)); err != nil {
		f.t.Fatal(err)
	}
}

func TestUpdatePod(t *testing.T) {
	f := newFixture(t)
	pod := f.runPod(f.podConfig())
	if err := f.UpdatePod(t.Context(), pod, nil, &spec.Resources{MemoryLimit: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	if err := f.UpdatePod(t.Context(), pod, &spec.Resources{CPUShares: 2}, nil); err != nil {
		t.Fatal(err)
	}
	f.reopen(nil)
	if st, err := f.Pod(pod); err != nil || st.Config.Resources.MemoryLimit != 1<<30 || st.Config.Overhead.CPUShares != 2 {
		t.Errorf("status after a restart: %+v, %v", st, err)
	}
	if err := f.StopPod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if err := f.UpdatePod(t.Context(), pod, nil, nil); !errors.Is(err, ErrState) {
		t.Errorf("update of a stopped pod: %v", err)
	}
	if err := f.UpdatePod(t.Context(), "nobody", nil, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("update of an unknown pod: %v", err)
	}
}
