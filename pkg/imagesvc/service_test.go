package imagesvc

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/record"
	"criserver/pkg/snapshot/overlay"
)

// fakeRegistry serves what is put into it, and may be told to misbehave. The real ones are met in test/e2e.
type fakeRegistry struct {
	*httptest.Server
	mu        sync.Mutex
	manifests map[string][]byte
	types     map[string]string
	blobs     map[digest.Digest][]byte
	gets      map[digest.Digest]int
	// misbehave may answer a request itself: then it returns true.
	misbehave func(w http.ResponseWriter, r *http.Request) bool
}

func newRegistry(t *testing.T) *fakeRegistry {
	t.Helper()
	f := &fakeRegistry{manifests: map[string][]byte{}, types: map[string]string{}, blobs: map[digest.Digest][]byte{}, gets: map[digest.Digest]int{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeRegistry) host() string { return strings.TrimPrefix(f.URL, "http://") }

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	misbehave := f.misbehave
	f.mu.Unlock()
	if misbehave != nil && misbehave(w, r) {
		return
	}
	if name, ref, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/"); ok {
		f.mu.Lock()
		data, found := f.manifests[name+":"+ref]
		kind := f.types[name+":"+ref]
		f.mu.Unlock()
		if !found {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(data).String())
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		if r.Method != http.MethodHead {
			_, _ = w.Write(data)
		}
		return
	}
	if _, d, ok := strings.Cut(r.URL.Path, "/blobs/"); ok {
		f.mu.Lock()
		data, found := f.blobs[digest.Digest(d)]
		f.gets[digest.Digest(d)]++
		f.mu.Unlock()
		if !found {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		return
	}
	w.WriteHeader(http.StatusOK)
}

func (f *fakeRegistry) blob(data []byte, kind string) ocispec.Descriptor {
	d := digest.FromBytes(data)
	f.mu.Lock()
	f.blobs[d] = data
	f.mu.Unlock()
	return ocispec.Descriptor{MediaType: kind, Digest: d, Size: int64(len(data))}
}

func (f *fakeRegistry) manifest(name, kind string, v any) ocispec.Descriptor {
	data, _ := json.Marshal(v)
	d := digest.FromBytes(data)
	f.mu.Lock()
	defer f.mu.Unlock()
	repo, _, _ := strings.Cut(name, ":")
	for _, key := range []string{name, repo + ":" + d.String()} {
		f.manifests[key], f.types[key] = data, kind
	}
	return ocispec.Descriptor{MediaType: kind, Digest: d, Size: int64(len(data))}
}

// layer is a tar with files of the given names and content.
func layer(files map[string]string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, text := range files {
		_ = w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))})
		_, _ = w.Write([]byte(text))
	}
	_ = w.Close()
	return buf.Bytes()
}

func compressed(data []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, _ = w.Write(data)
	_ = w.Close()
	return buf.Bytes()
}

// image puts an image into the registry and returns its manifest and layers.
func (f *fakeRegistry) image(name string, layers ...[]byte) ocispec.Manifest {
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Config: ocispec.ImageConfig{Cmd: []string{name}}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(l))
		m.Layers = append(m.Layers, f.blob(compressed(l), ocispec.MediaTypeImageLayerGzip))
	}
	data, _ := json.Marshal(config)
	m.Config = f.blob(data, ocispec.MediaTypeImageConfig)
	f.manifest(name, ocispec.MediaTypeImageManifest, m)
	return m
}

type fixture struct {
	*Service
	t      *testing.T
	dir    string
	layers *overlay.Snapshotter
	db     *record.DB
	config registry.Config
}

func newFixture(t *testing.T, c registry.Config) *fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("overlay needs root")
	}
	f := &fixture{t: t, dir: t.TempDir(), config: c}
	f.open()
	t.Cleanup(f.close)
	return f
}

func (f *fixture) open() {
	f.t.Helper()
	ctx := f.t.Context()
	var err error
	if f.layers, err = overlay.New(filepath.Join(f.dir, "overlay")); err != nil {
		f.t.Fatal(err)
	}
	if f.db, err = record.Open(ctx, filepath.Join(f.dir, "images.db"), record.Options{Sync: true}); err != nil {
		f.t.Fatal(err)
	}
	client, err := registry.New(f.config)
	if err != nil {
		f.t.Fatal(err)
	}
	f.Service, err = New(ctx, Config{Root: f.dir, LayerRoot: filepath.Join(f.dir, "overlay"), ParallelLayers: 3, Pinned: []string{"*/pinned:*"}},
		f.db, client, f.layers)
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := errors.Join(f.layers.Close(ctx), f.db.Close()); err != nil {
		f.t.Error(err)
	}
}

