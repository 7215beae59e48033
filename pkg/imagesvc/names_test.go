package imagesvc_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry/registrytest"
)

func TestResolve(t *testing.T) {
	m := registrytest.NewMemory(t)
	one, two := image(layer(t, "one")), image(layer(t, "two"))
	m.Add("a/b", "v1", one)
	m.Add("a/c", "v1", two)
	n := newNode(t, direct(m))
	b, c := m.Host+"/a/b", m.Host+"/a/c"
	n.pull(t, b+":v1")
	n.pull(t, c+":v1")
	hex := one.ID().Encoded()
	for _, name := range []string{
		b + ":v1", b + "@" + one.Digest().String(), b + ":any@" + one.Digest().String(),
		"sha256:" + hex, hex, hex[:12], "sha256:" + hex[:12],
	} {
		if img, err := n.Resolve(name); err != nil || img.ID != one.ID() {
			t.Errorf("%s: %s, %v", name, img.ID, err)
		}
	}
	for _, name := range []string{
		"", b, b + ":v2", m.Host + "/x/y:v1", c + "@" + one.Digest().String(), "sha256:" + strings.Repeat("0", 64),
		hex[:3], "no name", one.Digest().Encoded(),
	} {
		if img, err := n.Resolve(name); !errors.Is(err, imagesvc.ErrNotFound) {
			t.Errorf("%q: %v, %v", name, img.Tags, err)
		}
	}
	// What a caller does with the answer is its own affair.
	n.image(t, b+":v1").Tags[0] = "changed"
	if n.image(t, b+":v1").Tags[0] != b+":v1" {
		t.Error("a caller changed an image")
	}
}

func TestTagMoves(t *testing.T) {
	m := registrytest.NewMemory(t)
	old, new := image(layer(t, "shared"), layer(t, "old")), image(layer(t, "shared"), layer(t, "new"))
	m.Add("a/b", "v1", old)
	n := newNode(t, direct(m))
	name := m.Host + "/a/b:v1"
	n.pull(t, name)
	m.Add("a/b", "v1", new)
	n.pull(t, name)
	check := func(t *testing.T) {
		if img := n.image(t, name); img.ID != new.ID() {
			t.Errorf("the tag names %s", img.ID)
		}
		img := n.image(t, m.Host+"/a/b@"+old.Digest().String())
		if img.ID != old.ID() || len(img.Tags) != 0 {
			t.Errorf("the old image is %s with tags %v", img.ID, img.Tags)
		}
		n.wantLayers(t, append(old.Layers, new.Layers...)...)
	}
	check(t)
	t.Run("after a restart", func(t *testing.T) { n.restart(t); check(t) })
	t.Run("and back", func(t *testing.T) {
		m.AddManifest("a/b", "v1", old.ManifestData)
		n.pull(t, name)
		if img := n.image(t, name); img.ID != old.ID() {
			t.Errorf("the tag names %s", img.ID)
		}
		if img := n.image(t, new.ID().String()); len(img.Tags) != 0 {
			t.Errorf("the image before has tags %v", img.Tags)
		}
	})
}

