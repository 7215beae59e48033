package imagesvc_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// TestResume cuts a pull of a large layer in the middle, by an error, by a stall, by its caller, and by a restart: the next pull
// asks for what is missing only.
func TestResume(t *testing.T) {
	big := registrytest.NewLayer(t, ocispec.MediaTypeImageLayer, map[string][]byte{"big": noise(24<<20, 7)})
	blob := "/blobs/" + big.Descriptor().Digest.String()
	for name, cut := range map[string]func(t *testing.T, n *node, m *registrytest.Memory, stuck <-chan struct{}) error{
		"error or stall": func(t *testing.T, n *node, m *registrytest.Memory, _ <-chan struct{}) error {
			_, err := n.Pull(t.Context(), m.Host+"/a/b:v1", registry.Auth{})
			return err
		},
		"restart": func(t *testing.T, n *node, m *registrytest.Memory, stuck <-chan struct{}) error {
			done := n.begin(t.Context(), m.Host+"/a/b:v1")
			<-stuck
			for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				if p := n.Progress(""); len(p) == 1 && len(p[0].Layers) == 1 && p[0].Layers[0].Fetched >= 13<<20 {
					break
				}
			}
			n.restart(t)
			return <-done
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := registrytest.NewMemory(t)
			m.Add("a/b", "v1", image(big))
			var sick atomic.Bool
			var sent atomic.Int64
			stuck := make(chan struct{}, 10)
			sick.Store(true)
			m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, blob) {
					return false
				}
				from, to := int64(0), int64(len(big.Blob))-1
				if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err == nil || from > 0 {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(big.Blob)))
					w.Header().Set("Content-Length", fmt.Sprint(to+1-from))
					w.WriteHeader(http.StatusPartialContent)
				}
				part := big.Blob[from : to+1]
				if sick.Load() && len(part) > 1<<20 {
					part = part[:len(part)-1<<20]
				}
				n, _ := w.Write(part)
				sent.Add(int64(n))
				if sick.Load() { // the rest never comes
					w.(http.Flusher).Flush()
					stuck <- struct{}{}
					<-r.Context().Done()
				}
				return true
			}
			n := newNode(t, direct(m))
			n.config.KeepDownloads, n.config.Connections = time.Hour, 2
			n.reg.NoProgress = 300 * time.Millisecond
			if name == "restart" {
				n.reg.NoProgress = time.Minute
			}
			n.restart(t)
			if err := cut(t, n, m, stuck); err == nil {
				t.Fatal("the pull succeeded")
			}
			sick.Store(false)
			before := sent.Load()
			n.pull(t, m.Host+"/a/b:v1")
			if again := sent.Load() - before; again >= int64(len(big.Blob))/2 {
				t.Errorf("%d bytes of %d were sent again, %d before", again, len(big.Blob), before)
			}
			if err := n.Remove(t.Context(), m.Host+"/a/b:v1"); err != nil && !errors.Is(err, imagesvc.ErrNotFound) {
				t.Fatal(err)
			}
			n.wantClean(t)
		})
	}
}

// What is behind an error of a large layer is not fetched, nor kept: the next pull gets what may have been damaged anew.
func TestInvalidLayerEndsItsDownload(t *testing.T) {
	big := registrytest.NewLayer(t, ocispec.MediaTypeImageLayer, map[string][]byte{"big": noise(64<<20, 7)})
	for _, artifact := range []bool{false, true} {
		m := registrytest.NewMemory(t)
		img := image(big)
		if artifact {
			img.Manifest.Config.MediaType, img.Manifest.ArtifactType = ocispec.MediaTypeEmptyJSON, "application/x-test"
			img.Manifest.Layers[0].MediaType = "application/octet-stream"
			img.Manifest.Layers[0].Annotations = map[string]string{ocispec.AnnotationTitle: "file"}
			img.Seal()
		}
		m.Add("a/b", "v1", img)
		var sent atomic.Int64
		blob := "/blobs/" + img.Manifest.Layers[0].Digest.String()
		m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, blob) || r.Method != http.MethodGet {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(big.Blob)))
			for rest := big.Blob; len(rest) > 0; rest = rest[min(len(rest), 1<<20):] {
				n, err := w.Write(rest[:min(len(rest), 1<<20)])
				if sent.Add(int64(n)); err != nil {
					break
				}
				time.Sleep(10 * time.Millisecond) // a network
			}
			return true
		}
		n := newNode(t, direct(m))
		n.config.Limits.Bytes, n.config.Connections, n.config.KeepDownloads = 1<<20, 1, time.Hour
		n.restart(t)
		_, err := n.Pull(t.Context(), m.Host+"/a/b:v1", registry.Auth{})
		if !errors.Is(err, imagesvc.ErrInvalid) || !strings.Contains(err.Error(), "image.max_layer_size") {
			t.Errorf("artifact %v: %v", artifact, err)
		}
		if sent.Load() > 40<<20 {
			t.Errorf("artifact %v: %d bytes of %d were sent", artifact, sent.Load(), len(big.Blob))
		}
		n.wantClean(t)
	}
}
