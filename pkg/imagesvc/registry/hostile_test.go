package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// isLayer tells the request for the layer from the others.
func isLayer(r *http.Request, img *registrytest.Image) bool {
	return strings.HasSuffix(r.URL.Path, "/blobs/"+img.Manifest.Layers[0].Digest.String())
}

// hang answers nothing until the test ends.
func hang(w http.ResponseWriter, r *http.Request) {
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	<-r.Context().Done()
}

func TestHostileLayer(t *testing.T) {
	img := smallImage(t)
	good := img.Layers[0].Blob
	length := func(w http.ResponseWriter, n int) { w.Header().Set("Content-Length", fmt.Sprint(n)) }
	for name, test := range map[string]struct {
		err    error
		answer func(w http.ResponseWriter, r *http.Request)
	}{
		"other content": {registry.ErrDigest, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(append([]byte("X"), good[1:]...))
		}},
		"longer, said so": {registry.ErrDigest, func(w http.ResponseWriter, _ *http.Request) {
			length(w, len(good)+3)
			_, _ = w.Write(append(bytes.Clone(good), "xyz"...))
		}},
		"longer, not said": {registry.ErrDigest, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(good)
			w.(http.Flusher).Flush()
			_, _ = w.Write([]byte("xyz"))
		}},
		"shorter, said so": {registry.ErrTruncated, func(w http.ResponseWriter, _ *http.Request) {
			length(w, 10)
			_, _ = w.Write(good[:10])
		}},
		"shorter, not said": {registry.ErrTruncated, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(good[:10])
			w.(http.Flusher).Flush()
		}},
		"cut each time, no ranges": {registry.ErrTruncated, func(w http.ResponseWriter, _ *http.Request) {
			length(w, len(good))
			_, _ = w.Write(good[:10])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}},
		"stalls in the middle": {registry.ErrStalled, func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(good[:10])
			hang(w, r)
		}},
		"never answers": {registry.ErrUnavailable, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		"500": {registry.ErrUnavailable, func(w http.ResponseWriter, _ *http.Request) {
			registrytest.Fail(w, http.StatusInternalServerError, "UNKNOWN", "out of order")
		}},
		"404": {registry.ErrNotFound, func(w http.ResponseWriter, _ *http.Request) {
			registrytest.Fail(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown")
		}},
		"403":       {registry.ErrUnauthorized, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }},
		"401, mute": {registry.ErrUnauthorized, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }},
		"a range nobody asked for": {errAny, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 5-9/10")
			w.WriteHeader(http.StatusPartialContent)
		}},
		"redirects in a circle": {registry.ErrUnavailable, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m := registrytest.NewMemory(t)
			m.Add("a/b", "v1", img)
			m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
				if isLayer(r, img) {
					test.answer(w, r)
					return true
				}
				return false
			}
			c := client(t, registry.Config{NoProgress: 200 * time.Millisecond})
			err := fetchAll(t.Context(), repository(t, c, m.Host+"/a/b:v1", registry.Auth{}), img)
			t.Log(err)
			if errors.Is(test.err, errAny) && err != nil {
				err = errors.Join(err, errAny)
			}
			if !errors.Is(err, test.err) {
				t.Fatalf("err = %v, want %v", err, test.err)
			}
			if !strings.Contains(err.Error(), m.Host) || !strings.Contains(err.Error(), img.Manifest.Layers[0].Digest.String()) {
				t.Errorf("the error names no host or digest: %v", err)
			}
		})
	}
}

func TestHostileManifest(t *testing.T) {
	img := smallImage(t)
	other := []byte(`{"schemaVersion":2}`)
	for name, test := range map[string]struct {
		ref  string
		err  error
		data []byte
		said digest.Digest
	}{
		"other content for a digest":       {"@" + img.Digest().String(), registry.ErrDigest, other, ""},
		"not what the header says":         {":v1", registry.ErrDigest, other, img.Digest()},
		"too large":                        {":v1", errAny, make([]byte, registry.MaxManifest+1), ""},
		"a header that is no digest":       {":v1", nil, img.ManifestData, "nonsense"},
		"a header in another algorithm":    {":v1", nil, img.ManifestData, digest.SHA512.FromBytes(img.ManifestData)},
		"no header, right for the digest":  {"@" + img.Digest().String(), nil, img.ManifestData, ""},
		"wrong header, right for the name": {"@" + img.Digest().String(), nil, img.ManifestData, digest.FromBytes(other)},
	} {
		t.Run(name, func(t *testing.T) {
			m := registrytest.NewMemory(t)
			m.Hook = func(w http.ResponseWriter, _ *http.Request) bool {
				if test.said != "" {
					w.Header().Set("Docker-Content-Digest", test.said.String())
				}
				_, _ = w.Write(test.data)
				return true
			}
			got, err := repository(t, client(t, registry.Config{}), m.Host+"/a/b"+test.ref, registry.Auth{}).Manifest(t.Context(), "")
			if errors.Is(test.err, errAny) && err != nil {
				err = errAny
			}
			if !errors.Is(err, test.err) || err == nil && !bytes.Equal(got.Data, test.data) {
				t.Errorf("err = %v, want %v", err, test.err)
			}
		})
	}
}

