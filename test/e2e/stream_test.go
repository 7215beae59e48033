package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// crictlCommand is crictl on the node.
func (n *node) crictlCommand(args ...string) *exec.Cmd {
	base := []string{"--config", os.DevNull, "--runtime-endpoint", "unix://" + n.dir + "/criserver.sock", "--timeout", "20s"}
	return exec.Command(cache("bin/crictl"), append(base, args...)...)
}

// sleeper is a pod with a container that a person can work in.
func (n *node) sleeper(change ...containerChange) (podID, id string) {
	n.t.Helper()
	pod := n.podConfig()
	podID = n.runPod(pod)
	n.pull(busyboxImage)
	c := shell("shell", "sleep 1000 & wait", change...)
	return podID, n.run(podID, pod, c)
}

// terminal is a program on a terminal, with a person before it.
type terminal struct {
	t   *testing.T
	pty *os.File
	cmd *exec.Cmd

	mu  sync.Mutex
	buf bytes.Buffer
}

func openTerminal(t *testing.T, cmd *exec.Cmd) *terminal {
	t.Helper()
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		t.Fatal(err)
	}
	tm := &terminal{t: t, pty: f, cmd: cmd}
	go func() {
		buf := make([]byte, 4096)
		for {
			k, err := f.Read(buf)
			tm.mu.Lock()
			tm.buf.Write(buf[:k])
			tm.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = f.Close() })
	return tm
}

func (tm *terminal) typed(text string) {
	tm.t.Helper()
	if _, err := tm.pty.WriteString(text); err != nil {
		tm.t.Fatal(err)
	}
}

// sees waits for something on the screen, and takes away all up to it.
func (tm *terminal) sees(pattern string) string {
	tm.t.Helper()
	re := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		tm.mu.Lock()
		if at := re.FindIndex(tm.buf.Bytes()); at != nil {
			text := string(tm.buf.Next(at[1]))
			tm.mu.Unlock()
			return text
		}
		text := tm.buf.String()
		tm.mu.Unlock()
		if time.Now().After(deadline) {
			tm.t.Fatalf("no %q on the screen:\n%s", pattern, text)
		}
	}
}

// TestTerminals has a person before terminals in containers of each runtime.
func TestTerminals(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs), "[streaming]\nhang_up_grace = \"20s\"")
	for _, handler := range append([]string{"builtin"}, slices.Sorted(maps.Keys(programs))...) {
		pod := n.podConfig()
		podID := n.runPodOn(handler, pod)
		id := n.run(podID, pod, shell("shell", "sleep 1000 & wait"))
		t.Run(handler+"/exec", func(t *testing.T) { terminalOutlivesDaemon(t, n, id) })
		t.Run(handler+"/exec without client", func(t *testing.T) { terminalHangsUp(t, n, id) })
		t.Run(handler+"/attach", func(t *testing.T) { attachTerminal(t, n, podID, pod) })
	}
}

// terminalOutlivesDaemon types into a shell while the daemon is killed and started three times.
func terminalOutlivesDaemon(t *testing.T, n *node, id string) {
	tm := openTerminal(t, n.crictlCommand("exec", "-it", id, "sh"))
	tm.sees("# ")
	tm.typed("stty size; x=state; tty\n")
	tm.sees("24 80")
	tm.sees("/dev/pts/")
	for i := range 3 {
		n.kill()
		tm.typed(fmt.Sprintf("echo $x-%d-\u00e9\n", i))
		tm.sees(fmt.Sprintf("state-%d-\u00e9", i))
		n.start()
	}
	if err := pty.Setsize(tm.pty, &pty.Winsize{Rows: 50, Cols: 132}); err != nil {
		t.Fatal(err)
	}
	tm.typed("while [ \"$(stty size)\" != \"50 132\" ]; do sleep 0.1; done; echo re''sized\n")
	tm.sees("resized")
	tm.typed("sleep 1000\n")
	tm.sees("sleep 1000")
	time.Sleep(200 * time.Millisecond) // the shell starts it
	tm.typed("\x03")
	tm.typed("echo $((1000+$?))\n")
	tm.sees("1130") // 128 + SIGINT
	tm.typed("exit 7\n")
	err := tm.cmd.Wait()
	if err == nil {
		t.Error("crictl does not tell of exit code 7")
	}
	tm.sees("exit code 7")
}

// terminalHangsUp kills the client of a command: the command is told by SIGHUP.
func terminalHangsUp(t *testing.T, n *node, id string) {
	tm := openTerminal(t, n.crictlCommand("exec", "-it", id, "sh", "-c", `trap "touch /hup; exit" HUP; echo ready; while :; do sleep 0.05; done`))
	tm.sees("ready")
	_ = tm.cmd.Process.Kill()
	_ = tm.cmd.Wait()
	n.awaitExec(id, "test -e /hup")
}