func (f *fixture) pull(name string) string {
	f.t.Helper()
	id, err := f.Pull(f.t.Context(), name, registry.Auth{})
	if err != nil {
		f.t.Fatal(err)
	}
	return id
}

// nothing fails the test if something is visible or kept.
func (f *fixture) nothing() {
	f.t.Helper()
	if images := f.List(); len(images) > 0 {
		f.t.Errorf("images are visible: %v", images)
	}
	if err := f.Collect(f.t.Context()); err != nil {
		f.t.Error(err)
	}
	if layers, err := f.layers.ListLayers(f.t.Context()); err != nil || len(layers) > 0 {
		f.t.Errorf("layers are left: %v, %v", layers, err)
	}
}

func TestPullListRemove(t *testing.T) {
	reg := newRegistry(t)
	base, top := layer(map[string]string{"a": "1"}), layer(map[string]string{"b": "2"})
	m := reg.image("app:1", base, top)
	reg.image("pinned:1", base)
	f := newFixture(t, registry.Config{})
	id := f.pull(reg.host() + "/app:1")
	if id != m.Config.Digest.String() {
		t.Errorf("id = %s, want the configuration's digest %s", id, m.Config.Digest)
	}
	f.pull(reg.host() + "/pinned:1")
	if got := reg.gets[m.Layers[0].Digest]; got != 1 {
		t.Errorf("the shared layer was fetched %d times", got)
	}
	for _, name := range []string{reg.host() + "/app:1", id, id[7:], id[7:19], f.List()[1].Digests[0]} {
		if img, err := f.Resolve(name); err != nil || img.ID.String() != id || img.Pinned {
			t.Errorf("Resolve(%q) = %s, %v", name, img.ID, err)
		}
	}
	if img, err := f.Resolve(reg.host() + "/pinned:1"); err != nil || !img.Pinned {
		t.Errorf("pinned image: %+v, %v", img, err)
	}
	if _, err := f.Resolve(reg.host() + "/app:2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown tag: %v", err)
	}
	info, err := f.FsInfo(t.Context())
	if err != nil || info.UsedBytes <= 0 || info.Inodes < 2 {
		t.Errorf("FsInfo = %+v, %v", info, err)
	}
	for range 2 {
		if err := f.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if layers, _ := f.layers.ListLayers(t.Context()); len(layers) != 1 {
		t.Errorf("layers after the removal = %v, want the shared one", layers)
	}
	if err := f.Remove(t.Context(), reg.host()+"/pinned:1"); err != nil {
		t.Fatal(err)
	}
	f.nothing()
}

