package limit

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/cgroup/hierarchy"
)

// testCgroup is this run's own: another one may be under way.
var testCgroup = fmt.Sprintf("/criserver-test-limit-%d", os.Getpid())

func newCgroup(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("cgroups need root")
	}
	if err := cgroup.Create(testCgroup); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cgroup.Remove(testCgroup); err != nil {
			t.Error(err)
		}
	})
}

func ptr[T any](v T) *T { return &v }

func memory(limit, swap int64) *specs.LinuxResources {
	m := &specs.LinuxMemory{Limit: &limit}
	if cgroup.CanLimitSwap() {
		m.Swap = &swap
	}
	return &specs.LinuxResources{Memory: m}
}

func quota(quota int64, period uint64) *specs.LinuxResources {
	return &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}}
}

// file is the content of a limit by its name on v1 and on v2.
func file(t *testing.T, controller, legacy, unified string) string {
	t.Helper()
	path := filepath.Join(hierarchy.Mountpoint, testCgroup, unified)
	if !hierarchy.Unified() {
		path = filepath.Join(hierarchy.Mountpoint, controller, testCgroup, legacy)
	}
	text, err := read(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func change(t *testing.T, r *specs.LinuxResources) {
	t.Helper()
	p, err := For(testCgroup, r)
	if err == nil {
		err = p.Apply()
	}
	if err != nil {
		t.Fatalf("%+v: %v", p, err)
	}
}

// Up and down, with swap above and equal, past the kernel's rule that memory and swap are never below memory.
func TestMemoryBothWays(t *testing.T) {
	newCgroup(t)
	const mib = 1 << 20
	for _, pair := range [][2]int64{{64, 64}, {128, 256}, {32, 32}, {512, 512}, {16, 400}, {300, 300}, {-1, -1}, {20, 20}} {
		limit, swap := pair[0]*mib, pair[1]*mib
		if pair[0] < 0 {
			limit, swap = -1, -1
		}
		change(t, memory(limit, swap))
		got := parse(file(t, "memory", "memory.limit_in_bytes", "memory.max"))
		if limit > 0 && got != limit || limit < 0 && got > 0 && got < 1<<60 {
			t.Errorf("%v: limit = %d", pair, got)
		}
		if !cgroup.CanLimitSwap() || limit < 0 {
			continue
		}
		want := swap
		if hierarchy.Unified() {
			want -= limit
		}
		if got := parse(file(t, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")); got != want {
			t.Errorf("%v: swap = %d, want %d", pair, got, want)
		}
	}
}

// The parent's quota is full: no moment of the change may ask for more than it has.
func TestQuotaBelowItsParent(t *testing.T) {
	newCgroup(t)
	parent := testCgroup
	if err := cgroup.Create(parent + "/c"); err != nil {
		t.Fatal(err)
	}
	if hierarchy.Unified() { // what the OCI runtime does when it makes a container's cgroup
		if err := write(filepath.Join(hierarchy.Mountpoint, parent, "cgroup.subtree_control"), "+cpu"); err != nil {
			t.Fatal(err)
		}
	}
	change(t, quota(50_000, 100_000))
	for _, q := range []struct {
		quota  int64
		period uint64
	}{{50_000, 100_000}, {5_000, 10_000}, {250_000, 500_000}, {1_000, 100_000}, {5_000, 10_000}, {-1, 100_000}, {2_000, 4_000}} {
		p, err := For(parent+"/c", quota(q.quota, q.period))
		if err == nil {
			err = p.Apply()
		}
		if err != nil {
			t.Errorf("%+v: %v", q, err)
		}
	}
	p, err := For(parent+"/c", quota(80_000, 100_000))
	if err != nil {
		t.Fatal(err)
	}
	if err = p.Apply(); !hierarchy.Unified() && !errors.Is(err, ErrRefused) { // v2 takes it, and the parent holds it down
		t.Errorf("more than the parent has: %v", err)
	}
}

// everything changes all limits that every machine has.
func everything() *specs.LinuxResources {
	r := memory(64<<20, 96<<20)
	r.CPU = &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(20_000)), Period: ptr(uint64(50_000)), Cpus: "0", Mems: "0"}
	if hierarchy.Unified() {
		r.Unified = map[string]string{"memory.high": "50000000", "cpu.weight": "77"}
	}
	return r
}

// Whatever step fails, nothing of the steps before it is left.
func TestAllOrNothing(t *testing.T) {
	newCgroup(t)
	whole, err := For(testCgroup, everything())
	if err != nil {
		t.Fatal(err)
	}
	if len(whole) < 6 {
		t.Fatalf("only %d writes are planned: %+v", len(whole), whole)
	}
	before := state(t, whole)
	shares := whole[0]
	for i := range len(whole) + 1 {
		p := slices.Insert(slices.Clone(whole), i, Write{File: shares.File, New: "many", Old: shares.Old})
		if err := p.Apply(); !errors.Is(err, ErrRefused) || strings.Contains(err.Error(), "taken back") {
			t.Errorf("step %d: %v", i, err)
		}
		if after := state(t, whole); !maps.Equal(before, after) {
			t.Errorf("step %d failed and left %v, before %v", i, after, before)
		}
	}
	for i := range len(whole) + 1 { // a crash after i writes
		for _, w := range whole[:i] {
			if err := write(w.File, w.New); err != nil {
				t.Fatal(err)
			}
		}
		if err := whole.Undo(); err != nil {
			t.Error(err)
		}
		if after := state(t, whole); !maps.Equal(before, after) {
			t.Errorf("a crash after %d writes left %v, before %v", i, after, before)
		}
	}
	if err := whole.Apply(); err != nil {
		t.Fatal(err)
	}
	if maps.Equal(before, state(t, whole)) {
		t.Error("the whole plan changed nothing")
	}
}

func state(t *testing.T, p Plan) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, w := range p {
		text, err := read(w.File)
		if err != nil {
			t.Fatal(err)
		}
		out[w.File] = text
	}
	return out
}

