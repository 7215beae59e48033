package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pinged sends a line and gets it back.
func pinged(rw io.ReadWriter, line string) error {
	got := make(chan error, 1)
	go func() {
		_, err := fmt.Fprintln(rw, line)
		buf := make([]byte, len(line)+1)
		if err == nil {
			_, err = io.ReadFull(rw, buf)
		}
		if err == nil && string(buf) != line+"\n" {
			err = fmt.Errorf("it answers %q to %q", buf, line)
		}
		got <- err
	}()
	select {
	case err := <-got:
		return err
	case <-time.After(15 * time.Second):
		return fmt.Errorf("no answer to %q", line)
	}
}

// dialled is a connection through a forwarded port.
func dialled(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// conversation is a client of a container's streams.
type conversation struct {
	io.Reader
	io.Writer
}

// streamServers are the PIDs of the node's stream servers.
func (n *node) streamServers() (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(data), "\x00stream-server\x00") && strings.Contains(string(data), n.dir) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestSessionsOutliveDaemon: attach and port-forward go on while the daemon is killed, stopped as by its administrator, and started with
// another configuration, as after an upgrade; then a new server takes the new sessions, and the old one ends with its last.
func TestSessionsOutliveDaemon(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("cat", "exec cat", func(c *runtimeapi.ContainerConfig) { c.Stdin = true }))
	n.echoInPod(podID, 7777)
	var sessions = map[string]io.ReadWriter{}
	for _, transport := range transportNames {
		cmd := n.crictlCommand("attach", "--transport", transport, "-i", id)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if transport == "spdy" { // two who attach would each see what the other is answered
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			time.Sleep(2 * time.Second) // until it is attached; nothing tells of it
			sessions["attach"] = conversation{out, in}
		}
		address, end := n.forwarded(podID, transport, 7777)
		defer end()
		sessions["port-forward by "+transport] = dialled(t, address)
	}
	all := func(when string) {
		t.Helper()
		for name, s := range sessions {
			if err := pinged(s, name+" "+when); err != nil {
				t.Fatalf("%s, %s: %v\n%s", name, when, err, n.log())
			}
		}
	}
	all("at first")
	for i := range 2 {
		n.kill()
		all(fmt.Sprint("killed ", i))
		n.start()
		all(fmt.Sprint("after kill ", i))
	}
	n.stop()
	all("stopped")
	n.start()
	all("started again")
	old := n.streamServers()
	n.stop()
	n.configure("[streaming]\nidle_timeout = \"3h\"")
	n.start()
	if out, err := n.crictlCommand("exec", id, "echo", "new").CombinedOutput(); err != nil || string(out) != "new\n" {
		t.Errorf("a new session: %v: %s", err, out)
	}
	all("beside a new server")
	if now := n.streamServers(); len(old) != 1 || len(now) != 2 {
		t.Errorf("stream servers: %v before, %v now", old, now)
	}
}

var transportNames = []string{"spdy", "websocket"}

