package imagesvc_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
	"criserver/pkg/snapshot"
)

// twoLayers is an image whose upper layer changes the lower one.
func twoLayers(t testing.TB, mediaType string) *registrytest.Image {
	lower := map[string][]byte{"etc/release": []byte("old"), "gone": []byte("lower"), "big": bytes.Repeat([]byte("criserver "), 50_000)}
	upper := map[string][]byte{"etc/release": []byte("new"), ".wh.gone": nil, "dir/file": []byte("x")}
	return image(registrytest.NewLayer(t, mediaType, lower), registrytest.NewLayer(t, mediaType, upper))
}

// wantTwoLayers looks at what a container of twoLayers sees.
func (n *node) wantTwoLayers(t testing.TB, name string) imagesvc.Image {
	t.Helper()
	img := n.image(t, name)
	if got := n.readFile(t, img, "etc/release"); string(got) != "new" {
		t.Errorf("etc/release is %q", got)
	}
	if got := n.readFile(t, img, "big"); len(got) != 500_000 {
		t.Errorf("big has %d bytes", len(got))
	}
	return img
}

// What is exported is imported elsewhere as the same image, in both forms, with kept blobs and without.
func TestExportImport(t *testing.T) {
	for _, keep := range []bool{false, true} {
		for _, format := range []imagesvc.Format{imagesvc.FormatOCI, imagesvc.FormatDocker} {
			for _, mediaType := range []string{ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd, ocispec.MediaTypeImageLayer} {
				name := strings.Join([]string{map[bool]string{true: "kept"}[keep], string(format), mediaType[strings.LastIndexByte(mediaType, '.')+1:]}, " ")
				t.Run(name, func(t *testing.T) {
					m := registrytest.NewMemory(t)
					m.Add("a/b", "v1", twoLayers(t, mediaType))
					n := newNode(t, direct(m))
					n.config.KeepBlobs = keep
					n.restart(t)
					id := n.pull(t, m.Host+"/a/b:v1")
					var archive bytes.Buffer
					if err := n.Export(t.Context(), &archive, []string{m.Host + "/a/b:v1"}, format); err != nil {
						t.Fatal(err)
					}
					other := newNode(t, registry.Config{})
					images, err := other.Import(t.Context(), bytes.NewReader(archive.Bytes()), imagesvc.ImportOptions{})
					if err != nil || len(images) != 1 || images[0].ID.String() != id {
						t.Fatalf("imported %v, %v; want %s", images, err, id)
					}
					img := other.wantTwoLayers(t, m.Host+"/a/b:v1")
					exact := keep && (format == imagesvc.FormatOCI || mediaType != ocispec.MediaTypeImageLayerZstd) || mediaType == ocispec.MediaTypeImageLayer
					if same := img.Manifest == n.image(t, id).Manifest; same != exact && format == imagesvc.FormatOCI {
						t.Errorf("the manifest is the same: %t, want %t", same, exact)
					}
					// And once more, under another name, into the node that has it.
					if _, err := n.Import(t.Context(), &archive, imagesvc.ImportOptions{Name: "docker.io/other/name:v2"}); err != nil {
						t.Fatal(err)
					}
					if img := n.image(t, "docker.io/other/name:v2"); img.ID.String() != id || len(n.List()) != 1 {
						t.Errorf("it is another image: %v", n.List())
					}
					if err := other.Remove(t.Context(), id); err != nil {
						t.Fatal(err)
					}
					other.wantClean(t)
				})
			}
		}
	}
}

func TestImportRefused(t *testing.T) {
	n := newNode(t, registry.Config{})
	for name, data := range map[string]string{"empty": "", "text": "hello", "zip": "PK\x03\x04"} {
		if _, err := n.Import(t.Context(), strings.NewReader(data), imagesvc.ImportOptions{}); !errors.Is(err, imagesvc.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"UPPER", "a@" + image().ID().String()} {
		if _, err := n.Import(t.Context(), strings.NewReader(""), imagesvc.ImportOptions{Name: name}); !errors.Is(err, imagesvc.ErrInvalid) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(n.root, "imports")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	n.wantClean(t)
}

// A pushed image is pulled elsewhere as the same one.
func TestPush(t *testing.T) {
	for _, keep := range []bool{false, true} {
		server, target := registrytest.Start(t, registrytest.Options{}), registrytest.Start(t, registrytest.Options{User: "u", Password: "p"})
		img := twoLayers(t, ocispec.MediaTypeImageLayerZstd) // what is compressed anew is gzip
		server.Push(t, "a/b", "v1", img)
		n := newNode(t, registry.Config{})
		n.config.KeepBlobs = keep
		n.restart(t)
		id := n.pull(t, server.Host+"/a/b:v1")
		if _, err := n.Push(t.Context(), id, target.Host+"/x/y:v2", registry.Auth{}, nil); !errors.Is(err, registry.ErrUnauthorized) {
			t.Errorf("without credentials: %v", err)
		}
		auth := registry.Auth{Username: "u", Password: "p"}
		var mu sync.Mutex
		var told []imagesvc.LayerProgress
		d, err := n.Push(t.Context(), server.Host+"/a/b:v1", target.Host+"/x/y:v2", auth, func(p imagesvc.LayerProgress) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, p)
		})
		if err != nil || (d == img.Digest()) != keep {
			t.Fatalf("pushed %s, %v; pulled as %s", d, err, img.Digest())
		}
		if len(told) == 0 || !slices.ContainsFunc(told, func(p imagesvc.LayerProgress) bool { return p.State == imagesvc.LayerDone && p.Fetched == p.Size }) {
			t.Errorf("progress %v", told)
		}
		other := newNode(t, registry.Config{})
		if got, err := other.Pull(t.Context(), target.Host+"/x/y:v2", auth); err != nil || got != id {
			t.Fatalf("pulled %s, %v; want %s", got, err, id)
		}
		other.wantTwoLayers(t, id)
		// To the registry that has the layers: nothing is uploaded, and the manifest is the one that was pulled.
		if d, err := n.Push(t.Context(), id, server.Host+"/another/repo:v3", registry.Auth{}, nil); err != nil || d != img.Digest() {
			t.Errorf("within the registry: %s, %v; want %s", d, err, img.Digest())
		}
	}
}