func TestRemove(t *testing.T) {
	m := registrytest.NewMemory(t)
	shared := layer(t, "shared")
	one, two := image(shared, layer(t, "one")), image(shared, layer(t, "two"))
	m.Add("a/b", "v1", one)
	m.Add("a/b", "v2", one)
	m.Add("x/y", "z", one)
	m.Add("a/c", "v1", two)
	n := newNode(t, direct(m))
	names := []string{m.Host + "/a/b:v1", m.Host + "/a/b:v2", m.Host + "/x/y:z"}
	for _, name := range names {
		n.pull(t, name)
	}
	n.pull(t, m.Host+"/a/c:v1")
	if img := n.image(t, names[0]); !slices.Equal(img.Tags, names) || len(img.Digests) != 2 || len(n.List()) != 2 {
		t.Fatalf("tags %v, digests %v, %d images", img.Tags, img.Digests, len(n.List()))
	}
	for range 2 {
		if err := n.Remove(t.Context(), names[1]); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range append(names, one.ID().String()) {
		if _, err := n.Resolve(name); !errors.Is(err, imagesvc.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := n.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.wantLayers(t, two.Layers...)
	if n.restart(t); len(n.List()) != 1 {
		t.Errorf("%d images after a restart", len(n.List()))
	}
	if err := n.Remove(t.Context(), two.ID().String()); err != nil {
		t.Fatal(err)
	}
	n.wantClean(t)
}

// The blob of a layer whose tar cannot be written again goes with its image, and comes again with the next image of the layer,
// which may be there still.
func TestBlobOfLayerThatStayed(t *testing.T) {
	m := registrytest.NewMemory(t)
	once := registrytest.NewLayer(t, ocispec.MediaTypeImageLayer, map[string][]byte{"f": bytes.Repeat([]byte("x"), 512)})
	twice := append(slices.Clone(once.Plain[:1024]), once.Plain...) // a name twice
	img := image(registrytest.Layer{MediaType: ocispec.MediaTypeImageLayer, Plain: twice, Blob: twice})
	m.Add("a/b", "v1", img)
	n := newNode(t, direct(m))
	n.pull(t, m.Host+"/a/b:v1")
	if _, err := n.layers.Prepare(t.Context(), "container", n.image(t, m.Host+"/a/b:v1").DiffIDs); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.Remove(t.Context(), m.Host+"/a/b:v1"), n.Collect(t.Context())); err != nil {
		t.Fatal(err)
	}
	n.pull(t, m.Host+"/a/b:v1")
	if got := n.image(t, m.Host+"/a/b:v1").Blobs; len(got) != 1 {
		t.Errorf("kept blobs: %v", got)
	}
	if err := n.Export(t.Context(), io.Discard, []string{m.Host + "/a/b:v1"}, imagesvc.FormatOCI); err != nil {
		t.Error(err)
	}
	if err := errors.Join(n.Remove(t.Context(), m.Host+"/a/b:v1"), n.layers.Remove(t.Context(), "container")); err != nil {
		t.Fatal(err)
	}
	n.wantClean(t)
}

// Layers of a container outlive their image, and go when both have gone.
func TestRemoveInUse(t *testing.T) {
	m := registrytest.NewMemory(t)
	img := image(layer(t, "one"), layer(t, "two"))
	m.Add("a/b", "v1", img)
	n := newNode(t, direct(m))
	n.pull(t, m.Host+"/a/b:v1")
	if _, err := n.layers.Prepare(t.Context(), "container", n.image(t, m.Host+"/a/b:v1").DiffIDs); err != nil {
		t.Fatal(err)
	}
	before, err := n.FsInfo(t.Context())
	if err != nil || before.Images.Bytes == 0 || before.Images.Inodes == 0 || before.Path != n.config.LayerRoot {
		t.Fatalf("%+v, %v", before, err)
	}
	if err := n.Remove(t.Context(), m.Host+"/a/b:v1"); err != nil {
		t.Fatal(err)
	}
	n.wantLayers(t, img.Layers...)
	if after, err := n.FsInfo(t.Context()); after.Images != before.Images || err != nil {
		t.Errorf("in use: %+v, then %+v, %v", before, after, err)
	}
	// Pulled again, nothing is fetched again.
	blobs := m.Count("GET", img.Manifest.Layers[0].Digest.String())
	n.pull(t, m.Host+"/a/b:v1")
	if again := m.Count("GET", img.Manifest.Layers[0].Digest.String()); again != blobs {
		t.Error("a layer that is there was fetched")
	}
	if err := errors.Join(n.Remove(t.Context(), m.Host+"/a/b:v1"), n.layers.Remove(t.Context(), "container")); err != nil {
		t.Fatal(err)
	}
	n.wantClean(t)
}

func TestPinned(t *testing.T) {
	m := registrytest.NewMemory(t)
	m.Add("kube/proxy", "v1", image(layer(t, "one")))
	m.Add("kube/a/b", "v1", image(layer(t, "two")))
	n := newNode(t, direct(m))
	n.stop(t)
	n.settings.Pinned = []string{m.Host + "/kube/*:v1"}
	n.start(t)
	for name, want := range map[string]bool{"/kube/proxy:v1": true, "/kube/a/b:v1": false} {
		if n.pull(t, m.Host+name); n.image(t, m.Host+name).Pinned != want {
			t.Errorf("%s: pinned = %v", name, !want)
		}
	}
	settings := n.settings
	settings.Pinned = []string{"[a"}
	if err := n.Change(settings); err == nil || !strings.Contains(err.Error(), "[a") {
		t.Errorf("a bad pattern: %v", err)
	}
	settings.Pinned = []string{m.Host + "/kube/a/*:v1"}
	if err := n.Change(settings); err != nil || !n.image(t, m.Host+"/kube/a/b:v1").Pinned || n.image(t, m.Host+"/kube/proxy:v1").Pinned {
		t.Errorf("changed settings do not count: %v", err)
	}
}

// Two images can have the same layer twice, and in another order.
func TestLayerMoreThanOnce(t *testing.T) {
	m := registrytest.NewMemory(t)
	one, two := layer(t, "one"), layer(t, "two")
	m.Add("a/b", "v1", image(one, two, one))
	m.Add("a/b", "v2", image(two, one))
	n := newNode(t, direct(m))
	n.pull(t, m.Host+"/a/b:v1")
	n.pull(t, m.Host+"/a/b:v2")
	n.wantLayers(t, one, two)
	for _, l := range []registrytest.Layer{one, two} {
		if got := m.Count("GET", digest.FromBytes(l.Blob).String()); got != 1 {
			t.Errorf("a layer was fetched %d times", got)
		}
	}
}
