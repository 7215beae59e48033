package server

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup/kill"
	"criserver/pkg/sandbox/monitor"
	"criserver/test/hungfs"
)

// A disk that hangs holds the log, and neither the news of other containers nor the end of this one.
func TestLogThatHangs(t *testing.T) {
	f := newFixture(t, nil)
	hung := hungfs.Mount(t)
	bundle := f.bundle("a", "i=0; while :; do i=$((i+1)); echo line $i; done")
	log := filepath.Join(hung.Dir, "a.log")
	if _, err := f.Create(t.Context(), monitor.CreateRequest{ID: "a", Bundle: bundle, LogPath: log}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Start(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if info, err := os.Stat(log); err == nil && info.Size() > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Error("nothing is logged")
			break
		}
	}
	hung.Hang()
	time.Sleep(200 * time.Millisecond) // until the pipe is full: nothing tells
	f.run("b", "exit 3")
	if st := f.await("b"); st.ExitCode != 3 {
		t.Errorf("another container: %+v", st)
	}
	start := time.Now()
	if err := f.Signal(t.Context(), monitor.SignalRequest{ID: "a", Signal: int(unix.SIGKILL), All: true}); err != nil {
		t.Fatal(err)
	}
	if st := f.await("a"); st.ExitCode != 137 {
		t.Errorf("state = %+v", st)
	}
	if err := f.Delete(t.Context(), "a", bundle); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("the end took %s", d)
	}
}

// A mount whose source stops answering holds the init process: the call ends with its client, and what is left goes when the
// source answers.
func TestCreateThatHangs(t *testing.T) {
	f := newFixture(t, nil)
	hung := hungfs.Mount(t)
	source := filepath.Join(hung.Dir, "volume")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	bundle := f.bundle("a", "exit 0", func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Source: source, Type: "bind", Options: []string{"bind"}})
	})
	hung.Hang()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := f.Create(ctx, monitor.CreateRequest{ID: "a", Bundle: bundle}); err == nil {
		t.Error("a container was made of a mount that does not answer")
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("the call took %s", d)
	}
	f.run("b", "exit 3")
	if st := f.await("b"); st.ExitCode != 3 {
		t.Errorf("another container: %+v", st)
	}
	hung.Answer()
	if err := f.Delete(t.Context(), "a", bundle); err != nil {
		t.Error(err)
	}
	if h := kill.Holders(kill.Dir("/" + cgroupRoot + "/a")); h != "" {
		t.Errorf("left: %s", h)
	}
	if _, err := f.Create(t.Context(), monitor.CreateRequest{ID: "a", Bundle: bundle}); err != nil {
		t.Errorf("after the source answers again: %v", err)
	}
	if err := f.Delete(t.Context(), "a", bundle); err != nil {
		t.Error(err)
	}
}

// In the host's PID namespace nobody ends the forks of a process but who ends them all.
func TestForksForEver(t *testing.T) {
	f := newFixture(t, nil)
	f.run("a", `export S='sh -c "$S" & exit'; for i in 1 2 3; do sh -c "$S" & done; exit 0`, func(s *specs.Spec) {
		s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	})
	if st := f.await("a"); st.ExitCode != 0 {
		t.Errorf("state = %+v", st)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		h := kill.Holders(kill.Dir("/" + cgroupRoot + "/a"))
		if !strings.Contains(h, "process") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("left: %s", h)
		}
	}
}
