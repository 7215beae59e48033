package imagesvc_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
	"criserver/pkg/record"
	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/overlay"
)

func TestMain(m *testing.M) {
	logrus.SetLevel(logrus.FatalLevel) // the tests look at errors, not at messages
	os.Exit(m.Run())
}

// node is an image service on a real snapshotter, which can be stopped and started.
type node struct {
	*imagesvc.Service
	root   string
	config imagesvc.Config
	// settings are made of reg, but for what a test has set.
	settings imagesvc.Settings
	reg      registry.Config
	layers   *overlay.Snapshotter
	db       *record.DB
}

func newNode(t testing.TB, reg registry.Config) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking layers needs root")
	}
	n := &node{root: t.TempDir(), reg: reg}
	n.config = imagesvc.Config{Root: n.root, LayerRoot: filepath.Join(n.root, "overlay"), ParallelLayers: 4}
	if n.reg.NoProgress == 0 {
		n.reg.NoProgress = 5 * time.Second
	}
	n.reg.Backoff = time.Millisecond
	n.start(t)
	t.Cleanup(func() { n.stop(t) })
	return n
}

func (n *node) start(t testing.TB) {
	t.Helper()
	var err error
	if n.layers, err = overlay.New(n.config.LayerRoot, overlay.Options{}); err != nil {
		t.Fatal(err)
	}
	if n.db, err = record.Open(t.Context(), filepath.Join(n.root, "images.db"), record.Options{Sync: true}); err != nil {
		t.Fatal(err)
	}
	client, err := registry.New(n.reg)
	if err != nil {
		t.Fatal(err)
	}
	n.settings.Registry = client
	if n.Service, err = imagesvc.New(t.Context(), n.config, n.db, n.settings, n.layers); err != nil {
		t.Fatal(err)
	}
}

func (n *node) stop(t testing.TB) {
	t.Helper()
	if n.Service == nil {
		return
	}
	n.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second) // t.Context has ended when cleanups run
	defer cancel()
	if err := n.layers.Close(ctx); err != nil {
		t.Error(err)
	}
	if err := n.db.Close(); err != nil {
		t.Error(err)
	}
	n.Service = nil
}

func (n *node) restart(t testing.TB) {
	t.Helper()
	n.stop(t)
	n.start(t)
}

func (n *node) pull(t testing.TB, name string) string {
	t.Helper()
	id, err := n.Pull(t.Context(), name, registry.Auth{})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (n *node) image(t testing.TB, name string) imagesvc.Image {
	t.Helper()
	img, err := n.Resolve(name)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// diffIDs are the committed layers, sorted.
func (n *node) diffIDs(t testing.TB) []digest.Digest {
	t.Helper()
	all, err := n.layers.ListLayers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func (n *node) wantLayers(t testing.TB, layers ...registrytest.Layer) {
	t.Helper()
	want := []digest.Digest{}
	for _, l := range layers {
		want = append(want, l.DiffID())
	}
	slices.Sort(want)
	if got := n.diffIDs(t); !slices.Equal(got, slices.Compact(want)) {
		t.Errorf("layers %v, want %v", got, want)
	}
}

// wantClean fails if the node has anything of any image.
func (n *node) wantClean(t testing.TB) {
	t.Helper()
	if got := n.List(); len(got) > 0 {
		t.Errorf("images are left: %v", got)
	}
	if err := n.Collect(t.Context()); err != nil {
		t.Error(err)
	}
	n.wantLayers(t)
	for _, dir := range []string{"overlay/stage", "content/sha256", "downloads"} {
		left, err := os.ReadDir(filepath.Join(n.root, dir))
		if err != nil {
			t.Error(err)
		}
		for _, f := range left {
			t.Errorf("%s/%s is left", dir, f.Name())
		}
	}
	if info, err := n.FsInfo(t.Context()); info.Images != (snapshot.Usage{}) || err != nil {
		t.Errorf("in use: %+v, %v", info, err)
	}
}

// readFile reads a file as a container of the image sees it.
func (n *node) readFile(t testing.TB, img imagesvc.Image, name string) []byte {
	t.Helper()
	mounts, err := n.layers.View(t.Context(), "test", img.DiffIDs)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := snapshot.MountAll(mounts, dir); err != nil {
		t.Fatal(err)
	}
	data, readErr := os.ReadFile(filepath.Join(dir, name))
	if err := snapshot.Unmount(dir); err != nil {
		t.Fatal(err)
	}
	if err := n.layers.Remove(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	if readErr != nil {
		t.Fatal(readErr)
	}
	return data
}

// layer has one file of some size, so that it takes more than one read.
func layer(t testing.TB, name string) registrytest.Layer {
	t.Helper()
	return registrytest.NewLayer(t, ocispec.MediaTypeImageLayerGzip, map[string][]byte{name: bytes.Repeat([]byte(name+" "), 50_000)})
}

func image(layers ...registrytest.Layer) *registrytest.Image {
	return registrytest.NewImage(runtime.GOARCH, layers...)
}

// direct has a registry asked over plain HTTP only, so that requests can be counted.
func direct(m *registrytest.Memory) registry.Config {
	return registry.Config{Mirrors: map[string][]registry.Endpoint{m.Host: {{URL: "http://" + m.Host}}}}
}
