package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"

	"criserver/pkg/imagesvc/registry/registrytest"
)

// TestRegistryRanges pulls a layer that is fetched by several connections, by mirrors that do ranges wrong: the next one has
// the image, or there is none.
func TestRegistryRanges(t *testing.T) {
	content := make([]byte, 20<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content) // never fails
	layer := registrytest.NewLayer(t, ocispec.MediaTypeImageLayer, map[string][]byte{"large": content})
	img := registrytest.NewImage(runtime.GOARCH, layer)
	good := registrytest.Start(t, registrytest.Options{})
	good.Push(t, "team/app", "v1", img)
	large := func(path string) bool { return strings.HasSuffix(path, img.Manifest.Layers[0].Digest.String()) }
	damaged := outcome{[]codes.Code{codes.Unavailable, codes.DataLoss, codes.Unknown}, nil}
	var ranges atomic.Int64
	var rows []row
	for _, bad := range []struct {
		name   string
		change func(w http.ResponseWriter, r *http.Request, code int, body []byte)
		alone  outcome
	}{
		{"in-order", func(w http.ResponseWriter, _ *http.Request, code int, body []byte) {
			if code == http.StatusPartialContent {
				ranges.Add(1)
			}
			w.WriteHeader(code)
			_, _ = w.Write(body)
		}, outcome{}},
		{"truncated", truncatedAt(12 << 20), damaged},
		{"shortened", shortening, damaged},
		{"wrong", lying, damaged},
		{"stalled", stalling, damaged},
		{"failing-in-the-middle", onPart(func(w http.ResponseWriter, r *http.Request, _ []byte) { failing(w, r, nil) }), damaged},
		{"wrong-in-the-middle", onPart(func(w http.ResponseWriter, r *http.Request, body []byte) {
			lying(w, r, http.StatusPartialContent, body)
		}), damaged},
		// Its wrong bytes are put together with those of the next one, which are right.
		{"wrong-then-failing", func(w http.ResponseWriter, r *http.Request, code int, body []byte) {
			onPart(func(w http.ResponseWriter, r *http.Request, _ []byte) { failing(w, r, nil) })(w, r, code, bytes.Repeat([]byte("x"), len(body)))
		}, damaged},
		// It is asked for the whole when its ranges are wrong in a way that shows.
		{"other-range", onPart(func(w http.ResponseWriter, _ *http.Request, body []byte) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(body)-1, len(layer.Blob)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(layer.Blob[:len(body)])
		}), outcome{}},
		{"range-that-lies", onPart(func(w http.ResponseWriter, _ *http.Request, body []byte) { // it is that of another part
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(layer.Blob[:len(body)])
		}), damaged},
		{"no-content-range", onPart(func(w http.ResponseWriter, _ *http.Request, body []byte) {
			w.Header().Del("Content-Range")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(body)
		}), outcome{}},
		// These two give all that was asked for, which is what counts.
		{"too-much", onPart(func(w http.ResponseWriter, _ *http.Request, body []byte) {
			w.Header().Del("Content-Length")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(append(bytes.Clone(body), "and more"...))
		}), outcome{}},
		{"other-size", onPart(func(w http.ResponseWriter, _ *http.Request, body []byte) {
			from, _, _ := strings.Cut(w.Header().Get("Content-Range"), "/")
			w.Header().Set("Content-Range", fmt.Sprintf("%s/%d", from, len(layer.Blob)*2))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(body)
		}), outcome{}},
		{"unsatisfiable", onPart(func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			w.Header().Del("Content-Length")
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		}), outcome{}},
	} {
		rows = append(rows, row{bad.name, fmt.Sprintf("%q", misbehaving(t, good.URL(), onBlobs(large, bad.change))), bad.alone})
	}
	// A server that knows no ranges is a slow one, no wrong one.
	rows = append(rows, row{"no-ranges", fmt.Sprintf("%q", misbehaving(t, good.URL(), func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		r.Header.Del("Range")
		next.ServeHTTP(w, r)
	})), outcome{}})
	n := newNode(t, mirrorsOf(rows, good.URL()))
	n.collect()
	before := n.stored()
	for _, r := range rows {
		t.Run(r.name+"/alone", func(t *testing.T) { n.try(t, before, r.name+".alone.test/"+repoTag, nil, r.alone) })
		t.Run(r.name+"/first", func(t *testing.T) { n.try(t, before, r.name+".first.test/"+repoTag, nil, outcome{}) })
	}
	if ranges.Load() < 3 {
		t.Errorf("the layer was fetched by %d ranges: the test did not test much", ranges.Load())
	}
}

// truncatedAt is a server that has only the beginning of a blob, and cuts the connection behind it.
func truncatedAt(end int) func(http.ResponseWriter, *http.Request, int, []byte) {
	return func(w http.ResponseWriter, _ *http.Request, code int, body []byte) {
		var from int
		if _, err := fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-", &from); err != nil {
			from = 0 // it is all of the blob
		}
		w.WriteHeader(code)
		_, _ = w.Write(body[:max(0, min(len(body), end-from))])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// onPart changes the answers for parts of a blob that do not begin at its beginning.
func onPart(change func(w http.ResponseWriter, r *http.Request, body []byte)) func(http.ResponseWriter, *http.Request, int, []byte) {
	return func(w http.ResponseWriter, r *http.Request, code int, body []byte) {
		if code == http.StatusPartialContent && !strings.HasPrefix(w.Header().Get("Content-Range"), "bytes 0-") {
			change(w, r, body)
			return
		}
		w.WriteHeader(code)
		_, _ = w.Write(body)
	}
}
