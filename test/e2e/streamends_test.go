package e2e

import (
	"bytes"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestStopEndsSessions: who works in a container that is stopped is told so, in a PID namespace of its own and in the pod's and the host's.
func TestStopEndsSessions(t *testing.T) {
	n := newNode(t)
	for name, mode := range map[string]runtimeapi.NamespaceMode{
		"container": runtimeapi.NamespaceMode_CONTAINER, "pod": runtimeapi.NamespaceMode_POD, "node": runtimeapi.NamespaceMode_NODE,
	} {
		n.sub(name, func(t *testing.T) {
			options := &runtimeapi.NamespaceOption{Pid: mode}
			pod := n.podConfig(func(p *runtimeapi.PodSandboxConfig) { p.Linux.SecurityContext.NamespaceOptions = options })
			podID := n.runPod(pod)
			id := n.run(podID, pod, shell("shell", "sleep 1000 & wait", func(c *runtimeapi.ContainerConfig) {
				c.Linux.SecurityContext.NamespaceOptions = options
			}))
			cmd := n.crictlCommand("exec", id, "sh", "-c", "touch /begun; sleep 1000")
			var said bytes.Buffer
			cmd.Stdout, cmd.Stderr = &said, &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			n.awaitExec(id, "test -e /begun")
			if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 0}); err != nil {
				t.Error(err)
			}
			if err := cmd.Wait(); err == nil || !strings.Contains(said.String(), id+" has stopped, and the command with it") {
				t.Errorf("the client is told: %v: %s", err, &said)
			}
		})
	}
}

// TestCommandsOutliveClients: with a negative grace a command goes on when its client has gone, and may print.
func TestCommandsOutliveClients(t *testing.T) {
	n := newNode(t, "[streaming]\nhang_up_grace = \"-1s\"")
	_, id := n.sleeper()
	for name, args := range map[string][]string{"pipes": {"exec"}, "terminal": {"exec", "-it"}} {
		n.exec(id, "rm -f /begun /gone /done")
		script := "echo begun; touch /begun; while [ ! -e /gone ]; do sleep 0.05; done; seq 1 100000 && touch /done"
		tm := openTerminal(t, n.crictlCommand(append(args, id, "sh", "-c", script)...))
		tm.sees("begun")
		_ = tm.cmd.Process.Kill()
		_ = tm.cmd.Wait()
		time.Sleep(500 * time.Millisecond) // the stream server notices
		n.exec(id, "touch /gone")
		n.awaitExec(id, "test -e /done")
		t.Logf("%s: done", name)
	}
}