func TestTagMoves(t *testing.T) {
	reg := newRegistry(t)
	f := newFixture(t, registry.Config{})
	name := reg.host() + "/app:latest"
	reg.image("app:latest", layer(map[string]string{"v": "1"}))
	first := f.pull(name)
	reg.image("app:latest", layer(map[string]string{"v": "2"}))
	second := f.pull(name)
	if first == second {
		t.Fatal("the second pull brought the first image")
	}
	if img, err := f.Resolve(name); err != nil || img.ID.String() != second {
		t.Errorf("the tag names %s, %v", img.ID, err)
	}
	if img, err := f.Resolve(first); err != nil || len(img.Tags) != 0 || len(img.Digests) != 1 {
		t.Errorf("the old image: %+v, %v", img, err)
	}
	// One image of two repositories has both names, and goes with all of them.
	reg.image("app:latest", layer(map[string]string{"v": "2"}))
	m := reg.image("app:latest", layer(map[string]string{"v": "2"}))
	reg.manifest("other:x", ocispec.MediaTypeImageManifest, m)
	if id := f.pull(reg.host() + "/other:x"); id != second {
		t.Fatalf("id = %s, want %s", id, second)
	}
	if img, _ := f.Resolve(second); len(img.Tags) != 2 {
		t.Errorf("tags = %v", img.Tags)
	}
	if err := f.Remove(t.Context(), reg.host()+"/other:x"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Resolve(name); !errors.Is(err, ErrNotFound) {
		t.Errorf("the other name is left: %v", err)
	}
}

func TestConcurrentPullsFetchOnce(t *testing.T) {
	reg := newRegistry(t)
	base := layer(map[string]string{"a": strings.Repeat("x", 1<<20)})
	shared := reg.image("app0:1", base).Layers[0].Digest
	for i := range 5 {
		reg.image(fmt.Sprintf("app%d:1", i), base, layer(map[string]string{"n": fmt.Sprint(i)}))
	}
	f := newFixture(t, registry.Config{})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := f.Pull(t.Context(), fmt.Sprintf("%s/app%d:1", reg.host(), i%5), registry.Auth{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(f.List()); n != 5 {
		t.Errorf("%d images, want 5", n)
	}
	for d, n := range reg.gets {
		if n > 1 && d == shared {
			t.Errorf("the shared layer was fetched %d times", n)
		}
	}
}

func TestRestart(t *testing.T) {
	reg := newRegistry(t)
	whole := layer(map[string]string{"a": "1"})
	reg.image("whole:1", whole)
	m := reg.image("broken:1", layer(map[string]string{"b": "1"}))
	f := newFixture(t, registry.Config{})
	f.pull(reg.host() + "/whole:1")
	f.pull(reg.host() + "/broken:1")
	img, err := f.Resolve(m.Config.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	f.close()
	// What a failing disk takes is not served, and is fetched anew.
	func() {
		layers, err := overlay.New(filepath.Join(f.dir, "overlay"))
		if err != nil {
			t.Fatal(err)
		}
		if err := layers.RemoveLayer(t.Context(), img.DiffIDs[0]); err != nil {
			t.Fatal(err)
		}
		_ = layers.Close(t.Context())
	}()
	f.open()
	if _, err := f.Resolve(reg.host() + "/whole:1"); err != nil {
		t.Error(err)
	}
	if _, err := f.Resolve(reg.host() + "/broken:1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an image without its layer: %v", err)
	}
	f.pull(reg.host() + "/broken:1")
}

func TestHostileRegistries(t *testing.T) {
	plain := layer(map[string]string{"a": strings.Repeat("data", 100_000)})
	isBlob := func(r *http.Request, d digest.Digest) bool {
		return strings.HasSuffix(r.URL.Path, d.String()) && r.Method == http.MethodGet
	}
	for name, row := range map[string]struct {
		misbehave func(m ocispec.Manifest, w http.ResponseWriter, r *http.Request) bool
		want      error
	}{
		"wrong bytes": {func(m ocispec.Manifest, w http.ResponseWriter, r *http.Request) bool {
			if isBlob(r, m.Layers[0].Digest) {
				other := compressed(layer(map[string]string{"a": strings.Repeat("evil", 100_000)}))
				other = append(other, make([]byte, max(0, int(m.Layers[0].Size)-len(other)))...)
				w.Header().Set("Content-Length", fmt.Sprint(m.Layers[0].Size))
				_, _ = w.Write(other[:m.Layers[0].Size])
				return true
			}
			return false
		}, registry.ErrDigest},
		"truncated": {func(m ocispec.Manifest, w http.ResponseWriter, r *http.Request) bool {
			if isBlob(r, m.Layers[0].Digest) {
				w.Header().Set("Content-Length", fmt.Sprint(m.Layers[0].Size))
				_, _ = w.Write(make([]byte, 10))
				return true
			}
			return false
		}, registry.ErrTruncated},
		"no manifest": {func(_ ocispec.Manifest, w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				http.NotFound(w, r)
				return true
			}
			return false
		}, registry.ErrNotFound},
		"no layer": {func(m ocispec.Manifest, w http.ResponseWriter, r *http.Request) bool {
			if isBlob(r, m.Layers[0].Digest) {
				http.NotFound(w, r)
				return true
			}
			return false
		}, registry.ErrNotFound},
		"forbidden": {func(_ ocispec.Manifest, w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusForbidden)
			return true
		}, registry.ErrUnauthorized},
		"broken": {func(_ ocispec.Manifest, w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}, registry.ErrUnavailable},
		"stalls": {func(m ocispec.Manifest, w http.ResponseWriter, r *http.Request) bool {
			if isBlob(r, m.Layers[0].Digest) {
				w.Header().Set("Content-Length", fmt.Sprint(m.Layers[0].Size))
				_, _ = w.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0})
				_ = http.NewResponseController(w).Flush()
				select {
				case <-r.Context().Done():
				case <-time.After(10 * time.Second):
				}
				return true
			}
			return false
		}, registry.ErrStalled},
	} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t)
			m := reg.image("app:1", plain)
			f := newFixture(t, registry.Config{NoProgress: 500 * time.Millisecond})
			reg.mu.Lock()
			reg.misbehave = func(w http.ResponseWriter, r *http.Request) bool { return row.misbehave(m, w, r) }
			reg.mu.Unlock()
			_, err := f.Pull(t.Context(), reg.host()+"/app:1", registry.Auth{Username: "u", Password: "top-secret"})
			if !errors.Is(err, row.want) || strings.Contains(err.Error(), "top-secret") || !strings.Contains(err.Error(), reg.host()+"/app:1") {
				t.Errorf("err = %v, want %v", err, row.want)
			}
			f.nothing()
			reg.mu.Lock()
			reg.misbehave = nil
			reg.mu.Unlock()
			f.pull(reg.host() + "/app:1") // nothing is spoilt
		})
	}
}

