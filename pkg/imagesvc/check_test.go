package imagesvc_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

func (n *node) check(t testing.TB, repair bool) []imagesvc.Finding {
	t.Helper()
	found, err := n.Check(t.Context(), repair)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// What is damaged is found, named, and made anew, from a kept blob or the registry, and nothing else is fetched.
func TestCheckRepairs(t *testing.T) {
	for _, keep := range []bool{false, true} {
		img := twoLayers(t, ocispec.MediaTypeImageLayerGzip)
		server := registrytest.Start(t, registrytest.Options{})
		server.Push(t, "a/b", "v1", img)
		for name, test := range map[string]struct {
			damage func(t *testing.T, n *node, tree string) error
			kind   string
			says   string
		}{
			"content": {func(_ *testing.T, _ *node, tree string) error {
				return os.WriteFile(filepath.Join(tree, "etc/release"), []byte("owl"), 0o644)
			}, "layer", "etc/release"},
			"missing file": {func(_ *testing.T, _ *node, tree string) error { return os.Remove(filepath.Join(tree, "dir/file")) }, "layer", "dir/file"},
			"extra file": {func(_ *testing.T, _ *node, tree string) error {
				return os.WriteFile(filepath.Join(tree, "extra"), nil, 0o644)
			}, "layer", "extra"},
			"mode": {func(_ *testing.T, _ *node, tree string) error {
				return os.Chmod(filepath.Join(tree, "dir/file"), 0o4755)
			}, "layer", "dir/file"},
			"directory": {func(_ *testing.T, _ *node, tree string) error { return os.RemoveAll(tree) }, "layer", "directory is missing"},
			"layer":     {func(_ *testing.T, _ *node, tree string) error { return os.RemoveAll(filepath.Dir(tree)) }, "layer", "directory is missing"},
			"file instead": {func(_ *testing.T, _ *node, tree string) error {
				return errors.Join(os.RemoveAll(tree), os.WriteFile(tree, nil, 0o644))
			}, "layer", "directory is missing"},
			"record":   {func(_ *testing.T, _ *node, tree string) error { return os.Remove(filepath.Join(tree, "../layer.json")) }, "layer", "record is missing"},
			"metadata": {func(_ *testing.T, _ *node, tree string) error { return os.Remove(filepath.Join(tree, "../meta")) }, "layer", "metadata is missing"},
			"metadata cut": {func(_ *testing.T, _ *node, tree string) error {
				return os.Truncate(filepath.Join(tree, "../meta"), 30)
			}, "layer", "metadata is damaged"},
			"configuration": {func(_ *testing.T, n *node, _ string) error {
				return os.Truncate(filepath.Join(n.root, "content/sha256", img.ID().Encoded()), 3)
			}, "blob", "damaged"},
			"manifest": {func(_ *testing.T, n *node, _ string) error {
				return os.Remove(filepath.Join(n.root, "content/sha256", img.Digest().Encoded()))
			}, "blob", "not found"},
			"kept blob": {func(t *testing.T, n *node, _ string) error {
				if !keep {
					t.Skip("none is kept")
				}
				return os.Remove(filepath.Join(n.root, "content/sha256", img.Manifest.Layers[0].Digest.Encoded()))
			}, "blob", "not found"},
		} {
			t.Run(name, func(t *testing.T) {
				n := newNode(t, registry.Config{})
				n.config.KeepBlobs = keep
				n.restart(t)
				id := n.pull(t, server.Host+"/a/b:v1")
				if found := n.check(t, false); len(found) > 0 {
					t.Fatalf("nothing is wrong, but found %+v", found)
				}
				tree, _, err := n.layers.Tree(t.Context(), img.Layers[1].DiffID())
				if err != nil {
					t.Fatal(err)
				}
				if err := test.damage(t, n, tree); err != nil {
					t.Fatal(err)
				}
				for range 2 { // looking changes nothing
					found := n.check(t, false)
					if len(found) != 1 || found[0].Kind != test.kind || !strings.Contains(found[0].Problem, test.says) || found[0].Repaired || found[0].Images[0].String() != id {
						t.Fatalf("found %+v", found)
					}
				}
				found := n.check(t, true)
				if len(found) != 1 || !found[0].Repaired || found[0].Action == "" {
					t.Fatalf("found %+v", found)
				}
				if kept := strings.Contains(found[0].Action, "kept"); test.kind == "layer" && kept != keep {
					t.Errorf("%s", found[0].Action)
				}
				if found := n.check(t, false); len(found) > 0 {
					t.Errorf("after the repair: %+v", found)
				}
				n.wantTwoLayers(t, id)
				n.restart(t)
				n.wantTwoLayers(t, id)
			})
		}
	}
}

// A pull repairs what it sees missing, also if the registry says that nothing has changed; and so does one after an image has
// turned out not to be ready.
func TestMissingLayerIsNotServed(t *testing.T) {
	server := registrytest.Start(t, registrytest.Options{})
	img := twoLayers(t, ocispec.MediaTypeImageLayerGzip)
	server.Push(t, "a/b", "v1", img)
	for name, notice := range map[string]func(n *node, id string) error{
		"by the pull": func(*node, string) error { return nil },
		"by its use": func(n *node, id string) error {
			if _, err := n.Ready(t.Context(), id); !errors.Is(err, imagesvc.ErrNotFound) || !strings.Contains(err.Error(), "must be pulled again") {
				return fmt.Errorf("ready: %w", err)
			}
			if _, err := n.Resolve(id); !errors.Is(err, imagesvc.ErrNotFound) {
				return fmt.Errorf("resolve: %w", err)
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, registry.Config{})
			id := n.pull(t, server.Host+"/a/b:v1")
			if _, err := n.Ready(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			tree, _, err := n.layers.Tree(t.Context(), img.Layers[1].DiffID())
			if err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(filepath.Dir(tree)); err != nil {
				t.Fatal(err)
			}
			if err := notice(n, id); err != nil {
				t.Fatal(err)
			}
			n.pull(t, server.Host+"/a/b:v1")
			if _, err := n.Ready(t.Context(), id); err != nil {
				t.Error(err)
			}
			n.wantTwoLayers(t, id)
			n.restart(t)
			n.wantTwoLayers(t, id)
		})
	}
}

// A layer whose tar cannot be written again, since it has a name twice, is verified too.
func TestCheckOfInexactLayer(t *testing.T) {
	server := registrytest.Start(t, registrytest.Options{})
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, content := range []string{"first", "again"} {
		if err := w.WriteHeader(&tar.Header{Name: "twice", Mode: 0o640, Size: 5, ModTime: time.Unix(1, 500_000_000), Format: tar.FormatPAX}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img := registrytest.NewImage(runtime.GOARCH, registrytest.Layer{MediaType: ocispec.MediaTypeImageLayer, Plain: buf.Bytes(), Blob: buf.Bytes()})
	server.Push(t, "a/b", "v1", img)
	n := newNode(t, registry.Config{})
	n.pull(t, server.Host+"/a/b:v1")
	if found := n.check(t, false); len(found) > 0 {
		t.Fatalf("nothing is wrong, but found %+v", found)
	}
	tree, _, err := n.layers.Tree(t.Context(), img.Layers[0].DiffID())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "twice"), []byte("AGAIN"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(tree, "twice"), time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if found := n.check(t, true); len(found) != 1 || !strings.Contains(found[0].Problem, "other content") || !found[0].Repaired {
		t.Fatalf("found %+v", found)
	}
	if found := n.check(t, false); len(found) > 0 {
		t.Errorf("after the repair: %+v", found)
	}
}

// What cannot be had stays as it is, and is said so.
func TestCheckCannotRepair(t *testing.T) {
	m := registrytest.NewMemory(t)
	img := twoLayers(t, ocispec.MediaTypeImageLayerGzip)
	m.Add("a/b", "v1", img)
	n := newNode(t, direct(m))
	id := n.pull(t, m.Host+"/a/b:v1")
	m.Server.Close()
	tree, _, err := n.layers.Tree(t.Context(), img.Layers[0].DiffID())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "gone"), []byte("LOWER"), 0o644); err != nil {
		t.Fatal(err)
	}
	found := n.check(t, true)
	if len(found) != 1 || found[0].Repaired || !strings.Contains(found[0].Action, m.Host) {
		t.Errorf("found %+v", found)
	}
	n.wantTwoLayers(t, id)
}

// withoutLayer is a node with an image that is out of sight because a layer is gone.
func withoutLayer(t *testing.T) (n *node, imageID string) {
	t.Helper()
	server := registrytest.Start(t, registrytest.Options{})
	img := twoLayers(t, ocispec.MediaTypeImageLayerGzip)
	server.Push(t, "a/b", "v1", img)
	n = newNode(t, registry.Config{})
	id := n.pull(t, server.Host+"/a/b:v1")
	if err := n.layers.RemoveLayer(t.Context(), img.Layers[0].DiffID()); err != nil {
		t.Fatal(err)
	}
	n.restart(t)
	if len(n.List()) != 0 {
		t.Fatal("it is in sight")
	}
	return n, id
}

// An image that is out of sight because a layer is gone comes back.
func TestCheckBringsBack(t *testing.T) {
	n, id := withoutLayer(t)
	if found := n.check(t, true); len(found) != 1 || !found[0].Repaired || !strings.Contains(found[0].Problem, "missing") {
		t.Errorf("found %+v", found)
	}
	n.wantTwoLayers(t, id)
}

// So it does after a start without anybody's doing.
func TestMend(t *testing.T) {
	n, id := withoutLayer(t)
	n.Mend(t.Context())
	n.wantTwoLayers(t, id)
}