// A byte now and then is no progress of a manifest or a token.
func TestDrippingServer(t *testing.T) {
	img := smallImage(t)
	drip := func(w http.ResponseWriter, r *http.Request) {
		for i := 0; i < 500 && r.Context().Err() == nil; i++ {
			_, _ = w.Write([]byte(" "))
			_ = http.NewResponseController(w).Flush()
			time.Sleep(20 * time.Millisecond)
		}
	}
	for _, what := range []string{"manifest", "token"} {
		t.Run(what, func(t *testing.T) {
			m := registrytest.NewMemory(t)
			m.Add("a/b", "v1", img)
			m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
				if what == "manifest" || r.URL.Path == "/token" {
					drip(w, r)
					return true
				}
				w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+m.Host+`/token",service="x",scope="repository:a/b:pull"`)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			c := client(t, registry.Config{NoProgress: 100 * time.Millisecond})
			_, err := repository(t, c, m.Host+"/a/b:v1", registry.Auth{}).Manifest(t.Context(), "")
			if !errors.Is(err, registry.ErrStalled) {
				t.Errorf("err = %v, want %v", err, registry.ErrStalled)
			}
		})
	}
}

func TestCutBodyIsResumed(t *testing.T) {
	big := make([]byte, 1<<20)
	for i := range big {
		big[i] = byte(i * i >> 5)
	}
	img := registrytest.NewImage("amd64", registrytest.NewLayer(t, ocispec.MediaTypeImageLayer, map[string][]byte{"f": big}))
	for name, ranges := range map[string]bool{"with ranges": true, "without ranges": false} {
		t.Run(name, func(t *testing.T) {
			m := registrytest.NewMemory(t)
			m.Add("a/b", "v1", img)
			var asked []string
			m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
				if !isLayer(r, img) {
					return false
				}
				asked = append(asked, r.Header.Get("Range"))
				if !ranges {
					r.Header.Del("Range")
				}
				if len(asked) <= 3 { // each time a bit more, then the connection is gone
					w = &cutting{ResponseWriter: w, left: len(asked) * 300_000}
				}
				m.Serve(w, r)
				return true
			}
			if err := fetchAll(t.Context(), repository(t, client(t, registry.Config{}), m.Host+"/a/b:v1", registry.Auth{}), img); err != nil {
				t.Fatal(err)
			}
			if len(asked) < 3 || asked[0] != "" || asked[1] == "" {
				t.Errorf("ranges asked for: %q", asked)
			}
		})
	}
}

// cutting cuts the connection after some bytes of the body.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left == 0 {
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func TestRepeatsWhatMayPass(t *testing.T) {
	img := smallImage(t)
	for name, fail := range map[string]func(w http.ResponseWriter){
		"500": func(w http.ResponseWriter) { w.WriteHeader(http.StatusInternalServerError) },
		"503": func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) },
		"429": func(w http.ResponseWriter) { w.WriteHeader(http.StatusTooManyRequests) },
		"reset": func(w http.ResponseWriter) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			_ = c.(*net.TCPConn).SetLinger(0) // closing sends RST
			c.Close()
		},
		"closed without an answer": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			m := registrytest.NewMemory(t)
			m.Add("a/b", "v1", img)
			var n atomic.Int64
			m.Hook = func(w http.ResponseWriter, _ *http.Request) bool {
				if n.Add(1)%3 == 0 {
					return false
				}
				fail(w)
				return true
			}
			// Over https first, as on any local host, would spoil the count.
			c := client(t, registry.Config{Mirrors: map[string][]registry.Endpoint{m.Host: {{URL: "http://" + m.Host}}}})
			if err := fetchAll(t.Context(), repository(t, c, m.Host+"/a/b:v1", registry.Auth{}), img); err != nil {
				t.Fatal(err)
			}
			if n.Load() != 6 {
				t.Errorf("%d requests, want 6", n.Load())
			}
		})
	}
	t.Run("not for ever", func(t *testing.T) {
		m := registrytest.NewMemory(t)
		m.Hook = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true }
		err := fetchAll(t.Context(), repository(t, client(t, registry.Config{}), m.Host+"/a/b:v1", registry.Auth{}), img)
		if n := len(m.Requests()); !errors.Is(err, registry.ErrUnavailable) || n > 10 {
			t.Errorf("%d requests, %v", n, err)
		}
	})
}

