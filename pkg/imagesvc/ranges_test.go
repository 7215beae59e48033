package imagesvc_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// asked is which bytes of a blob a request is for.
func asked(r *http.Request, size int) (from, to int, ranged bool) {
	from, to = 0, size-1
	text := r.Header.Get("Range")
	n, _ := fmt.Sscanf(text, "bytes=%d-%d", &from, &to)
	return from, to, n > 0
}

// partial answers with bytes that are said to be others.
func partial(w http.ResponseWriter, from, to, size int, body []byte) {
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, size))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(body)
}

// hijacked answers by hand.
func hijacked(w http.ResponseWriter, head string, body []byte) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, head+"\r\n\r\n")
	_, _ = c.Write(body)
}

// wrongAnswer is what a server says for a large layer.
type wrongAnswer struct {
	answer func(w http.ResponseWriter, r *http.Request, from, to int, ranged bool)
	alone  error // of a pull from it; nil: it is good enough
}

// Servers that answer wrongly for a layer that is fetched by several connections. A mirror of that kind costs time; alone it
// costs the pull at most, and nothing of what it sent stands in the way of the next.
func TestWrongRanges(t *testing.T) {
	big := bigLayer(t)
	blob, size := big.Blob, len(big.Blob)
	for name, test := range map[string]wrongAnswer{
		"range with a wrong header": {func(w http.ResponseWriter, _ *http.Request, from, to int, ranged bool) {
			if !ranged {
				_, _ = w.Write(blob)
				return
			}
			partial(w, from+7, to+7, size, blob[from:to+1])
		}, nil},
		"wrong header for each": {func(w http.ResponseWriter, _ *http.Request, from, to int, _ bool) {
			partial(w, from+7, to+7, size, blob[from:to+1])
		}, registry.ErrDigest},
		"shifted range": {func(w http.ResponseWriter, _ *http.Request, from, to int, _ bool) {
			shift := min(1, size-1-to)
			partial(w, from, to, size, blob[from+shift:to+1+shift])
		}, registry.ErrDigest},
		"ranges are ignored": {func(w http.ResponseWriter, _ *http.Request, _, _ int, _ bool) { _, _ = w.Write(blob) }, nil},
		"ranges are refused": {func(w http.ResponseWriter, _ *http.Request, _, _ int, ranged bool) {
			if ranged {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			_, _ = w.Write(blob)
		}, nil},
		"shorter range, said so": {func(w http.ResponseWriter, _ *http.Request, from, to int, ranged bool) {
			if !ranged {
				_, _ = w.Write(blob)
				return
			}
			w.Header().Set("Content-Length", fmt.Sprint((to+1-from)/2))
			partial(w, from, to, size, blob[from:from+(to+1-from)/2])
		}, nil},
		"shorter, not said": {func(w http.ResponseWriter, _ *http.Request, from, to int, _ bool) {
			w.Header().Set("Transfer-Encoding", "chunked")
			partial(w, from, to, size, blob[from:from+(to+1-from)/2])
		}, registry.ErrTruncated},
		"longer range, said so": {func(w http.ResponseWriter, _ *http.Request, from, to int, ranged bool) {
			if !ranged {
				_, _ = w.Write(blob)
				return
			}
			body := append(bytes.Clone(blob[from:to+1]), "more"...)
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			partial(w, from, to, size, body)
		}, nil},
		"longer range, not said": {func(w http.ResponseWriter, _ *http.Request, from, to int, _ bool) {
			w.Header().Set("Transfer-Encoding", "chunked")
			partial(w, from, to, size, append(bytes.Clone(blob[from:to+1]), "more"...))
		}, nil},
	} {
		t.Run(strings.ReplaceAll(name, ",", ""), func(t *testing.T) { tryWrongAnswer(t, big, test) })
	}
}

func TestWrongBodies(t *testing.T) {
	big := bigLayer(t)
	blob, size := big.Blob, len(big.Blob)
	garbled := bytes.Clone(blob)
	garbled[size-1000] ^= 1
	var requests atomic.Int64
	for name, test := range map[string]wrongAnswer{
		"less than the length": {func(w http.ResponseWriter, _ *http.Request, from, to int, _ bool) {
			hijacked(w, fmt.Sprintf("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\nContent-Length: %d\r\nConnection: close",
				from, to, size, to+1-from), blob[from:(from+to+1)/2])
		}, registry.ErrTruncated}, // taken up where it ends, but not for ever
		"more than the length": {func(w http.ResponseWriter, _ *http.Request, from, to int, _ bool) {
			hijacked(w, fmt.Sprintf("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\nContent-Length: %d\r\nConnection: close",
				from, to, size, to+1-from), append(bytes.Clone(blob[from:to+1]), "more"...))
		}, nil},
		"another ETag each time": {func(w http.ResponseWriter, _ *http.Request, from, to int, _ bool) {
			w.Header().Set("ETag", fmt.Sprintf("%q", fmt.Sprint(requests.Add(1))))
			partial(w, from, to, size, blob[from:to+1])
		}, nil},
		"another content each time": {func(w http.ResponseWriter, _ *http.Request, from, to int, _ bool) {
			n := requests.Add(1)
			w.Header().Set("ETag", fmt.Sprintf("%q", fmt.Sprint(n)))
			partial(w, from, to, size, bytes.Repeat([]byte{byte(n)}, to+1-from))
		}, registry.ErrDigest},
		"one byte is wrong": {func(w http.ResponseWriter, _ *http.Request, from, to int, _ bool) {
			partial(w, from, to, size, garbled[from:to+1])
		}, registry.ErrDigest},
		"wrong, then silent": {func(w http.ResponseWriter, r *http.Request, from, to int, _ bool) {
			w.Header().Set("Content-Length", fmt.Sprint(to+1-from))
			partial(w, from, to, size, bytes.Repeat([]byte("x"), (to+1-from)/2))
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, registry.ErrStalled},
		"compressed on the way": {func(w http.ResponseWriter, _ *http.Request, _, _ int, _ bool) {
			w.Header().Set("Content-Encoding", "gzip")
			z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed)
			_, _ = z.Write(blob)
			_ = z.Close()
		}, registry.ErrDigest},
		"said to be compressed": {func(w http.ResponseWriter, _ *http.Request, _, _ int, _ bool) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Set("Content-Length", fmt.Sprint(size))
			_, _ = w.Write(blob)
		}, nil},
		"HTTP/1.0 without a length": {func(w http.ResponseWriter, _ *http.Request, _, _ int, _ bool) {
			hijacked(w, "HTTP/1.0 200 OK", blob)
		}, nil},
		"HTTP/1.0 without a length, cut": {func(w http.ResponseWriter, _ *http.Request, _, _ int, _ bool) {
			hijacked(w, "HTTP/1.0 200 OK", blob[:size/2])
		}, registry.ErrTruncated},
		"redirect to a host that is down": {func(w http.ResponseWriter, r *http.Request, _, _ int, _ bool) {
			http.Redirect(w, r, "http://127.0.0.1:1/blob", http.StatusTemporaryRedirect)
		}, registry.ErrUnavailable},
	} {
		t.Run(strings.ReplaceAll(name, ",", ""), func(t *testing.T) { tryWrongAnswer(t, big, test) })
	}
}

