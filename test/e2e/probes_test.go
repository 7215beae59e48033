package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// probedPods is how many pods a kubelet allows, by default.
const probedPods = 110

// TestExecProbes has each of a node's pods probed by a command once a second, for as long as CRISERVER_PROBES says ("make probes"):
// what that costs, and that it makes nothing grow.
func TestExecProbes(t *testing.T) {
	span, err := time.ParseDuration(os.Getenv("CRISERVER_PROBES"))
	if err != nil {
		t.Skip(`"make probes" runs this: it takes minutes`)
	}
	n := newNode(t)
	var ids []string
	for range probedPods {
		_, id := n.sleeper()
		ids = append(ids, id)
	}
	daemon, monitor := n.cmd.Process.Pid, n.monitorPID()
	n.probe(ids, 10*time.Second) // until heaps have their size
	before, cpu, start := n.load(daemon, monitor), [2]cpuTime{cpuOf(t, daemon), cpuOf(t, monitor)}, time.Now()
	late := n.probe(ids, span)
	took := time.Since(start).Seconds()
	after := n.load(daemon, monitor)
	d, m := cpuOf(t, daemon).less(cpu[0]), cpuOf(t, monitor).less(cpu[1])
	t.Logf("%d probes a second for %.0f s, %d of them more than a second late", probedPods, took, late)
	t.Logf("criserver %.1f %% of a core, crimonitor %.1f %%, the processes that it starts for commands until they are those %.1f %%",
		100*d.own/took, 100*m.own/took, 100*m.children/took)
	t.Logf("before %v", before)
	t.Logf("after  %v", after)
	for name, k := range after {
		slack := before[name]/5 + 3
		if k > before[name]+slack {
			t.Errorf("%s grew from %d to %d", name, before[name], k)
		}
	}
}

// probe runs a command in each container once a second, and counts those that were not done within a second.
func (n *node) probe(ids []string, span time.Duration) (late int) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for i, id := range ids {
		all.Go(func() {
			time.Sleep(time.Duration(i) * time.Second / time.Duration(len(ids)))
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for end := time.Now().Add(span); time.Now().Before(end); <-tick.C {
				start := time.Now()
				resp, err := n.ExecSync(n.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 10})
				if err != nil || resp.ExitCode != 0 {
					n.t.Errorf("probe: %v, %v", resp, err)
					return
				}
				if time.Since(start) > time.Second {
					mu.Lock()
					late++
					mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	return late
}

// load is what the daemon and crimonitor hold: descriptors, memory in KiB, and all processes of the node.
func (n *node) load(pids ...int) map[string]int {
	n.t.Helper()
	out := map[string]int{}
	for i, name := range []string{"criserver", "crimonitor"} {
		dir := filepath.Join("/proc", strconv.Itoa(pids[i]))
		fds, _ := os.ReadDir(filepath.Join(dir, "fd"))
		out[name+" descriptors"] = len(fds)
		status, err := os.ReadFile(filepath.Join(dir, "status"))
		if err != nil {
			n.t.Fatal(err)
		}
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); f[0] == "VmRSS:" {
				out[name+" KiB"], _ = strconv.Atoi(f[1])
			}
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	out["processes of the machine"] = len(slices.DeleteFunc(processes, func(p string) bool {
		cmdline, err := os.ReadFile(filepath.Join(p, "cmdline"))
		return err != nil || len(cmdline) == 0
	}))
	return out
}

// cpuTime is in seconds.
type cpuTime struct{ own, children float64 }

func (c cpuTime) less(other cpuTime) cpuTime {
	return cpuTime{c.own - other.own, c.children - other.children}
}

// cpuOf is the CPU time of a process and of its children that have ended (proc_pid_stat(5), whose ticks are hundredths of a second).
func cpuOf(t *testing.T, pid int) cpuTime {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(data)[strings.LastIndexByte(string(data), ')')+2:])
	ticks := func(from int) float64 {
		user, _ := strconv.ParseFloat(f[from], 64)
		system, _ := strconv.ParseFloat(f[from+1], 64)
		return (user + system) / 100
	}
	return cpuTime{own: ticks(11), children: ticks(13)}
}