func TestCancel(t *testing.T) {
	img := smallImage(t)
	m := registrytest.NewMemory(t)
	m.Add("a/b", "v1", img)
	started := make(chan struct{})
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !isLayer(r, img) {
			return false
		}
		_, _ = w.Write(img.Layers[0].Blob[:10])
		close(started)
		hang(w, r)
		return true
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	err := fetchAll(ctx, repository(t, client(t, registry.Config{NoProgress: time.Minute}), m.Host+"/a/b:v1", registry.Auth{}), img)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
}

// A reader that takes its time is not a server that does.
func TestSlowReaderIsNoStall(t *testing.T) {
	big := bytes.Repeat([]byte("slow "), 1<<20)
	img := registrytest.NewImage("amd64", registrytest.NewLayer(t, ocispec.MediaTypeImageLayer, map[string][]byte{"f": big}))
	m := registrytest.NewMemory(t)
	m.Add("a/b", "v1", img)
	repo := repository(t, client(t, registry.Config{NoProgress: 100 * time.Millisecond}), m.Host+"/a/b:v1", registry.Auth{})
	blob, err := repo.Blob(t.Context(), img.Manifest.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	if _, err := io.ReadFull(blob, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // the reader's own time is what is tested
	if err := blob.Drain(); err != nil {
		t.Error(err)
	}
}

// A byte now and then is no progress of a blob where that is configured: another endpoint sends the rest, and other pulls do
// not begin with the one that drips.
func TestDrippingBlob(t *testing.T) {
	img := smallImage(t)
	good := img.Layers[0].Blob
	own, mirror := registrytest.NewMemory(t), registrytest.NewMemory(t)
	own.Add("a/b", "v1", img)
	mirror.Add("a/b", "v1", img)
	mirror.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !isLayer(r, img) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(good)))
		for i := 0; i < len(good) && r.Context().Err() == nil; i++ {
			_, _ = w.Write(good[i : i+1])
			_ = http.NewResponseController(w).Flush()
			time.Sleep(5 * time.Millisecond)
		}
		return true
	}
	both := map[string][]registry.Endpoint{own.Host: {{URL: "http://" + mirror.Host}, {URL: "http://" + own.Host}}}
	c := client(t, registry.Config{Mirrors: both, NoProgress: 200 * time.Millisecond, MinRate: 10_000})
	repo := repository(t, c, own.Host+"/a/b:v1", registry.Auth{})
	err := fetchLayer(t.Context(), repo, img)
	if !errors.Is(err, registry.ErrStalled) || !strings.Contains(err.Error(), "no more than ") || !strings.Contains(err.Error(), mirror.Host) {
		t.Fatalf("err = %v, want %v", err, registry.ErrStalled)
	}
	if err := fetchLayer(t.Context(), repo, img); err != nil || own.Count(http.MethodGet, "/blobs/") != 1 {
		t.Errorf("%v, the registry itself was asked %d times", err, own.Count(http.MethodGet, "/blobs/"))
	}
	before := len(mirror.Requests())
	if err := fetchAll(t.Context(), repository(t, c, own.Host+"/a/b:v1", registry.Auth{}), img); err != nil || len(mirror.Requests()) != before {
		t.Errorf("%v, the next pull asked the mirror %d times", err, len(mirror.Requests())-before)
	}
	// Who sends enough is waited for, however long it takes in all.
	slow := client(t, registry.Config{Mirrors: both, NoProgress: 200 * time.Millisecond, MinRate: 10})
	if err := fetchLayer(t.Context(), repository(t, slow, own.Host+"/a/b:v1", registry.Auth{}), img); err != nil {
		t.Errorf("slow, but honest: %v", err)
	}
}
