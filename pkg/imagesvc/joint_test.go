package imagesvc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// drips is a registry that sends a byte of a layer now and then, or if it is mute not even an answer. begun gets a value for each
// request for it.
func drips(t *testing.T, l registrytest.Layer, mute bool) (m *registrytest.Memory, begun chan struct{}) {
	t.Helper()
	m, begun = registrytest.NewMemory(t), make(chan struct{}, 1000)
	m.Add("a/b", "v1", image(l))
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/blobs/"+l.Descriptor().Digest.String()) {
			return false
		}
		begun <- struct{}{}
		if mute {
			<-r.Context().Done()
			return true
		}
		from, to := 0, len(l.Blob)-1
		if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err == nil || from > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(l.Blob)))
			w.Header().Set("Content-Length", fmt.Sprint(to+1-from))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			w.Header().Set("Content-Length", fmt.Sprint(len(l.Blob)))
		}
		for ; from <= to && r.Context().Err() == nil; from++ {
			_, _ = w.Write(l.Blob[from : from+1])
			_ = http.NewResponseController(w).Flush()
			time.Sleep(10 * time.Millisecond)
		}
		return true
	}
	return m, begun
}

// A layer that a registry drips is fetched from the registry of another pull that waits for it, whatever its size, for both.
func TestAnotherRegistryHelps(t *testing.T) {
	small := layer(t, "shared")
	large := registrytest.NewLayer(t, ocispec.MediaTypeImageLayer, map[string][]byte{"big": noise(20<<20, 3)})
	for name, test := range map[string]struct {
		layer registrytest.Layer
		mute  bool
	}{
		"small": {small, false}, "large": {large, false}, "small mute": {small, true}, "large mute": {large, true},
	} {
		for _, cancels := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " cancelled ", cancels), func(t *testing.T) {
				bad, begun := drips(t, test.layer, test.mute)
				good := registrytest.NewMemory(t)
				good.Add("c/d", "v1", image(test.layer))
				n := newNode(t, registry.Config{Mirrors: map[string][]registry.Endpoint{
					bad.Host: {{URL: "http://" + bad.Host}}, good.Host: {{URL: "http://" + good.Host}},
				}})
				n.config.Patience, n.config.Connections, n.reg.NoProgress = 300*time.Millisecond, 3, time.Hour
				n.restart(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				first := n.begin(ctx, bad.Host+"/a/b:v1")
				<-begun
				second := n.begin(t.Context(), good.Host+"/c/d:v1")
				if cancels {
					waitForLayer(t, n, test.layer, 2)
					cancel()
					if err := <-first; !errors.Is(err, context.Canceled) {
						t.Errorf("first: %v", err)
					}
				}
				select {
				case err := <-second:
					if err != nil {
						t.Errorf("second: %v", err)
					}
				case <-time.After(20 * time.Second):
					t.Fatal("the second pull waits for the registry of the first")
				}
				if !cancels {
					if err := <-first; err != nil {
						t.Errorf("first: %v", err)
					}
				}
				n.wantLayers(t, test.layer)
			})
		}
	}
}

func waitForLayer(t *testing.T, n *node, l registrytest.Layer, want int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); n.LayerWaiters(l.DiffID()) != want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d pulls wait for the layer, want %d", n.LayerWaiters(l.DiffID()), want)
		}
	}
}