// TestExecStreams moves bytes through a command, and gets its exit code.
func TestExecStreams(t *testing.T) {
	n := newNode(t)
	_, id := n.sleeper()
	data := make([]byte, 64<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	for _, transport := range []string{"spdy", "websocket"} {
		cmd := n.crictlCommand("exec", "--transport", transport, "-i", id, "cat")
		cmd.Stdin = bytes.NewReader(data)
		hash := sha256.New()
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = hash, &stderr
		if err := cmd.Run(); err != nil || !bytes.Equal(hash.Sum(nil), sum(data)) {
			t.Errorf("%s: %v, or other bytes: %s", transport, err, &stderr)
		}
		out, err := n.crictlCommand("exec", "--transport", transport, id, "sh", "-c", "echo out; echo err >&2; exit 9").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "out\n") || !strings.Contains(string(out), "err\n") || !strings.Contains(string(out), "exit code 9") {
			t.Errorf("%s: %v: %s", transport, err, out)
		}
	}
}

func sum(data []byte) []byte { s := sha256.Sum256(data); return s[:] }

// TestExecLeavesNothing: a client that goes away takes its command with it, by SIGHUP and then by force; a stop of the container
// does not wait for a client that does not read.
func TestExecLeavesNothing(t *testing.T) {
	n := newNode(t, "[streaming]\nhang_up_grace = \"500ms\"")
	_, id := n.sleeper()
	for name, script := range map[string]string{
		"heeds":   `trap "touch /hup; exit" HUP; touch /ready; while :; do sleep 0.05; done`,
		"ignores": `trap "" HUP; touch /ready; while :; do sleep 0.05; done`,
	} {
		n.exec(id, "rm -f /ready /hup")
		cmd := n.crictlCommand("exec", id, "sh", "-c", script+" # "+name)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n.awaitExec(id, "test -e /ready")
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		n.awaitExec(id, "! grep -l '[#] "+name+"' /proc/[0-9]*/cmdline 2>/dev/null | grep -v /proc/$$/")
		if _, code := n.exec(id, "test -e /hup"); (code == 0) != (name == "heeds") {
			t.Errorf("%s: the SIGHUP's mark: %d", name, code)
		}
	}
	stuck := n.crictlCommand("exec", id, "sh", "-c", "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done")
	out, err := stuck.StdoutPipe() // which nobody reads
	if err != nil {
		t.Fatal(err)
	}
	if err := stuck.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stuck.Process.Kill(); _, _ = io.Copy(io.Discard, out); _ = stuck.Wait() }()
	time.Sleep(time.Second) // until all buffers are full
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 0}); err != nil || time.Since(start) > 8*time.Second {
		t.Errorf("stop took %s: %v", time.Since(start), err)
	}
}

// awaitExec waits until a script in the container succeeds.
func (n *node) awaitExec(id, script string) {
	n.t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		out, code := n.exec(id, script)
		if code == 0 {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("still not: %s (%s)", script, out)
		}
	}
}