func TestMemoryInUse(t *testing.T) {
	newCgroup(t)
	const used = 24 << 20
	in, out := io.Pipe()
	cmd := exec.Command("/bin/busybox", "sh", "-c", "read x; exec /bin/busybox dd if=/dev/zero of=/dev/null bs="+strconv.Itoa(used))
	cmd.Stdin = in
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = in.Close(); _ = cmd.Wait() }()
	if err := cgroup.Enter(testCgroup, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); parse(file(t, "memory", "memory.usage_in_bytes", "memory.current")) < used; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the process does not use its memory")
		}
	}
	if _, err := For(testCgroup, memory(used/2, used/2)); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), strconv.Itoa(used/2)) {
		t.Errorf("below what is in use: %v", err)
	}
	if hierarchy.Unified() {
		if _, err := For(testCgroup, &specs.LinuxResources{Unified: map[string]string{"memory.max": "4096"}}); !errors.Is(err, ErrInUse) {
			t.Errorf("below what is in use, by the unified map: %v", err)
		}
	}
	change(t, memory(2*used, 2*used))
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the process has ended: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	newCgroup(t)
	for name, r := range map[string]*specs.LinuxResources{
		"page size":       {HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB", Limit: 1}}},
		"page size path":  {HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "../2MB", Limit: 1}}},
		"no such CPU":     {CPU: &specs.LinuxCPU{Cpus: "4000"}},
		"no such node":    {CPU: &specs.LinuxCPU{Mems: "900"}},
		"unified path":    {Unified: map[string]string{"../memory.max": "1"}},
		"unified control": {Unified: map[string]string{"cgroup.procs": "1"}},
		"unified unknown": {Unified: map[string]string{"memory.nothing": "1"}},
	} {
		p, err := For(testCgroup, r)
		if err == nil {
			err = p.Apply()
		}
		if strings.HasPrefix(name, "page size") && !cgroup.CanLimitHugepages() && err != nil {
			continue // the whole controller is not there
		}
		if !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := For(testCgroup+"/none", memory(1<<30, 1<<30)); err == nil || errors.Is(err, ErrRefused) {
		t.Errorf("a cgroup that is not there: %v", err)
	}
}
