package catalog_test

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/catalog"
	"criserver/pkg/imagesvc/registry/names"
	"criserver/pkg/record"
)

func ref(t *testing.T, name string) names.Reference {
	t.Helper()
	r, err := names.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// image is one of its own configuration, with the layers.
func image(name string, layers ...digest.Digest) catalog.Image {
	id := digest.FromString(name)
	return catalog.Image{ID: id, ConfigBlob: id, Manifest: digest.FromString("manifest of " + name), DiffIDs: layers, Pulled: time.Now()}
}

func openDB(t *testing.T, path string) *record.DB {
	t.Helper()
	db, err := record.Open(t.Context(), path, record.Options{Sync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func open(t *testing.T, db *record.DB) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Open(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTagMovesInMemoryAndOnDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "images.db")
	db := openDB(t, path)
	c := open(t, db)
	tag, resolved := ref(t, "r.test/a:1"), digest.FromString("index")
	first, second := image("first"), image("second")
	for _, img := range []catalog.Image{first, second} {
		if err := c.Put(t.Context(), img, catalog.Name{Ref: tag, Resolved: resolved}); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]*catalog.Catalog{"memory": c, "disk": open(t, db)} {
		if img, err := c.Find("r.test/a:1", []names.Reference{tag}); err != nil || img.ID != second.ID {
			t.Errorf("%s: the tag names %s, %v", name, img.ID, err)
		}
		all := c.All()
		if got := all[first.ID]; len(got.Tags) != 0 || len(got.Digests) != 1 {
			t.Errorf("%s: the first keeps %v, %v", name, got.Tags, got.Digests)
		}
	}
}

// Until the records are on the disk, memory says what it said.
func TestFailedWriteChangesNothing(t *testing.T) {
	db := openDB(t, filepath.Join(t.TempDir(), "images.db"))
	c := open(t, db)
	first, second := image("first"), image("second")
	name := catalog.Name{Ref: ref(t, "r.test/a:1")}
	if err := c.Put(t.Context(), first, name); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Put(t.Context(), second, name); err == nil {
		t.Error("a closed database took a record")
	}
	if _, err := c.Drop(t.Context(), first.ID.String(), nil); err == nil {
		t.Error("a closed database dropped a record")
	}
	if img, err := c.Find("", []names.Reference{name.Ref}); err != nil || img.ID != first.ID {
		t.Errorf("the tag names %s, %v", img.ID, err)
	}
	if c.Needs(second.Manifest) {
		t.Error("what was not recorded is needed")
	}
}

func TestNeeds(t *testing.T) {
	c := open(t, openDB(t, filepath.Join(t.TempDir(), "images.db")))
	shared, own := digest.FromString("shared"), digest.FromString("own")
	one, two := image("one", shared, own, shared), image("two", shared)
	for range 2 { // a second Put of the same counts once
		for _, img := range []catalog.Image{one, two} {
			if err := c.Put(t.Context(), img); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.Hide(one.ID, true)
	for _, d := range []digest.Digest{shared, own, one.ID, one.Manifest} {
		if !c.Needs(d) {
			t.Errorf("%s is not needed", d)
		}
	}
	if _, err := c.Drop(t.Context(), one.ID.String(), nil); err != nil { // hidden ones too
		t.Fatal(err)
	}
	if c.Needs(own) || c.Needs(one.Manifest) || !c.Needs(shared) {
		t.Error("wrong uses after the removal of one")
	}
	if _, err := c.Drop(t.Context(), two.ID.String(), nil); err != nil {
		t.Fatal(err)
	}
	if c.Needs(shared) {
		t.Error("needed by none")
	}
}

func TestHidden(t *testing.T) {
	c := open(t, openDB(t, filepath.Join(t.TempDir(), "images.db")))
	img := image("x")
	if c.Hide(img.ID, true) {
		t.Error("an unknown image is hidden")
	}
	if err := c.Put(t.Context(), img, catalog.Name{Ref: ref(t, "r.test/a:1")}); err != nil {
		t.Fatal(err)
	}
	if !c.Hide(img.ID, true) || c.Hide(img.ID, true) {
		t.Error("hiding twice is news, or once is not")
	}
	if _, err := c.Find(img.ID.String(), nil); !errors.Is(err, catalog.ErrNotFound) || len(c.List()) != 0 || len(c.All()) != 1 {
		t.Errorf("hidden: %v, %d in the list", err, len(c.List()))
	}
	if err := c.Put(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Find(img.ID.Encoded()[:12], nil); err != nil || !slices.Equal(got.Tags, []string{"r.test/a:1"}) {
		t.Errorf("shown again: %v, %v", got.Tags, err)
	}
}

func TestFind(t *testing.T) {
	c := open(t, openDB(t, filepath.Join(t.TempDir(), "images.db")))
	one := image("one")
	other := one
	other.ID = digest.Digest("sha256:" + one.ID.Encoded()[:10] + image("two").ID.Encoded()[10:])
	long := one
	long.ID = digest.SHA512.FromString("long")
	for _, img := range []catalog.Image{one, other, long} {
		if err := c.Put(t.Context(), img); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{long.ID.String(), long.ID.Encoded(), long.ID.Encoded()[:12], long.ID.String()[:20]} {
		if img, err := c.Find(name, nil); err != nil || img.ID != long.ID {
			t.Errorf("%q: %s, %v", name, img.ID, err)
		}
	}
	for name, want := range map[string]error{
		"sha256:" + long.ID.Encoded()[:12]: catalog.ErrNotFound,
		one.ID.String():                    nil,
		one.ID.Encoded():                   nil,
		"sha256:" + one.ID.Encoded()[:12]:  nil,
		one.ID.Encoded()[:10]:              catalog.ErrInvalid,
		one.ID.Encoded()[:5]:               catalog.ErrNotFound,
		"":                                 catalog.ErrNotFound,
		"nothing":                          catalog.ErrNotFound,
	} {
		if img, err := c.Find(name, nil); !errors.Is(err, want) || err == nil && img.ID != one.ID {
			t.Errorf("%q: %s, %v", name, img.ID, err)
		}
	}
}
