package imagesvc_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// gate lets the requests for one layer send some bytes and then wait.
type gate struct {
	arrived chan struct{} // gets a value for each request that waits
	open    chan struct{} // closed to let all go on
	gone    chan struct{} // gets a value for each client that went away instead
}

// hold puts a gate before a layer.
func hold(m *registrytest.Memory, l registrytest.Layer) *gate {
	g := &gate{arrived: make(chan struct{}, 100), open: make(chan struct{}), gone: make(chan struct{}, 100)}
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/blobs/"+l.Descriptor().Digest.String()) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(l.Blob)))
		_, _ = w.Write(l.Blob[:20])
		w.(http.Flusher).Flush()
		g.arrived <- struct{}{}
		select {
		case <-g.open:
			_, _ = w.Write(l.Blob[20:])
		case <-r.Context().Done():
			g.gone <- struct{}{}
		}
		return true
	}
	_ = m.Requests() // by its lock the race detector sees that the hook is there before a request of another process
	return g
}

// begin pulls in the background.
func (n *node) begin(ctx context.Context, name string) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := n.Pull(ctx, name, registry.Auth{})
		done <- err
	}()
	return done
}

// Twenty pulls of five images that share layers fetch each layer once.
func TestSharedLayersAreFetchedOnce(t *testing.T) {
	m := registrytest.NewMemory(t)
	base, middle := layer(t, "base"), layer(t, "middle")
	layers := []registrytest.Layer{base, middle}
	for i := range 5 {
		own := layer(t, fmt.Sprint("own", i))
		layers = append(layers, own)
		m.Add(fmt.Sprint("app", i), "v1", image(base, middle, own))
	}
	n := newNode(t, direct(m))
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if _, err := n.Pull(t.Context(), fmt.Sprintf("%s/app%d:v1", m.Host, i%5), registry.Auth{}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i, l := range layers {
		if got := m.Count(http.MethodGet, "/blobs/"+l.Descriptor().Digest.String()); got != 1 {
			t.Errorf("layer %d was fetched %d times", i, got)
		}
	}
	if len(n.List()) != 5 {
		t.Errorf("%d images", len(n.List()))
	}
	n.wantLayers(t, layers...)
}

func TestEqualPullsAreOne(t *testing.T) {
	m := registrytest.NewMemory(t)
	slow := layer(t, "slow")
	m.Add("a/b", "v1", image(slow))
	g := hold(m, slow)
	n := newNode(t, direct(m))
	name := m.Host + "/a/b:v1"
	ctx, cancel := context.WithCancel(t.Context())
	first := n.begin(ctx, name)
	<-g.arrived
	second := n.begin(t.Context(), name)
	// Lists do not wait for pulls, and know nothing of them.
	if len(n.List()) != 0 {
		t.Error("an image is visible before it is whole")
	}
	joined(t, n, name, 2)
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("first: %v", err)
	}
	close(g.open)
	if err := <-second; err != nil {
		t.Errorf("second: %v", err)
	}
	if got := m.Count(http.MethodGet, "/manifests/"); got != 1 {
		t.Errorf("the manifest was fetched %d times", got)
	}
}

// joined waits until so many callers share the pull of a name.
func joined(t *testing.T, n *node, name string, want int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); n.Waiters(name) != want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d callers, want %d", n.Waiters(name), want)
		}
	}
}

// Other credentials are another pull: the second caller must not get in by the first one's.
func TestOtherCredentialsAreAnotherPull(t *testing.T) {
	m := registrytest.NewMemory(t)
	slow := layer(t, "slow")
	m.Add("a/b", "v1", image(slow))
	g := hold(m, slow)
	inner := m.Hook
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if user, _, _ := r.BasicAuth(); user != "me" {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return inner(w, r)
	}
	n := newNode(t, direct(m))
	first := make(chan error, 1)
	go func() {
		_, err := n.Pull(t.Context(), m.Host+"/a/b:v1", registry.Auth{Username: "me", Password: "x"})
		first <- err
	}()
	<-g.arrived
	if _, err := n.Pull(t.Context(), m.Host+"/a/b:v1", registry.Auth{}); !errors.Is(err, registry.ErrUnauthorized) {
		t.Errorf("second: %v", err)
	}
	close(g.open)
	if err := <-first; err != nil {
		t.Errorf("first: %v", err)
	}
}

func TestCancelInTheMiddle(t *testing.T) {
	m := registrytest.NewMemory(t)
	quick, slow := layer(t, "quick"), layer(t, "slow")
	m.Add("a/b", "v1", image(quick, slow))
	g := hold(m, slow)
	n := newNode(t, direct(m))
	name := m.Host + "/a/b:v1"
	ctx, cancel := context.WithCancel(t.Context())
	done := n.begin(ctx, name)
	<-g.arrived
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	if _, err := n.Resolve(name); !errors.Is(err, imagesvc.ErrNotFound) || len(n.List()) != 0 {
		t.Errorf("after the cancel: %v, %d images", err, len(n.List()))
	}
	select {
	case <-g.gone:
	case <-time.After(5 * time.Second):
		t.Error("the fetch goes on though nobody waits for it")
	}
	close(g.open)
	n.pull(t, name)
	n.wantLayers(t, quick, slow)
	if err := n.Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	n.restart(t) // waits for what was cancelled
	n.wantClean(t)
}