// bigLayer is fetched by several connections.
func bigLayer(t *testing.T) registrytest.Layer {
	return registrytest.NewLayer(t, ocispec.MediaTypeImageLayer, map[string][]byte{"big": noise(20<<20, 11)})
}

// tryWrongAnswer pulls from a mirror that answers wrongly, then from a registry that does, then from the same when it is healed.
func tryWrongAnswer(t *testing.T, big registrytest.Layer, test wrongAnswer) {
	bad, own := registrytest.NewMemory(t), registrytest.NewMemory(t)
	bad.Add("a/b", "v1", image(big))
	own.Add("a/b", "v1", image(big))
	var healed atomic.Bool
	bad.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if healed.Load() || !strings.HasSuffix(r.URL.Path, "/blobs/"+big.Descriptor().Digest.String()) {
			return false
		}
		from, to, ranged := asked(r, len(big.Blob))
		test.answer(w, r, from, to, ranged)
		return true
	}
	n := newNode(t, registry.Config{
		NoProgress: 500 * time.Millisecond,
		Mirrors: map[string][]registry.Endpoint{
			own.Host: {{URL: "http://" + bad.Host}, {URL: "http://" + own.Host}}, bad.Host: {{URL: "http://" + bad.Host}},
		},
	})
	n.config.Connections, n.config.KeepDownloads = 3, time.Hour
	n.restart(t)
	start := time.Now()
	n.pull(t, own.Host+"/a/b:v1")
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("with another endpoint it took %v", took)
	}
	n.wantLayers(t, big)
	if err := errors.Join(n.Remove(t.Context(), own.Host+"/a/b:v1"), n.Collect(t.Context())); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	_, err := n.Pull(t.Context(), bad.Host+"/a/b:v1", registry.Auth{})
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("alone it took %v", took)
	}
	t.Log(err)
	if !errors.Is(err, test.alone) {
		t.Fatalf("alone: %v, want %v", err, test.alone)
	}
	healed.Store(true)
	n.pull(t, bad.Host+"/a/b:v1")
	n.wantLayers(t, big)
	if err := n.Remove(t.Context(), bad.Host+"/a/b:v1"); err != nil {
		t.Fatal(err)
	}
	n.wantClean(t)
}
