package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestCostOfAPod counts by strace what a pod on the built-in network and its container cost: the programs executed, and in
// RunPodSandbox the record writes and the syncs.
func TestCostOfAPod(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("strace is needed (make deps)")
	}
	n := newNode(t)
	n.pull(busyboxImage)
	n.runPod(n.podConfig()) // the bridge and the tables are made with the first pod
	var podID string
	pod := n.podConfig()
	run := n.trace("criserver", n.cmd.Process.Pid, func() { podID = n.runPod(pod) })
	if got := calls(run, "execve"); len(got) > 0 {
		t.Errorf("RunPodSandbox executes programs: %v", got)
	}
	if got := calls(run, "fsync|fdatasync|syncfs|sync_file_range|msync"); len(got) > 0 {
		t.Errorf("RunPodSandbox syncs: %v", got)
	}
	// A commit ends with the one frame header (24 bytes) that tells the size of the database; a small record is one frame.
	if got := calls(run, `pwrite64\(\d+<[^>]*pods\.db-wal>, .*, 24, `); len(got) == 0 || len(got) > 2 {
		t.Errorf("RunPodSandbox makes %d record writes, want 1 or 2:\n%s", len(got), strings.Join(got, "\n"))
	}
	var id string
	start := n.trace("crimonitor", n.monitorPID(), func() {
		id = n.run(podID, pod, shell("c", "echo done"))
		n.awaitExit(id)
	})
	if got := calls(start, "execve"); len(got) != 2 {
		t.Errorf("a container costs %d program executions, want 2, its init and the workload:\n%s", len(got), strings.Join(got, "\n"))
	}
	if got := logLines(t, n.status(id).LogPath); len(got) != 1 || got[0] != "done" {
		t.Errorf("log = %v", got)
	}
	_, _ = n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: podID})
}

func (n *node) monitorPID() int {
	n.t.Helper()
	for _, p := range processes(n.dir) {
		if strings.Contains(p, "crimonitor -socket") {
			pid, err := strconv.Atoi(strings.Fields(p)[0])
			if err != nil {
				n.t.Fatal(err)
			}
			return pid
		}
	}
	n.t.Fatal("no crimonitor")
	return 0
}

// trace returns the system calls that matter of a process and its descendants while fn runs.
func (n *node) trace(name string, pid int, fn func()) []string {
	n.t.Helper()
	out := filepath.Join(n.dir, name+".strace")
	cmd := exec.Command("strace", "-f", "-y", "-e", "trace=execve,fsync,fdatasync,syncfs,sync_file_range,msync,pwrite64",
		"-o", out, "-p", fmt.Sprint(pid))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	attached := make([]byte, 4096)
	if k, err := stderr.Read(attached); err != nil || !strings.Contains(string(attached[:k]), "attached") {
		n.t.Fatalf("strace: %s %v", attached[:k], err)
	}
	time.Sleep(200 * time.Millisecond) // it attaches to the threads one after the other
	fn()
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait()
	data, err := os.ReadFile(out)
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

// calls are the traced calls that succeeded and match.
func calls(trace []string, pattern string) []string {
	re := regexp.MustCompile(`^\d+ +(?:` + pattern + `)`)
	var got []string
	for _, line := range trace {
		if re.MatchString(line) && !strings.Contains(line, " = -1 ") {
			got = append(got, line)
		}
	}
	return got
}