// Of pulls that share a layer, one whose registry is good is enough for all.
func TestFailureOfAnotherPullIsNotMine(t *testing.T) {
	shared := layer(t, "shared")
	bad, good := registrytest.NewMemory(t), registrytest.NewMemory(t)
	bad.Add("a/b", "v1", image(shared))
	good.Add("a/b", "v1", image(shared))
	g := hold(bad, shared)
	inner := bad.Hook
	bad.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if inner(w, r) {
			panic(http.ErrAbortHandler) // after the gate: the connection is cut, each time
		}
		return false
	}
	n := newNode(t, registry.Config{})
	first := n.begin(t.Context(), bad.Host+"/a/b:v1")
	<-g.arrived
	second := n.begin(t.Context(), good.Host+"/a/b:v1")
	waitForLayer(t, n, shared, 2)
	bad.AddBlob(shared.Descriptor().Digest, nil)
	bad.Server.CloseClientConnections()
	bad.Server.Listener.Close()
	if err := <-first; err != nil {
		t.Errorf("first: %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("second: %v", err)
	}
}

// What a pull has fetched already is not collected before it is done.
func TestCollectDuringPull(t *testing.T) {
	m := registrytest.NewMemory(t)
	quick, slow := layer(t, "quick"), layer(t, "slow")
	m.Add("a/old", "v1", image(quick))
	m.Add("a/b", "v1", image(quick, slow))
	g := hold(m, slow)
	n := newNode(t, direct(m))
	n.pull(t, m.Host+"/a/old:v1")
	done := n.begin(t.Context(), m.Host+"/a/b:v1")
	<-g.arrived
	if err := errors.Join(n.Remove(t.Context(), m.Host+"/a/old:v1"), n.Collect(t.Context())); err != nil {
		t.Fatal(err)
	}
	n.wantLayers(t, quick)
	close(g.open)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	n.wantLayers(t, quick, slow)
	if got := m.Count(http.MethodGet, "/blobs/"+quick.Descriptor().Digest.String()); got != 1 {
		t.Errorf("the layer was fetched %d times", got)
	}
}

// Pulls, removals and lists at the same time leave images that are whole, and nothing else.
func TestChurn(t *testing.T) {
	m := registrytest.NewMemory(t)
	base := layer(t, "base")
	for i := range 4 {
		m.Add("a/b", fmt.Sprint("v", i), image(base, layer(t, fmt.Sprint("own", i%2))))
	}
	n := newNode(t, direct(m))
	var all sync.WaitGroup
	var pulls atomic.Int64
	for i := range 6 {
		all.Go(func() {
			for j := range 12 {
				name := fmt.Sprintf("%s/a/b:v%d", m.Host, (i+j)%4)
				var err error
				if (i+j)%3 == 0 {
					err = n.Remove(t.Context(), name)
				} else {
					_, err = n.Pull(t.Context(), name, registry.Auth{})
					pulls.Add(1)
				}
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				for _, img := range n.List() {
					if len(img.DiffIDs) != 2 {
						t.Errorf("image with layers %v", img.DiffIDs)
					}
				}
			}
		})
	}
	all.Wait()
	for _, img := range n.List() {
		for i := range img.DiffIDs {
			if _, err := n.layers.Layer(t.Context(), img.DiffIDs[:i+1]); err != nil {
				t.Errorf("of an image that is listed: %v", err)
			}
		}
	}
	before := len(n.List())
	if n.restart(t); len(n.List()) != before {
		t.Errorf("%d images, after a restart %d", before, len(n.List()))
	}
	for _, img := range n.List() {
		if err := n.Remove(t.Context(), img.ID.String()); err != nil {
			t.Error(err)
		}
	}
	n.wantClean(t)
}

func TestCloseEndsPulls(t *testing.T) {
	m := registrytest.NewMemory(t)
	slow := layer(t, "slow")
	m.Add("a/b", "v1", image(slow))
	g := hold(m, slow)
	n := newNode(t, direct(m))
	done := n.begin(t.Context(), m.Host+"/a/b:v1")
	<-g.arrived
	n.restart(t)
	if err := <-done; err == nil {
		t.Error("the pull succeeded")
	}
	n.wantClean(t)
}

func BenchmarkPull(b *testing.B) {
	server := registrytest.Start(b, registrytest.Options{})
	var layers []registrytest.Layer
	for i := range 8 {
		files := map[string][]byte{}
		for j := range 200 {
			files[fmt.Sprintf("%d/%d", i, j)] = noise(40_000, uint64(i*1000+j))
		}
		layers = append(layers, registrytest.NewLayer(b, ocispec.MediaTypeImageLayerGzip, files))
	}
	img := image(layers...)
	server.Push(b, "a/b", "v1", img)
	for _, parallel := range []int{1, 2, 4, 8} {
		b.Run(fmt.Sprintf("layers=%d", parallel), func(b *testing.B) {
			b.SetBytes(img.Size())
			n := newNode(b, registry.Config{})
			n.stop(b)
			n.config.ParallelLayers = parallel
			n.start(b)
			for b.Loop() {
				n.pull(b, server.Host+"/a/b:v1")
				b.StopTimer()
				if err := n.Remove(b.Context(), server.Host+"/a/b:v1"); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// noise is half compressible, as programs are.
func noise(n int, seed uint64) []byte {
	out := make([]byte, n)
	for i := range out {
		seed = seed*6364136223846793005 + 1442695040888963407
		if i%64 < 32 {
			out[i] = byte(seed >> 56)
		}
	}
	return out
}