// TestPortForwardPlaces: to the loopback of IPv6, and into the network of the host.
func TestPortForwardPlaces(t *testing.T) {
	n := newNode(t)
	podID := n.runPod(n.podConfig())
	n.listenInPod(podID, "[::1]:7779", func(c net.Conn) { _, _ = io.Copy(c, c) })
	host := n.runPod(n.podConfig(func(p *runtimeapi.PodSandboxConfig) {
		p.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	for _, transport := range transportNames {
		for name, to := range map[string]struct {
			pod  string
			port int
		}{"IPv6": {podID, 7779}, "host": {host, l.Addr().(*net.TCPAddr).Port}} {
			address, end := n.forwarded(to.pod, transport, int32(to.port))
			if err := pinged(dialled(t, address), "hello"); err != nil {
				t.Errorf("%s by %s: %v", name, transport, err)
			}
			end()
		}
	}
}

// TestStreamsApart: stdout and stderr are two streams of a client, and a command that a signal ends has a shell's exit code.
func TestStreamsApart(t *testing.T) {
	n := newNode(t)
	_, id := n.sleeper()
	for _, transport := range transportNames {
		for script, want := range map[string]string{"kill -TERM $$": "exit code 143", "kill -KILL $$": "exit code 137", "exit 3": "exit code 3"} {
			cmd := n.crictlCommand("exec", "--transport", transport, id, "sh", "-c", "echo out; echo err >&2; "+script)
			var out, errOut bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errOut
			err := cmd.Run()
			if err == nil || out.String() != "out\n" || !strings.HasPrefix(errOut.String(), "err\n") || !strings.Contains(errOut.String(), want) {
				t.Errorf("%s, %s: %v, stdout %q, stderr %q", transport, script, err, &out, &errOut)
			}
		}
	}
}

// TestJobControl: a job is stopped, goes on behind the shell, and is interrupted before it; and the tail of a log.
func TestJobControl(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("shell", "seq 1 100; sleep 1000 & wait"))
	tm := openTerminal(t, n.crictlCommand("exec", "-it", id, "sh"))
	tm.sees("# ")
	tm.typed("sleep 500\n")
	tm.sees("sleep 500")
	n.awaitExec(id, "grep -q ^sleep.500 /proc/[0-9]*/cmdline")
	tm.typed("\x1a")
	tm.sees("Stopped")
	tm.typed("bg\n")
	tm.sees("sleep 500")
	tm.typed("jobs; echo li''sted\n")
	tm.sees("Running +sleep 500(.|\n)*listed")
	tm.typed("fg\n")
	tm.sees("sleep 500")
	time.Sleep(200 * time.Millisecond) // it is before the shell
	tm.typed("\x03")
	tm.typed("echo $((1000+$?))\n")
	tm.sees("1130") // 128 + SIGINT
	tm.typed("exit\n")
	if err := tm.cmd.Wait(); err == nil {
		t.Log("the shell ended with 0") // busybox keeps the code of the last command
	}
	eventually(t, "the log is whole", func() bool { return len(logLines(t, n.status(id).LogPath)) == 100 })
	if out := n.crictl("logs", "--tail", "3", id); out != "98\n99\n100" {
		t.Errorf("logs --tail 3: %q", out)
	}
	follow := n.crictlCommand("logs", "-f", "--tail", "1", id)
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = follow.Process.Kill(); _ = follow.Wait() }()
	first := make([]byte, 4)
	if _, err := io.ReadFull(out, first); err != nil || string(first) != "100\n" {
		t.Errorf("logs -f --tail 1: %q, %v", first, err)
	}
	n.exec(id, "echo more > /proc/1/fd/1")
	more := make([]byte, 5)
	if _, err := io.ReadFull(out, more); err != nil || string(more) != "more\n" {
		t.Errorf("logs -f: %q, %v", more, err)
	}
}

// TestTmux: somebody works in a container in a window of tmux, while the daemon is killed and started three times.
func TestTmux(t *testing.T) {
	n := newNode(t)
	_, id := n.sleeper()
	tmux := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("tmux", append([]string{"-S", filepath.Join(n.dir, "tmux"), "-f", os.DevNull}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("tmux %s: %v: %s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	command := n.crictlCommand("exec", "-it", id, "sh")
	tmux(append([]string{"-u", "new-session", "-d", "-x", "90", "-y", "30"}, command.Args...)...)
	defer tmux("kill-server")
	sees := func(want string) {
		t.Helper()
		var screen string
		for deadline := time.Now().Add(20 * time.Second); !strings.Contains(screen, want); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no %q on the screen:\n%s", want, screen)
			}
			screen = tmux("capture-pane", "-p")
		}
	}
	typed := func(text string) { t.Helper(); tmux("send-keys", "-l", text); tmux("send-keys", "Enter") }
	sees("\n/ #")
	typed("x=state; stty size; cd /tmp")
	sees("30 90")
	sees("/tmp #")
	for i := range 3 {
		n.kill()
		typed(fmt.Sprintf("echo $x-%d-\u00e9\u4e16", i))
		sees(fmt.Sprintf("\nstate-%d-\u00e9\u4e16\n", i))
		n.start()
		typed(fmt.Sprintf("echo $x+%d; pwd", i))
		sees(fmt.Sprintf("\nstate+%d\n/tmp\n/tmp #", i))
	}
	tmux("resize-window", "-x", "100", "-y", "40")
	typed("while [ \"$(stty size)\" != \"40 100\" ]; do sleep 0.1; done; echo re''sized")
	sees("\nresized\n")
	typed("sleep 1000")
	sees("sleep 1000")
	n.awaitExec(id, "[ $(grep -l ^sleep.1000 /proc/[0-9]*/cmdline | wc -l) = 2 ]")
	tmux("send-keys", "C-c")
	typed("echo $((1000+$?))")
	sees("\n1130\n")
}

// TestLogLimit: the limits of the configuration bound what goes to the log, and what was left out is counted and told of.
func TestLogLimit(t *testing.T) {
	n := newStoppedNode(t)
	n.configure("[runtime]\nlog_rate = \"64KiB\"\nlog_burst = \"256KiB\"")
	n.serve()
	pod := n.podConfig()
	podID := n.runPod(pod)
	const lines, length = 20000, 100
	id := n.run(podID, pod, shell("talker", fmt.Sprintf("yes %s | head -n %d; sleep 1; echo end; sleep 1000 & wait", strings.Repeat("x", length-1), lines)))
	eventually(t, "it has said all", func() bool {
		logged := logLines(t, n.status(id).LogPath)
		return len(logged) > 0 && logged[len(logged)-1] == "end"
	})
	data, err := os.ReadFile(n.status(id).LogPath)
	if err != nil {
		t.Fatal(err)
	}
	// What is counted is the content of lines, without their ends.
	const said = lines * (length - 1)
	kept, told := -len("end"), 0
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4) // time, stream, tag, text
		var k int
		if parts[1] == "stderr" {
			if _, err := fmt.Sscanf(parts[3], "criserver: %d bytes of output were dropped", &k); err != nil {
				t.Errorf("%q: %v", line, err)
			}
			told += k
			continue
		}
		kept += len(parts[3])
	}
	if kept < 255<<10 || kept > 256<<10+10*64<<10 {
		t.Errorf("%d bytes were kept of %d", kept, said)
	}
	if told == 0 || kept+told > said { // what came last is told of before the next line
		t.Errorf("%d bytes kept, %d told of as dropped, %d said", kept, told, said)
	}
	eventually(t, "the status tells of it", func() bool {
		resp, err := n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		info := fmt.Sprint(resp.Info)
		return strings.Contains(info, fmt.Sprintf(`"logBytesDropped":%d`, said-kept)) && strings.Contains(info, `"logBytesLost":0`)
	})
}