// TestAttach: several clients at once, input that ends with the first, the last bytes, the log undisturbed.
func TestAttach(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	c := shell("shell", `read line; echo got $line; echo error >&2; while read line; do echo $line; done; seq 1 5000; echo last`, func(c *runtimeapi.ContainerConfig) {
		c.Stdin, c.StdinOnce, c.LogPath = true, true, "attach.log"
	})
	id := n.run(podID, pod, c)
	var watched bytes.Buffer
	watcher := n.crictlCommand("attach", id)
	watcher.Stdout, watcher.Stderr = &watched, &watched
	if err := watcher.Start(); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	cmd := n.crictlCommand("attach", "-i", id)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // until both are attached; nothing tells of it
	if _, err := io.WriteString(in, "hello\nworld\n"); err != nil {
		t.Fatal(err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("attach: %v: %s", err, &errOut)
	}
	if err := watcher.Wait(); err != nil {
		t.Errorf("second attach: %v: %s", err, &watched)
	}
	var want strings.Builder
	want.WriteString("got hello\nworld\n")
	for i := range 5000 {
		fmt.Fprintln(&want, i+1)
	}
	want.WriteString("last\n")
	if out.String() != want.String() || !strings.Contains(errOut.String(), "error\n") {
		t.Errorf("attach -i saw %d bytes of %d, and on stderr %q", out.Len(), want.Len(), &errOut)
	}
	if w := strings.Replace(watched.String(), "error\n", "", 1); w != want.String() {
		t.Errorf("attach saw %d bytes of %d", len(w), want.Len())
	}
	if st := n.awaitExit(id); st.ExitCode != 0 {
		t.Errorf("exit code %d", st.ExitCode)
	}
	log, err := os.ReadFile(filepath.Join(pod.LogDirectory, "attach.log"))
	if err != nil || strings.Count(string(log), " stdout F ") != 5003 || strings.Count(string(log), " stderr F error") != 1 {
		t.Errorf("log of %d bytes, %v", len(log), err)
	}
}

// attachTerminal is a container with a terminal of its own, which a person leaves and comes back to.
func attachTerminal(t *testing.T, n *node, podID string, pod *runtimeapi.PodSandboxConfig) {
	c := shell("terminal", "", func(c *runtimeapi.ContainerConfig) {
		c.Command, c.Tty, c.Stdin, c.LogPath = []string{"sh"}, true, true, "tty.log"
	})
	id := n.run(podID, pod, c)
	first := openTerminal(t, n.crictlCommand("attach", "-it", id))
	time.Sleep(time.Second)
	first.typed("x=kept; echo a-$x\n")
	first.sees("a-kept")
	_ = first.cmd.Process.Kill()
	second := openTerminal(t, n.crictlCommand("attach", "-it", id))
	time.Sleep(time.Second)
	second.typed("echo b-$x; stty size\n")
	second.sees("b-kept")
	second.sees("24 80")
	second.typed("exit 3\n")
	if st := n.awaitExit(id); st.ExitCode != 3 {
		t.Errorf("exit code %d", st.ExitCode)
	}
	if err := second.cmd.Wait(); err != nil {
		t.Errorf("attach: %v", err)
	}
	log, err := os.ReadFile(filepath.Join(pod.LogDirectory, "tty.log"))
	if err != nil || !strings.Contains(string(log), "b-kept") {
		t.Errorf("log: %q, %v", log, err)
	}
}

// TestPortForward: HTTP through forwarded ports, many connections on one session.
func TestPortForward(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("shell", `mkdir -p /www; head -c 3000000 /dev/urandom > /www/f; sha256sum < /www/f | cut -d' ' -f1 > /www/sum; exec httpd -f -p 127.0.0.1:8080 -h /www`))
	n.awaitExec(id, "grep -q ':1F90 ' /proc/net/tcp") // it listens
	for _, transport := range []string{"spdy", "websocket"} {
		cmd := n.crictlCommand("port-forward", "--transport", transport, podID, "0:8080")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		var text string
		ports := regexp.MustCompile(`127\.0\.0\.1:(\d+) -> 8080`)
		timer := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		for !ports.MatchString(text) {
			k, err := out.Read(buf)
			text += string(buf[:k])
			if err != nil {
				t.Fatalf("%s: %v: %s%s", transport, err, text, &stderr)
			}
		}
		m := ports.FindStringSubmatch(text)
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				body, err := fetched("http://127.0.0.1:" + m[1] + "/f")
				want, err2 := fetched("http://127.0.0.1:" + m[1] + "/sum")
				if got := fmt.Sprintf("%x", sum(body)); err != nil || err2 != nil || got != strings.TrimSpace(string(want)) {
					t.Errorf("%s: %d bytes, %v, %v", transport, len(body), err, err2)
				}
			})
		}
		all.Wait()
		timer.Stop()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

func fetched(url string) ([]byte, error) {
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// TestStreamEndpoint: a URL is good once; what is no request of a client is refused.
func TestStreamEndpoint(t *testing.T) {
	n := newNode(t, "[streaming.tls]\ngenerate = true")
	_, id := n.sleeper()
	resp, err := n.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(resp.Url, "https://127.0.0.1:") {
		t.Errorf("url %s", resp.Url)
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}} //nolint:gosec // it has no authority
	for i := range 2 {                                                                                                                 // no upgrade, then used
		answer, err := client.Get(resp.Url)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode == http.StatusOK || i == 1 && answer.StatusCode != http.StatusNotFound {
			t.Errorf("request %d: %s", i, answer.Status)
		}
	}
	for name, req := range map[string]*runtimeapi.ExecRequest{
		"no streams":           {ContainerId: id, Cmd: []string{"true"}},
		"terminal with stderr": {ContainerId: id, Cmd: []string{"true"}, Tty: true, Stderr: true},
		"no command":           {ContainerId: id, Stdout: true},
		"container not there":  {ContainerId: "nothing", Cmd: []string{"true"}, Stdout: true},
	} {
		if resp, err := n.Exec(t.Context(), req); err == nil {
			t.Errorf("%s: %v", name, resp)
		}
	}
}