func TestHostileImages(t *testing.T) {
	plain := layer(map[string]string{"a": "1"})
	for name, change := range map[string]func(reg *fakeRegistry, m *ocispec.Manifest){
		"diff ID": func(reg *fakeRegistry, m *ocispec.Manifest) {
			m.Layers[0] = reg.blob(compressed(layer(map[string]string{"a": "2"})), ocispec.MediaTypeImageLayerGzip)
		},
		"layers": func(_ *fakeRegistry, m *ocispec.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) },
		"escape": func(reg *fakeRegistry, m *ocispec.Manifest) {
			evil := layer(map[string]string{"../../evil": "x"})
			var config ocispec.Image
			_ = json.Unmarshal(reg.blobs[m.Config.Digest], &config)
			config.RootFS.DiffIDs = []digest.Digest{digest.FromBytes(evil)}
			data, _ := json.Marshal(config)
			m.Config = reg.blob(data, ocispec.MediaTypeImageConfig)
			m.Layers[0] = reg.blob(compressed(evil), ocispec.MediaTypeImageLayerGzip)
		},
		"config": func(reg *fakeRegistry, m *ocispec.Manifest) {
			m.Config = reg.blob([]byte("not json"), ocispec.MediaTypeImageConfig)
		},
		"artifact": func(_ *fakeRegistry, m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.example" },
		"many": func(_ *fakeRegistry, m *ocispec.Manifest) {
			for range 10_000 {
				m.Layers = append(m.Layers, m.Layers[0])
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t)
			m := reg.image("app:1", plain)
			change(reg, &m)
			reg.manifest("app:1", ocispec.MediaTypeImageManifest, m)
			f := newFixture(t, registry.Config{})
			if _, err := f.Pull(t.Context(), reg.host()+"/app:1", registry.Auth{}); err == nil {
				t.Error("the pull succeeded")
			} else {
				t.Log(err)
			}
			f.nothing()
		})
	}
	t.Run("another platform", func(t *testing.T) {
		reg := newRegistry(t)
		d := reg.manifest("x:1", ocispec.MediaTypeImageManifest, reg.image("x:1", plain))
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
		reg.manifest("app:1", ocispec.MediaTypeImageIndex, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d}})
		f := newFixture(t, registry.Config{})
		if _, err := f.Pull(t.Context(), reg.host()+"/app:1", registry.Auth{}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "s390x") {
			t.Errorf("err = %v", err)
		}
		f.nothing()
	})
}

func TestCancelledPull(t *testing.T) {
	reg := newRegistry(t)
	m := reg.image("app:1", layer(map[string]string{"a": "1"}))
	reached := make(chan struct{})
	var once sync.Once
	reg.misbehave = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, m.Layers[0].Digest.String()) {
			once.Do(func() { close(reached) })
			<-r.Context().Done()
			return true
		}
		return false
	}
	f := newFixture(t, registry.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := f.Pull(ctx, reg.host()+"/app:1", registry.Auth{})
		done <- err
	}()
	<-reached
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	reg.mu.Lock()
	reg.misbehave = nil
	reg.mu.Unlock()
	f.pull(reg.host() + "/app:1")
}