// TestExpiredToken: a URL is good for a minute and no longer, and the log tells of who comes too late.
func TestExpiredToken(t *testing.T) {
	n := newNode(t)
	_, id := n.sleeper()
	resp, err := n.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"touch", "/late"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(61 * time.Second)
	e, err := executor("spdy", resp.Url)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard}); err == nil {
		t.Error("an expired token is taken")
	}
	answer, err := http.Get(resp.Url)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusNotFound {
		t.Errorf("answer: %s", answer.Status)
	}
	if _, code := n.exec(id, "test -e /late"); code == 0 {
		t.Error("the command was run")
	}
	token := resp.Url[strings.LastIndexByte(resp.Url, '/')+1:]
	log, err := os.ReadFile(filepath.Join(n.dir, "state/streams.log"))
	if err != nil || strings.Count(string(log), "its token is unknown, used, or too old") != 2 || strings.Contains(string(log), token) {
		t.Errorf("%v: the log of the stream server: %s", err, log)
	}
}

// TestLogOnFullDisk: output that the disk has no room for is counted, told of in the status, and does not hold up the container.
func TestLogOnFullDisk(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	if err := os.MkdirAll(pod.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", pod.LogDirectory, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(pod.LogDirectory, unix.MNT_DETACH) })
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("talker", "yes 123456789 | head -n 100000; touch /said; sleep 1000 & wait"))
	n.awaitExec(id, "test -e /said")
	kept := 0
	for _, line := range logLines(t, n.status(id).LogPath) {
		kept += len(line)
	}
	if kept == 0 || kept > 256<<10 {
		t.Errorf("%d bytes are in the log", kept)
	}
	eventually(t, "the status tells of it", func() bool {
		resp, err := n.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		var info struct{ LogBytesLost, LogBytesDropped int }
		if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil {
			t.Fatal(err)
		}
		return info.LogBytesLost > 700000 && info.LogBytesLost <= 1000000 && info.LogBytesDropped == 0
	})
}
