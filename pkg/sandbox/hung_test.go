package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup"
	"criserver/pkg/sandbox/cgroup/kill"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/want"
	"criserver/test/hungfs"
)

func (f *fixture) awaitLog(id, text string) {
	f.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(f.logOf(id), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("the log of %s lacks %q: %q", id, text, f.logOf(id))
		}
	}
}

// works runs a container in a pod of its own to its end, and removes both: what hangs elsewhere must not hold it.
func (f *fixture) works() {
	f.t.Helper()
	start := time.Now()
	pod := f.runPod(f.podConfig())
	f.awaitExit(f.start(pod, script("w", "true")))
	if err := errors.Join(f.StopPod(f.t.Context(), pod), f.RemovePod(f.t.Context(), pod)); err != nil {
		f.t.Error(err)
	}
	if d := time.Since(start); d > 5*time.Second {
		f.t.Errorf("another pod took %s", d)
	}
}

// A process that waits for a file system that hangs is in uninterruptible sleep once it is killed. It ends when that answers, and no sooner: the call keeps its deadline and the
// status says which process it is.
func TestStopOfUninterruptibleSleep(t *testing.T) {
	hung := hungfs.Mount(t)
	f := newFixture(t)
	t.Cleanup(hung.Answer) // before the fixture removes what waits for it
	if err := os.WriteFile(filepath.Join(hung.Dir, "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	pod := f.runPod(f.podConfig())
	c := script("a", "cat /v/f; echo ready; while :; do cat /v/f; done")
	c.Mounts = []spec.Mount{{Source: hung.Dir, Destination: "/v"}}
	id := f.start(pod, c)
	f.awaitLog(id, "ready")
	hung.Hang()
	dir := kill.Dir(f.status(id).CgroupPath)
	// What was asked for before is still being answered: only who waits again and again has been left without an answer.
	for deadline, waits := time.Now().Add(10*time.Second), 0; waits < 40; time.Sleep(5 * time.Millisecond) {
		waits++
		if !strings.Contains(kill.Holders(dir), "(cat) is asleep in the kernel's request_wait_answer") {
			waits = 0
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing hangs: %s", kill.Holders(dir))
		}
	}
	for name, stop := range map[string]func(context.Context) error{
		"StopContainer":   func(ctx context.Context) error { return f.StopContainer(ctx, id, 100*time.Millisecond) },
		"RemoveContainer": func(ctx context.Context) error { return f.RemoveContainer(ctx, id) },
		"StopPod":         func(ctx context.Context) error { return f.StopPod(ctx, pod) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		start := time.Now()
		err := stop(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "(cat) is in uninterruptible sleep") {
			t.Errorf("%s: %v", name, err)
		}
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("%s took %s", name, d)
		}
		if m := f.status(id).Message; !strings.Contains(m, "(cat) is in uninterruptible sleep") {
			t.Errorf("%s: message = %q", name, m)
		}
	}
	f.works()
	hung.Answer()
	if st := f.awaitExit(id); st.ExitCode != 137 || st.Message != "" {
		t.Errorf("status = %+v", st)
	}
	if err := errors.Join(f.StopContainer(t.Context(), id, 0), f.RemoveContainer(t.Context(), id), f.StopPod(t.Context(), pod)); err != nil {
		t.Error(err)
	}
}

func TestStopEndsEverything(t *testing.T) {
	f := newFixture(t)
	config := f.podConfig()
	config.Namespaces.PID = want.NamespaceNode
	pod := f.runPod(config)
	for name, row := range map[string]struct {
		script string
		code   int
		before func(ContainerStatus) error
		grace  time.Duration
	}{
		"deaf":   {"trap '' TERM INT HUP; echo ready; while :; do sleep 0.05; done", 137, nil, 200 * time.Millisecond},
		"zero":   {"trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done", 137, nil, 0},
		"closed": {"trap 'exit 4' TERM; echo ready; exec <&- >&- 2>&-; while :; do sleep 0.05; done", 4, nil, 20 * time.Second},
		"frozen": {"trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done", 5, func(st ContainerStatus) error {
			return cgroup.Freeze(t.Context(), st.CgroupPath) // by somebody else than the service
		}, 20 * time.Second},
		"frozen, at once": {"echo ready; while :; do sleep 0.05; done", 137, func(st ContainerStatus) error {
			return cgroup.Freeze(t.Context(), st.CgroupPath)
		}, 0},
		"forks": {`trap '' TERM; export S='sh -c "$S" & exit'; for i in 1 2 3; do sh -c "$S" & done; echo ready; while :; do sleep 0.05; done`,
			137, nil, 200 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			c := script(strings.ReplaceAll(name, " ", "-"), row.script)
			c.Namespaces.PID = want.NamespaceNode // nobody's end takes the others along
			id := f.start(pod, c)
			f.awaitLog(id, "ready")
			if row.before != nil {
				if err := row.before(f.status(id)); err != nil {
					t.Fatal(err)
				}
			}
			start := time.Now()
			if err := f.StopContainer(t.Context(), id, row.grace); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("it took %s", d)
			}
			if st := f.awaitExit(id); st.ExitCode != row.code || st.Message != "" {
				t.Errorf("status = %+v, want code %d", st, row.code)
			}
			if err := f.RemoveContainer(t.Context(), id); err != nil {
				t.Error(err)
			}
			if h := kill.Holders(kill.Dir(f.podOf(pod).CgroupPath)); h != "" {
				t.Errorf("left: %s", h)
			}
		})
	}
}

