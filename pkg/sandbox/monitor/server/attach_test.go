package server

import (
	"context"
	"os"
	"testing"
	"time"

	"criserver/pkg/sandbox/monitor"
)

// A client that stops reading is dropped while the container goes on printing; the container and its log do not notice.
func TestAttachedClientLags(t *testing.T) {
	f := newFixture(t, nil)
	log := f.run("a", "while [ ! -e /tmp/go ]; do sleep 0.05; done; head -c 5000000 /dev/zero; echo end; while [ ! -e /tmp/done ]; do sleep 0.05; done")
	mark := func(name string) {
		if err := os.WriteFile(f.dir+"/a/rootfs/tmp/"+name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	a, err := f.Attach(ctx, monitor.AttachRequest{ID: "a"}, w, w)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	mark("go")
	if end, err := a.Wait(ctx); err != nil || !end.Lagged {
		t.Errorf("a client that does not read, of a container that runs: %+v, %v", end, err)
	}
	mark("done")
	if st := f.await("a"); st.ExitCode != 0 {
		t.Errorf("state = %+v", st)
	}
	if n := len(content(t, log)); n != 5_000_000+len("end\n") {
		t.Errorf("log of %d bytes", n)
	}
}

// pipedClient is one whose output goes to a pipe.
func pipedClient(t *testing.T) (c *client, r *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return &client{files: [2]*os.File{w, w}, wake: make(chan struct{}, 1)}, r
}

// The last output is waited for a while.
func TestAttachedClientNeverTakesTheEnd(t *testing.T) {
	t.Parallel()
	c, _ := pipedClient(t)
	ended := make(chan monitor.AttachEnd, 1)
	go func() { ended <- c.run(context.Background()) }()
	c.add(chunk{0, make([]byte, maxLag/2)}) // more than the pipe holds: it hangs in a write
	time.Sleep(50 * time.Millisecond)
	start := time.Now()
	c.end()
	select {
	case end := <-ended:
		if took := time.Since(start); !end.Lagged || took < lastWait/2 {
			t.Errorf("after %s: %+v", took, end)
		}
	case <-time.After(2 * lastWait):
		t.Error("it is waited for for ever")
	}
}

// Who takes the last output in time has all of it.
func TestAttachedClientTakesTheEnd(t *testing.T) {
	t.Parallel()
	c, r := pipedClient(t)
	ended := make(chan monitor.AttachEnd, 1)
	go func() { ended <- c.run(context.Background()) }()
	c.add(chunk{0, make([]byte, maxLag/2)})
	c.end()
	for buf, got := make([]byte, 1<<16), 0; got < maxLag/2; {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
	if end := <-ended; end.Lagged {
		t.Errorf("%+v", end)
	}
}