func TestTag(t *testing.T) {
	m := registrytest.NewMemory(t)
	m.Add("a/b", "v1", image(layer(t, "one")))
	m.Add("a/b", "v2", image(layer(t, "two")))
	n := newNode(t, direct(m))
	one, two := n.pull(t, m.Host+"/a/b:v1"), n.pull(t, m.Host+"/a/b:v2")
	if img, err := n.Tag(t.Context(), one, "busybox"); err != nil || img.ID.String() != one || !slices.Contains(img.Tags, "docker.io/library/busybox:latest") {
		t.Fatalf("%+v, %v", img, err)
	}
	if _, err := n.Tag(t.Context(), two, "busybox:latest"); err != nil { // it moves
		t.Fatal(err)
	}
	n.restart(t)
	if img := n.image(t, "busybox"); img.ID.String() != two || len(n.image(t, one).Tags) != 1 {
		t.Errorf("the tag names %s, the other has %v", img.ID, n.image(t, one).Tags)
	}
	for target, want := range map[string]error{"": imagesvc.ErrInvalid, "A": imagesvc.ErrInvalid, "a@" + one: imagesvc.ErrInvalid} {
		if _, err := n.Tag(t.Context(), one, target); !errors.Is(err, want) {
			t.Errorf("%q: %v", target, err)
		}
	}
	if _, err := n.Tag(t.Context(), "no/such", "x"); !errors.Is(err, imagesvc.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// write changes files of a snapshot as a container does.
func (n *node) write(t testing.TB, key string, img imagesvc.Image, change func(root string) error) {
	t.Helper()
	mounts, err := n.layers.Prepare(t.Context(), key, img.DiffIDs)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := snapshot.MountAll(mounts, root); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := snapshot.Unmount(root); err != nil {
			t.Error(err)
		}
	}()
	if err := change(root); err != nil {
		t.Fatal(err)
	}
}

func TestCommit(t *testing.T) {
	m := registrytest.NewMemory(t)
	m.Add("a/b", "v1", twoLayers(t, ocispec.MediaTypeImageLayerGzip))
	n := newNode(t, direct(m))
	base := n.image(t, n.pull(t, m.Host+"/a/b:v1"))
	n.write(t, "container", base, func(root string) error {
		return errors.Join(os.WriteFile(filepath.Join(root, "added"), []byte("by the container"), 0o640), os.Remove(filepath.Join(root, "big")))
	})
	options := imagesvc.CommitOptions{Snapshot: "container", Base: base.ID, Name: "own/image:v1", Author: "somebody", Comment: "why",
		Changes: []string{`CMD ["run"]`, "ENV A=1"}}
	img, err := n.Commit(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	if len(img.DiffIDs) != 3 || img.Config.Config.Cmd[0] != "run" || img.Config.Author != "somebody" || img.Tags[0] != "docker.io/own/image:v1" {
		t.Errorf("image %+v", img)
	}
	if h := img.Config.History; len(h) == 0 || h[len(h)-1].Comment != "why" {
		t.Errorf("history %v", h)
	}
	if got := n.readFile(t, img, "added"); string(got) != "by the container" {
		t.Errorf("added is %q", got)
	}
	// It goes on its way as every other image.
	var archive bytes.Buffer
	if err := n.Export(t.Context(), &archive, []string{"own/image:v1"}, imagesvc.FormatDocker); err != nil {
		t.Fatal(err)
	}
	other := newNode(t, registry.Config{})
	if got, err := other.Import(t.Context(), &archive, imagesvc.ImportOptions{}); err != nil || got[0].ID != img.ID {
		t.Errorf("elsewhere: %v, %v", got, err)
	}
	for name, change := range map[string]func(o *imagesvc.CommitOptions){
		"no name": func(o *imagesvc.CommitOptions) { o.Name = "" }, "no change": func(o *imagesvc.CommitOptions) { o.Changes = []string{"RUN x"} },
	} {
		o := options
		change(&o)
		if _, err := n.Commit(t.Context(), o); !errors.Is(err, imagesvc.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	options.Snapshot = "no-such"
	if _, err := n.Commit(t.Context(), options); !errors.Is(err, imagesvc.ErrNotFound) {
		t.Errorf("no container: %v", err)
	}
}
