package imagesvc_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// sha512Image puts an image into a registry of which all digests are sha512.
func sha512Image(t *testing.T, m *registrytest.Memory, layers ...registrytest.Layer) (id digest.Digest) {
	t.Helper()
	img := image(layers...)
	for i, l := range layers {
		img.Config.RootFS.DiffIDs[i], img.Manifest.Layers[i].Digest = digest.SHA512.FromBytes(l.Plain), digest.SHA512.FromBytes(l.Blob)
		m.AddBlob(img.Manifest.Layers[i].Digest, l.Blob)
	}
	img.Seal()
	id = digest.SHA512.FromBytes(img.ConfigData)
	m.AddBlob(id, img.ConfigData)
	img.Manifest.Config.Digest = id
	data, err := json.Marshal(img.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	m.AddManifest("a/b", "v1", data)
	m.AddManifest("a/b", digest.SHA512.FromBytes(data).String(), data)
	return id
}

// Digests of images may be sha512. The same layers under both algorithms are different ones, and nothing of either is left.
func TestSHA512(t *testing.T) {
	m := registrytest.NewMemory(t)
	one, two := layer(t, "one"), layer(t, "two")
	id := sha512Image(t, m, one, two).String()
	m.Add("a/c", "v1", image(one, two))
	n := newNode(t, direct(m))
	if got := n.pull(t, m.Host+"/a/b:v1"); got != id {
		t.Fatalf("ID %s, want %s", got, id)
	}
	other := n.pull(t, m.Host+"/a/c:v1")
	var archive bytes.Buffer
	for range 2 {
		n.readFile(t, n.image(t, id[:24]), "one")
		if found := n.check(t, true); len(found) > 0 {
			t.Errorf("found %+v", found)
		}
		n.restart(t)
	}
	if err := n.Export(t.Context(), &archive, []string{id}, imagesvc.FormatOCI); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{id, other} {
		if err := n.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	n.wantClean(t)
	if left, err := os.ReadDir(filepath.Join(n.root, "content/sha512")); err != nil || len(left) > 0 {
		t.Errorf("blobs are left: %v, %v", left, err)
	}
	imported, err := n.Import(t.Context(), &archive, imagesvc.ImportOptions{Name: "x.test/y:v1"})
	if err != nil || imported[0].ID.String() != id {
		t.Fatalf("imported %+v, %v", imported, err)
	}
	n.readFile(t, n.image(t, "x.test/y:v1"), "two")
}
