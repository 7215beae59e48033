package e2e

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"

	"criserver/pkg/cri/streaming"
)

// The clients here are kubectl's own, which the kubelet takes the place of.

// noise is n bytes that no compression makes fewer; each call has the same.
func noise(n int64) io.Reader {
	block, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		panic(err)
	}
	return io.LimitReader(cipher.StreamReader{S: cipher.NewCTR(block, make([]byte, 16)), R: zeros{}}, n)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func noiseSum(n int64) string {
	h := sha256.New()
	_, _ = io.Copy(h, noise(n))
	return hexSum(h)
}

func hexSum(h hash.Hash) string { return fmt.Sprintf("%x", h.Sum(nil)) }

func executor(transport, address string) (remotecommand.Executor, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if transport == "websocket" {
		return remotecommand.NewWebSocketExecutor(&restclient.Config{}, "GET", address)
	}
	return remotecommand.NewSPDYExecutor(&restclient.Config{}, "POST", u)
}

func portForwardDialer(transport, address string) (httpstream.Dialer, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if transport == "websocket" {
		return portforward.NewSPDYOverWebsocketDialerForStreaming(u, &restclient.Config{})
	}
	trip, upgrader, err := spdy.RoundTripperFor(&restclient.Config{})
	if err != nil {
		return nil, err
	}
	return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: trip}, "POST", u), nil
}

// echoInPod answers on a port of the pod's loopback with what it is sent, until that ends.
func (n *node) echoInPod(podID string, port int) {
	n.t.Helper()
	n.listenInPod(podID, "127.0.0.1:"+strconv.Itoa(port), func(c net.Conn) { _, _ = io.Copy(c, c) })
}

// listenInPod serves connections to an address in the pod's network.
func (n *node) listenInPod(podID, address string, serve func(net.Conn)) {
	n.t.Helper()
	listener := make(chan net.Listener)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		ns, err := os.Open(filepath.Join(n.dir, "state/pods", podID, "ns/net"))
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		var l net.Listener
		if err == nil {
			l, err = net.Listen("tcp", address)
		}
		if err != nil {
			n.t.Error(err)
		}
		listener <- l
	}()
	l := <-listener
	if l == nil {
		n.t.FailNow()
	}
	n.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
}

func (n *node) execURL(id string, command ...string) string {
	n.t.Helper()
	resp, err := n.Exec(n.t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: command, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.Url
}

// quietClients keeps the clients' own messages out of the output: of sessions that are cut off there are many.
func quietClients(t *testing.T) {
	t.Helper()
	state := klog.CaptureState()
	t.Cleanup(state.Restore)
	klog.SetLogger(logr.Discard())
}

const gibibyte = 1 << 30

// TestGibibyteThroughStreams: no byte is lost or changed on the way in and out, and half of a connection may end before the other.
func TestGibibyteThroughStreams(t *testing.T) {
	n := newNode(t)
	podID, id := n.sleeper()
	want := noiseSum(gibibyte)
	for _, transport := range []string{"spdy", "websocket"} {
		e, err := executor(transport, n.execURL(id, "cat"))
		if err != nil {
			t.Fatal(err)
		}
		got, start := sha256.New(), time.Now()
		err = e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: noise(gibibyte), Stdout: got, Stderr: io.Discard})
		if err != nil || hexSum(got) != want {
			t.Errorf("exec by %s: %v, or other bytes", transport, err)
		}
		t.Logf("exec by %s: %.0f MiB/s each way", transport, 1024/time.Since(start).Seconds())
	}
	n.echoInPod(podID, 7777)
	for _, transport := range []string{"spdy", "websocket"} {
		address, end := n.forwarded(podID, transport, 7777)
		start := time.Now()
		if got, err := echoed(address, gibibyte); err != nil || got != want {
			t.Errorf("port-forward by %s: %v, or other bytes", transport, err)
		}
		t.Logf("port-forward by %s: %.0f MiB/s each way", transport, 1024/time.Since(start).Seconds())
		end()
	}
}

// forwarded forwards a port of this machine to one of the pod's, until end.
func (n *node) forwarded(podID, transport string, port int32) (address string, end func()) {
	n.t.Helper()
	resp, err := n.PortForward(n.t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: podID, Port: []int32{port}})
	if err != nil {
		n.t.Fatal(err)
	}
	dialer, err := portForwardDialer(transport, resp.Url)
	if err != nil {
		n.t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		n.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		n.t.Fatal(err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		n.t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local), func() {
		close(stop)
		<-ended
	}
}

// echoed sends bytes, ends its half, and returns the sum of what comes back until the other half ends.
func echoed(address string, size int64) (string, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, noise(size))
		if err == nil {
			err = c.(*net.TCPConn).CloseWrite()
		}
		sent <- err
	}()
	h := sha256.New()
	if _, err := io.Copy(h, c); err != nil {
		return "", err
	}
	return hexSum(h), <-sent
}

const aborted = 1000

