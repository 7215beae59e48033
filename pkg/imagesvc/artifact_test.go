package imagesvc_test

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// artifact is a manifest of files, by their titles, with the empty configuration.
func artifact(t *testing.T, files map[string]string) *registrytest.Image {
	t.Helper()
	img := &registrytest.Image{ConfigData: ocispec.DescriptorEmptyJSON.Data}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/vnd.example.model", Config: ocispec.DescriptorEmptyJSON}
	m.SchemaVersion = 2
	for _, title := range slices.Sorted(maps.Keys(files)) {
		l := registrytest.Layer{MediaType: "application/octet-stream", Blob: []byte(files[title])}
		img.Layers = append(img.Layers, l)
		d := l.Descriptor()
		d.Annotations = map[string]string{ocispec.AnnotationTitle: title}
		m.Layers = append(m.Layers, d)
	}
	var err error
	if img.ManifestData, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	img.Manifest = m
	return img
}

func TestArtifact(t *testing.T) {
	server := registrytest.Start(t, registrytest.Options{})
	n := newNode(t, registry.Config{})
	one := artifact(t, map[string]string{"model.bin": "weights", "docs/readme.md": "read me"})
	two := artifact(t, map[string]string{"model.bin": "weights", "other": "else"})
	server.Push(t, "models/one", "v1", one)
	server.Push(t, "models/two", "v1", two)
	id := n.pull(t, server.Host+"/models/one:v1")
	n.pull(t, server.Host+"/models/two:v1")
	img := n.image(t, id)
	if !img.Artifact || img.ID != one.Digest() || img.Size == 0 || len(n.List()) != 2 {
		t.Errorf("image %+v", img)
	}
	for name, want := range map[string]string{"model.bin": "weights", "docs/readme.md": "read me"} {
		if got := n.readFile(t, img, name); string(got) != want {
			t.Errorf("%s is %q", name, got)
		}
	}
	if got := len(n.diffIDs(t)); got != 3 {
		t.Errorf("%d layers for two artifacts that share one of their two files", got)
	}
	n.restart(t)
	if img := n.image(t, id); !img.Artifact {
		t.Error("after a restart it is an image")
	}
	for _, img := range n.List() {
		if err := n.Remove(t.Context(), img.ID.String()); err != nil {
			t.Error(err)
		}
	}
	n.wantClean(t)
}

// Files of the same content have one blob, whose downloads follow each other.
func TestArtifactOfEqualFiles(t *testing.T) {
	server := registrytest.Start(t, registrytest.Options{})
	n := newNode(t, registry.Config{})
	same := strings.Repeat("0123456789abcdef", 1<<20) // more than is read without a file
	server.Push(t, "models/same", "v1", artifact(t, map[string]string{"one": same, "two": same, "three": same}))
	img := n.image(t, n.pull(t, server.Host+"/models/same:v1"))
	for _, name := range []string{"one", "two", "three"} {
		if got := n.readFile(t, img, name); string(got) != same {
			t.Errorf("%s has %d bytes", name, len(got))
		}
	}
	if err := n.Remove(t.Context(), img.ID.String()); err != nil {
		t.Error(err)
	}
	n.wantClean(t)
}

func TestCheckOfArtifacts(t *testing.T) {
	server := registrytest.Start(t, registrytest.Options{})
	n := newNode(t, registry.Config{})
	server.Push(t, "models/one", "v1", artifact(t, map[string]string{"model.bin": "weights", "readme": "read me"}))
	img := n.image(t, n.pull(t, server.Host+"/models/one:v1"))
	for i, damage := range []func(path string) error{
		func(path string) error { return os.WriteFile(path, []byte("wEights"), 0o644) },
		func(path string) error { return os.Truncate(path, 3) },
		os.Remove,
	} {
		dir, _, err := n.layers.Tree(t.Context(), img.DiffIDs[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := damage(filepath.Join(dir, "model.bin")); err != nil {
			t.Fatal(err)
		}
		if found := n.check(t, true); len(found) != 1 || found[0].Kind != imagesvc.FindingLayer || !found[0].Repaired {
			t.Errorf("%d: found %+v", i, found)
		}
		if got := n.readFile(t, img, "model.bin"); string(got) != "weights" {
			t.Errorf("%d: repaired it is %q", i, got)
		}
		if found := n.check(t, false); len(found) > 0 {
			t.Errorf("%d: repaired, but found %+v", i, found)
		}
	}
}

func TestArtifactRefused(t *testing.T) {
	for _, title := range []string{"../up", "/etc/passwd", "a/../../b", "d/.wh.x", ".", "nul\x00"} {
		m := registrytest.NewMemory(t)
		m.Add("a/b", "v1", artifact(t, map[string]string{title: "x"}))
		n := newNode(t, direct(m))
		if _, err := n.Pull(t.Context(), m.Host+"/a/b:v1", registry.Auth{}); !errors.Is(err, imagesvc.ErrInvalid) {
			t.Errorf("title %q: %v", title, err)
		}
		n.wantClean(t)
	}
}

// A file in the place of a directory of another file.
func TestArtifactFilesCollide(t *testing.T) {
	m := registrytest.NewMemory(t)
	img := artifact(t, map[string]string{"a/b": "x", "a/./b": "y"})
	m.Add("a/b", "v1", img)
	n := newNode(t, direct(m))
	if _, err := n.Pull(t.Context(), m.Host+"/a/b:v1", registry.Auth{}); !errors.Is(err, imagesvc.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}
