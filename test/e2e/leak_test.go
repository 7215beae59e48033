package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/record"
)

// machineState lists what a runtime may leave on a machine beside its own directories.
func machineState() map[string][]string {
	return map[string][]string{
		"interface":   lines(exec.Command("ip", "-o", "link"), func(s string) string { return strings.Fields(s)[1] }),
		"nft table":   lines(exec.Command("nft", "list", "tables"), nil),
		"mount":       mountPoints(),
		"cgroup":      cgroups(),
		"named netns": lines(exec.Command("ip", "netns"), nil),
	}
}

func lines(cmd *exec.Cmd, pick func(string) string) []string {
	out, err := cmd.Output()
	if err != nil {
		return []string{err.Error()}
	}
	var got []string
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if pick != nil {
			line = pick(line)
		}
		got = append(got, line)
	}
	slices.Sort(got)
	return got
}

func mountPoints() []string {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	var got []string
	for line := range strings.Lines(string(data)) {
		got = append(got, strings.Fields(line)[4])
	}
	slices.Sort(got)
	return got
}

func cgroups() []string {
	var got []string
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, _ := filepath.Glob(root + cgroupRoot)
		got = append(got, dirs...)
		deeper, _ := filepath.Glob(root + cgroupRoot + "/*")
		for _, d := range deeper {
			if info, err := os.Stat(d); err == nil && info.IsDir() {
				got = append(got, d)
			}
		}
	}
	slices.Sort(got)
	return slices.Compact(got)
}

// A thread of crimonitor enters the mount namespace of each container that it makes, and must not stay there: what is mounted in
// it, such as a volume, would be busy for as long as crimonitor runs.
func TestMonitorHoldsNoMounts(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	n.pull(busyboxImage)
	var starts sync.WaitGroup
	for i := range 40 { // the Go runtime chooses the thread; the more at once, the more are tried
		starts.Go(func() {
			request := &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: shell(fmt.Sprint("c", i), "true"), SandboxConfig: pod}
			c, err := n.CreateContainer(t.Context(), request)
			if err == nil {
				_, err = n.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	starts.Wait()
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	threads := fmt.Sprintf("/proc/%d/task/*/ns/mnt", n.monitorPID())
	eventually(t, "all threads of crimonitor are in its own mount namespace", func() bool {
		links, _ := filepath.Glob(threads)
		return len(links) > 0 && !slices.ContainsFunc(links, func(link string) bool {
			namespace, err := os.Readlink(link)
			return err == nil && namespace != own // a thread may have ended
		})
	})
}

// checkNothingLeft fails the test for each thing that was not there before: after all pods are removed and the daemon has
// stopped, nothing of a node may be left but its files.
func checkNothingLeft(t *testing.T, n *node, before map[string][]string) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left = leftovers(n, before)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	t.Errorf("left behind:\n%s\nlog:\n%s", strings.Join(left, "\n"), n.log())
}

func leftovers(n *node, before map[string][]string) []string {
	var left []string
	for kind, now := range machineState() {
		for _, thing := range now {
			if kind == "mount" && !strings.HasPrefix(thing, n.dir) {
				continue // of another program that runs at the same time
			}
			if !slices.Contains(before[kind], thing) {
				left = append(left, kind+" "+thing)
			}
		}
	}
	for _, pid := range processes(n.dir) {
		left = append(left, "process "+pid)
	}
	for _, pattern := range []string{"state/pods/*", "state/containers/*", "state/monitor/[0-9a-f]*", "state/monitor/oci/*",
		"state/runtimes/*/*", "root/overlay/s/*"} {
		found, _ := filepath.Glob(filepath.Join(n.dir, pattern))
		left = append(left, found...)
	}
	left = append(left, records(filepath.Join(n.dir, "root", "pods.db"))...)
	_ = filepath.WalkDir(filepath.Join(n.dir, "root", "cni"), func(path string, d os.DirEntry, err error) error {
		subnet := filepath.Base(filepath.Dir(path)) == "subnets" // which ones there are is no pod's
		if err == nil && !d.IsDir() && strings.Contains(path, "10.213.") && !subnet {
			left = append(left, "address "+path)
		}
		return nil
	})
	return left
}

// processes are those that were started with the node's directory, and whatever runs in its cgroups.
func processes(dir string) []string {
	var got []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		data, _ := os.ReadFile(f)
		if strings.Contains(string(data), dir) && !strings.Contains(string(data), "e2e.test") {
			got = append(got, filepath.Base(filepath.Dir(f))+" "+strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return got
}

// records are those of pods and containers.
func records(path string) []string {
	ctx := context.Background()
	db, err := record.Open(ctx, path, record.Options{})
	if err != nil {
		return []string{err.Error()}
	}
	defer db.Close()
	var got []string
	for _, name := range []string{"pods", "containers"} {
		table, err := record.NewTable[json.RawMessage](ctx, db, name)
		if err != nil {
			return append(got, err.Error())
		}
		all, err := table.Load(ctx)
		if err != nil {
			got = append(got, err.Error())
		}
		for key := range all {
			got = append(got, "record "+name+" "+key)
		}
	}
	return got
}