func (f *fixture) podOf(id string) PodStatus {
	f.t.Helper()
	st, err := f.Pod(id)
	if err != nil {
		f.t.Fatal(err)
	}
	return st
}

// A host path that does not answer fails the creation that needs it, by name, and holds nothing else: no other pod, not the
// removal of its own, not the end of the daemon.
func TestHungHostPath(t *testing.T) {
	hung := hungfs.Mount(t)
	f := newFixture(t)
	t.Cleanup(hung.Answer) // before the fixture removes what waits for it
	pod := f.runPod(f.podConfig())
	c := script("a", "true")
	source := filepath.Join(hung.Dir, "volume")
	c.Mounts = []spec.Mount{{Source: source, Destination: "/v"}}
	hung.Hang()
	for range 2 { // the second call joins the first
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_, err := f.CreateContainer(ctx, pod, c, f.image)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), source) {
			t.Errorf("err = %v", err)
		}
	}
	if n := len(f.Containers()); n != 1 {
		t.Errorf("%d containers, want the one that is being made", n)
	}
	f.works()
	failed := make(chan error, 1)
	go func() {
		_, err := f.CreateContainer(t.Context(), pod, c, f.image)
		failed <- err
	}()
	time.Sleep(50 * time.Millisecond)
	start := time.Now()
	if err := errors.Join(f.StopPod(t.Context(), pod), f.RemovePod(t.Context(), pod)); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, ErrState) || !strings.Contains(err.Error(), source) {
		t.Errorf("the creation in a pod that is removed: %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("the removal of the pod took %s", d)
	}

	pod = f.runPod(f.podConfig())
	go func() {
		_, err := f.CreateContainer(t.Context(), pod, c, f.image)
		failed <- err
	}()
	time.Sleep(50 * time.Millisecond)
	start = time.Now()
	f.reopen(nil)
	if err := <-failed; !errors.Is(err, ErrUnavailable) {
		t.Errorf("the creation at the end of the daemon: %v", err)
	}
	if d := time.Since(start); d > stopGrace+5*time.Second {
		t.Errorf("the end of the daemon took %s", d)
	}
	if n := len(f.Containers()); n != 0 {
		t.Errorf("%d containers are left", n)
	}
	hung.Answer()
	f.awaitExit(f.start(pod, c))
}

// A container stops also where crimonitor does not answer: its processes end in time, and who waits is told what is missing.
func TestStopWithoutMonitor(t *testing.T) {
	f := newFixture(t)
	info, err := f.monitor.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pod := f.runPod(f.podConfig())
	for name, stop := range map[string]func(context.Context, string) error{
		"with grace": func(ctx context.Context, id string) error { return f.StopContainer(ctx, id, time.Second) },
		"at once":    func(ctx context.Context, id string) error { return f.StopContainer(ctx, id, 0) },
		"removed":    f.RemoveContainer,
	} {
		id := f.start(pod, script(strings.ReplaceAll(name, " ", "-"), "echo ready; while :; do sleep 0.05; done"))
		f.awaitLog(id, "ready")
		if err := unix.Kill(info.PID, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := stop(ctx, id)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "crimonitor has not told of it") {
			t.Errorf("%s: %v", name, err)
		}
		if h := kill.Holders(kill.Dir(f.status(id).CgroupPath)); h != "" {
			t.Errorf("%s: these live: %s", name, h)
		}
		if err := unix.Kill(info.PID, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if st := f.awaitExit(id); st.ExitCode != 137 || st.Message != "" {
			t.Errorf("%s: status = %+v", name, st)
		}
	}
}

// Whoever stops a pod finds nothing of containers that were being created in it.
func TestStopPodDuringCreation(t *testing.T) {
	f := newFixture(t)
	for i := range 30 {
		pod := f.runPod(f.podConfig())
		dir := kill.Dir(f.podOf(pod).CgroupPath)
		created := make(chan struct{})
		go func() {
			defer close(created)
			_, _ = f.CreateContainer(t.Context(), pod, script("c", "sleep 100"), f.image)
		}()
		time.Sleep(time.Duration(i) * 2 * time.Millisecond)
		if err := f.StopPod(t.Context(), pod); err != nil {
			t.Errorf("stopped after %d ms: %v", 2*i, err)
		}
		if h := kill.Holders(dir); h != "" {
			t.Errorf("stopped after %d ms, these live: %s", 2*i, h)
		}
		<-created
		if err := f.RemovePod(t.Context(), pod); err != nil {
			t.Error(err)
		}
	}
}

// A container that crimonitor could neither start nor end is called exited, and a stop ends it all the same.
func TestStopOfFailedStart(t *testing.T) {
	f := newFixture(t)
	info, err := f.monitor.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pod := f.runPod(f.podConfig())
	id, err := f.CreateContainer(t.Context(), pod, script("a", "sleep 1000"), f.image)
	if err != nil {
		t.Fatal(err)
	}
	c, err := f.ledger.Container(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(info.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	f.ledger.UpdateContainer(c, func(st *ContainerStatus) { // as startFailed has it when crimonitor does not answer
		st.Phase, st.FinishedAt, st.ExitCode, st.Reason = ContainerExited, ledger.Now(), exitStartError, ReasonStartError
	})
	dir := kill.Dir(f.status(id).CgroupPath)
	if kill.Holders(dir) == "" {
		t.Error("nothing waits to be started")
	}
	err = f.StopContainer(t.Context(), id, time.Second)
	if h := kill.Holders(dir); err != nil || h != "" {
		t.Errorf("%v; these live: %s", err, h)
	}
	if err := unix.Kill(info.PID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
}