// Where all registries drip, all pulls end, in time, and say why.
func TestAllRegistriesDrip(t *testing.T) {
	for name, shared := range map[string]registrytest.Layer{
		"small": layer(t, "shared"),
		"large": registrytest.NewLayer(t, ocispec.MediaTypeImageLayer, map[string][]byte{"big": noise(20<<20, 3)}),
	} {
		t.Run(name, func(t *testing.T) {
			one, begun := drips(t, shared, false)
			other, _ := drips(t, shared, false)
			n := newNode(t, registry.Config{MinRate: 10_000, NoProgress: time.Second})
			n.config.Patience, n.config.Connections = 200*time.Millisecond, 3
			n.restart(t)
			start := time.Now()
			first := n.begin(t.Context(), one.Host+"/a/b:v1")
			<-begun
			second := n.begin(t.Context(), other.Host+"/a/b:v1")
			for _, done := range []<-chan error{first, second} {
				err := <-done
				if !errors.Is(err, registry.ErrStalled) || !strings.Contains(err.Error(), shared.Descriptor().Digest.String()) ||
					!strings.Contains(err.Error(), "no more than") {
					t.Errorf("err = %v", err)
				}
				t.Log(err)
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("that took %v", took)
			}
			n.wantLayers(t)
		})
	}
}

// A registry is asked with the credentials of its own pull only, and a pull whose registry refuses it gets nothing by that of another.
func TestJointFetchKeepsCredentialsApart(t *testing.T) {
	shared := layer(t, "shared")
	bad, begun := drips(t, shared, false)
	good := registrytest.NewMemory(t)
	good.Add("a/b", "v1", image(shared))
	var wrong, refused atomic.Int64
	guard := func(m *registrytest.Memory, name string) {
		inner := m.Hook
		m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
			user, _, given := r.BasicAuth()
			if given && user != name {
				wrong.Add(1)
			}
			if user != name {
				refused.Add(1)
				w.Header().Set("WWW-Authenticate", "Basic")
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			return inner != nil && inner(w, r)
		}
		_ = m.Requests()
	}
	guard(bad, "one")
	guard(good, "two")
	n := newNode(t, registry.Config{NoProgress: time.Hour})
	n.config.Patience = 200 * time.Millisecond
	n.restart(t)
	pull := func(m *registrytest.Memory, user string) <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := n.Pull(t.Context(), m.Host+"/a/b:v1", registry.Auth{Username: user, Password: "x"})
			done <- err
		}()
		return done
	}
	first := pull(bad, "one")
	<-begun
	if err := <-pull(good, ""); !errors.Is(err, registry.ErrUnauthorized) {
		t.Errorf("without a credential: %v", err)
	}
	if err := errors.Join(<-pull(good, "two"), <-first); err != nil {
		t.Error(err)
	}
	if wrong.Load() != 0 || refused.Load() == 0 {
		t.Errorf("%d requests had the credential of another registry, %d none", wrong.Load(), refused.Load())
	}
}

// A registry that sends other content is found out, and the layer fetched from that of the other pull, from its beginning.
func TestAnotherRegistryMendsDamage(t *testing.T) {
	shared := layer(t, "shared")
	bad, good := registrytest.NewMemory(t), registrytest.NewMemory(t)
	bad.Add("a/b", "v1", image(shared))
	good.Add("c/d", "v1", image(shared))
	wrong := bytes.Clone(shared.Blob)
	wrong[len(wrong)-9] ^= 1
	arrived, open := make(chan struct{}, 10), make(chan struct{})
	bad.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/blobs/"+shared.Descriptor().Digest.String()) {
			return false
		}
		arrived <- struct{}{}
		<-open
		_, _ = w.Write(wrong)
		return true
	}
	n := newNode(t, registry.Config{Mirrors: map[string][]registry.Endpoint{
		bad.Host: {{URL: "http://" + bad.Host}}, good.Host: {{URL: "http://" + good.Host}},
	}})
	first := n.begin(t.Context(), bad.Host+"/a/b:v1")
	<-arrived
	second := n.begin(t.Context(), good.Host+"/c/d:v1")
	waitForLayer(t, n, shared, 2)
	close(open)
	if err := errors.Join(<-first, <-second); err != nil {
		t.Error(err)
	}
	if got := bad.Count(http.MethodGet, "/blobs/"+shared.Descriptor().Digest.String()); got != 1 {
		t.Errorf("who sent damage was asked %d times", got)
	}
}