// TestAbortedSessions: of clients that go away in the middle nothing stays, neither in the stream server nor in crimonitor, and no
// process.
func TestAbortedSessions(t *testing.T) {
	quietClients(t)
	// Who goes before its streams are open is waited for that long.
	n := newNode(t, "[streaming]\nhang_up_grace = \"100ms\"\ncreation_timeout = \"1s\"")
	podID, id := n.sleeper(func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	n.echoInPod(podID, 7777)
	silent := make(chan struct{}) // until then it says nothing, and does not heed the end of its input
	n.listenInPod(podID, "127.0.0.1:7778", func(net.Conn) { <-silent })
	t.Cleanup(func() { close(silent) })
	kinds := map[string]func(context.Context, int) error{
		"exec":                              func(ctx context.Context, i int) error { return n.abortExec(ctx, id, i) },
		"attach":                            func(ctx context.Context, i int) error { return n.abortAttach(ctx, id, i) },
		"port-forward":                      func(ctx context.Context, i int) error { return n.abortPortForward(ctx, podID, 7777, i) },
		"port-forward to one who is silent": func(ctx context.Context, i int) error { return n.abortPortForward(ctx, podID, 7778, i) },
	}
	for name, abort := range kinds {
		t.Run(name, func(t *testing.T) {
			// crimonitor collects its garbage, pidfds among it, once it was left alone for a second; to count is a call, too.
			const quiet = 2 * time.Second
			abortMany(t, abort, 20) // what stays for good is there then, also of a command
			n.held(id)
			time.Sleep(quiet)
			before := n.held(id)
			abortMany(t, abort, aborted)
			var after map[string]int
			for deadline := time.Now().Add(30 * time.Second); ; {
				time.Sleep(quiet)
				after = n.held(id)
				// Threads of the Go runtime come and stay.
				if more := slices.DeleteFunc(grown(before, after), func(s string) bool { return strings.Contains(s, "threads") }); len(more) == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("it held %v, and %v after %d aborted sessions", before, after, aborted)
				}
			}
			t.Logf("before %v, after %v", before, after)
		})
	}
	if out, _ := n.exec(id, "echo fine"); out != "fine" {
		t.Errorf("the container answers %q", out)
	}
}

func grown(before, after map[string]int) []string {
	var more []string
	for name, k := range after {
		if k > before[name] {
			more = append(more, name)
		}
	}
	return more
}

func abortMany(t *testing.T, abort func(context.Context, int) error, times int) {
	t.Helper()
	var all sync.WaitGroup
	turns := make(chan int)
	for range 8 {
		all.Go(func() {
			for i := range turns {
				if err := abort(t.Context(), i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range times {
		turns <- i
	}
	close(turns)
	all.Wait()
}

// cutter ends a session when the first byte comes.
type cutter struct {
	cut  context.CancelFunc
	seen bool
}

func (c *cutter) Write(p []byte) (int, error) {
	c.seen = c.seen || len(p) > 0
	c.cut()
	return len(p), nil
}

func transportOf(i int) string { return []string{"spdy", "websocket"}[i%2] }

func (n *node) abortExec(ctx context.Context, id string, i int) error {
	resp, err := n.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo begun; cat"}, Stdin: true, Stdout: true})
	if err != nil {
		return err
	}
	e, err := executor(transportOf(i), resp.Url)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out := &cutter{cut: cancel}
	in, hold := io.Pipe()
	defer hold.Close()
	if err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out}); !out.seen {
		return fmt.Errorf("exec %d: no output: %w", i, err)
	}
	return nil
}

func (n *node) abortAttach(ctx context.Context, id string, i int) error {
	resp, err := n.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true})
	if err != nil {
		return err
	}
	e, err := executor(transportOf(i), resp.Url)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	in, hold := io.Pipe()
	defer hold.Close()
	_ = e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: io.Discard})
	return nil
}

// abortPortForward goes away when it has an answer, of one who gives any.
func (n *node) abortPortForward(ctx context.Context, podID string, port int32, i int) error {
	resp, err := n.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: podID, Port: []int32{port}})
	if err != nil {
		return err
	}
	dialer, err := portForwardDialer(transportOf(i), resp.Url)
	if err != nil {
		return err
	}
	conn, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return err
	}
	defer conn.Close()
	headers := http.Header{}
	headers.Set("port", strconv.Itoa(int(port)))
	headers.Set("requestID", "0")
	headers.Set("streamType", "error")
	if _, err := conn.CreateStream(headers); err != nil {
		return err
	}
	headers.Set("streamType", "data")
	data, err := conn.CreateStream(headers)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(data, "here"); err != nil || port != 7777 {
		return err
	}
	_, err = io.ReadFull(data, make([]byte, 4))
	return err
}

// held counts what the processes of the node have open, and the processes of a container.
func (n *node) held(id string) map[string]int {
	n.t.Helper()
	counts := map[string]int{}
	for name, pid := range map[string]int{"stream server": n.processOf("criserver", "stream-server"), "crimonitor": n.monitorPID()} {
		fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		counts[name+" descriptors"], counts[name+" threads"] = len(fds), len(threads)
	}
	info := n.streamServer()
	counts["stream server sessions"], counts["stream server goroutines"] = info.Sessions, info.Goroutines
	out, _ := n.exec(id, "set -- /proc/[0-9]*; echo $#")
	counts["processes"], _ = strconv.Atoi(out)
	return counts
}

// streamServer asks the stream server how it is.
func (n *node) streamServer() (info streaming.Info) {
	n.t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.dir, "state/streams.sock"))
	}}}
	resp, err := client.Get("http://stream-server/info")
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&info); err != nil {
		n.t.Fatal(err)
	}
	return info
}

// processOf is the process of the node with that program and argument.
func (n *node) processOf(program, argument string) int {
	n.t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		data, err := os.ReadFile(file)
		args := strings.Split(string(data), "\x00")
		if err == nil && filepath.Base(args[0]) == program && slices.Contains(args, argument) && strings.Contains(string(data), n.dir) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			return pid
		}
	}
	n.t.Fatalf("no process %s %s", program, argument)
	return 0
}
