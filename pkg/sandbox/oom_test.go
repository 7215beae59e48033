package sandbox

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/cgroup/hierarchy"
	"criserver/pkg/sandbox/cgroup/limit"
	"criserver/pkg/sandbox/spec"
)

// Whose limit it was is in the message: the container's own, or that of the pod as the kubelet has set it.
func TestOOMTellsWhoseLimit(t *testing.T) {
	f := newFixture(t)
	const small, large = 24 << 20, 200 << 20
	for name, row := range map[string]struct{ container, pod int64 }{"the container": {small, large}, "the pod": {large, small}} {
		config := f.podConfig()
		pod := f.runPod(config)
		f.limitMemory(f.podOf(pod).CgroupPath, row.pod)
		c := script("hog", "dd if=/dev/zero of=/dev/null bs=100M count=1; exit 9")
		c.Command = []string{"busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"}
		c.Resources = spec.Resources{MemoryLimit: row.container}
		st := f.awaitExit(f.start(pod, c))
		want := fmt.Sprintf("memory limit of %s, %d bytes,", name, int64(small))
		if st.Reason != ReasonOOMKilled || st.ExitCode != 137 || !strings.Contains(st.Message, want) {
			t.Errorf("%s: %s %d %q, want %q", name, st.Reason, st.ExitCode, st.Message, want)
		}
		if err := f.RemovePod(t.Context(), pod); err != nil {
			t.Error(err)
		}
	}
	pod := f.runPod(f.podConfig())
	if st := f.awaitExit(f.start(pod, script("kills-itself", "kill -9 $$; sleep 1; exit 137"))); st.Reason == ReasonOOMKilled || st.Message != "" {
		t.Errorf("a container that had memory: %s %q", st.Reason, st.Message)
	}
}

// limitMemory does to a pod's cgroup what the kubelet does.
func (f *fixture) limitMemory(path string, bytes int64) {
	f.t.Helper()
	if hierarchy.Unified() {
		for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup" + testCgroup} {
			if err := os.WriteFile(dir+"/cgroup.subtree_control", []byte("+memory"), 0); err != nil {
				f.t.Fatal(err)
			}
		}
	}
	r := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &bytes}}
	if cgroup.CanLimitSwap() {
		r.Memory.Swap = &bytes
	}
	plan, err := limit.For(path, r)
	if err == nil {
		err = plan.Apply()
	}
	if err != nil {
		f.t.Fatal(err)
	}
}
