package server

import (
	"os"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/monitor"
)

// A command that ends with its container says so, in whichever order the two are killed; one that is killed alone does not.
func testContainerEnds(t *testing.T, f *fixture) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	execute := func(id string, args ...string) monitor.ExecResponse {
		end, err := f.ExecStreams(t.Context(), monitor.ExecRequest{ID: id, Grace: time.Second,
			Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}}}, null, null, null)
		if err != nil {
			t.Error(err)
		}
		return end
	}
	kill := func(id string) error {
		return f.Signal(t.Context(), monitor.SignalRequest{ID: id, Signal: int(unix.SIGKILL), All: true})
	}
	ways := map[string]func(id string) error{
		"killed": kill,
		"exits": func(id string) error {
			return f.Signal(t.Context(), monitor.SignalRequest{ID: id, Signal: int(unix.SIGTERM)})
		},
	}
	for where, change := range pidNamespaces {
		for name, end := range ways {
			id := "a-" + name + "-" + where[:3]
			f.runIn(id, "trap 'exit 3' TERM; echo >/tmp/ready; while :; do sleep 0.05; done", change)
			await(t, "the trap is set", func() bool { _, err := os.Stat(f.dir + "/" + id + "/rootfs/tmp/ready"); return err == nil })
			if got := execute(id, "/bin/sh", "-c", "kill -KILL $$"); got != (monitor.ExecResponse{ExitCode: 137}) {
				t.Errorf("%s PID namespace, a command that kills itself: %+v", where, got)
			}
			answer := make(chan monitor.ExecResponse, 1)
			go func() { answer <- execute(id, "/bin/sleep", "77") }()
			await(t, "the command runs", func() bool { return f.runs(id, "/bin/sleep 77") })
			if err := end(id); err != nil {
				t.Fatal(err)
			}
			if got := <-answer; got != (monitor.ExecResponse{ExitCode: 137, ContainerEnded: true}) {
				t.Errorf("%s PID namespace, the container %s: %+v", where, name, got)
			}
		}
	}
}
