package imagesvc_test

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry/registrytest"
	"criserver/pkg/record"
)

// plainRecord is a record as the database has it.
type plainRecord []byte

func (r *plainRecord) EncodeRecord() ([]byte, error) { return *r, nil }
func (r *plainRecord) DecodeRecord(data []byte) error {
	*r = bytes.Clone(data)
	return nil
}

// alterRecord changes the one image record of a node, which is stopped meanwhile.
func (n *node) alterRecord(t *testing.T, alter func(key, value string) (string, string)) {
	t.Helper()
	n.stop(t)
	db, err := record.Open(t.Context(), filepath.Join(n.root, "images.db"), record.Options{Sync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer n.start(t)
	defer db.Close()
	table, err := record.NewTable[plainRecord](t.Context(), db, "images")
	if err != nil {
		t.Fatal(err)
	}
	all, err := table.Load(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("%d records, %v", len(all), err)
	}
	for key, value := range all {
		if err := table.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		key, altered := alter(key, string(value))
		if altered == string(value) && slices.Contains(slices.Collect(maps.Keys(all)), key) {
			t.Fatal("nothing was altered")
		}
		if err := table.Put(t.Context(), key, plainRecord(altered)); err != nil {
			t.Fatal(err)
		}
	}
}

func replacing(old, new string) func(key, value string) (string, string) {
	return func(key, value string) (string, string) { return key, strings.ReplaceAll(value, old, new) }
}

// before makes a record one of a version that knew no checksums, altered.
func before(old, new string) func(key, value string) (string, string) {
	return func(key, value string) (string, string) {
		value = regexp.MustCompile(`,"NameSum":"[^"]*","Sum":"[^"]*"`).ReplaceAllString(value, "")
		return key, strings.ReplaceAll(value, old, new)
	}
}

// recordNode has one image of two layers with the environment A=right.
func recordNode(t *testing.T) (*node, *registrytest.Memory, *registrytest.Image) {
	t.Helper()
	m := registrytest.NewMemory(t)
	img := image(layer(t, "one"), layer(t, "two"))
	img.Config.Config.Env = []string{"A=right"}
	m.Add("a/b", "v1", img.Seal())
	n := newNode(t, direct(m))
	n.config.KeepLost = time.Hour
	n.restart(t)
	n.pull(t, m.Host+"/a/b:v1")
	return n, m, img
}

var otherDigest = digest.FromString("another")

// alteredRecords are the ways in which records go wrong.
func alteredRecords(img *registrytest.Image) map[string]struct {
	alter func(key, value string) (string, string)
	says  string
	// local tells that nothing is to be asked for, served that it is noticed by a check alone, untagged that the tag is lost.
	local, served, untagged bool
} {
	return map[string]struct {
		alter                   func(key, value string) (string, string)
		says                    string
		local, served, untagged bool
	}{
		"value":         {alter: replacing("A=right", "A=wrong"), says: "not as it was written", local: true},
		"type":          {alter: replacing(`"Size":`, `"Size":"x","Size":`), says: "cannot be decoded", local: true},
		"other ID":      {alter: replacing(`{"ID":"`+img.ID().String(), `{"ID":"`+otherDigest.String()), says: "not as it was written"},
		"ID of no type": {alter: replacing(`{"ID":"`+img.ID().String()+`"`, `{"ID":7`), says: "cannot be decoded"},
		"cut":           {alter: func(key, value string) (string, string) { return key, value[:len(value)/2] }, says: "cannot be decoded"},
		"nothing":       {alter: func(key, _ string) (string, string) { return key, "" }, says: "cannot be decoded", untagged: true},
		"tag":           {alter: replacing(":v1", ":v9"), says: "not as it was written", untagged: true},
		"digest":        {alter: replacing(`/a/b@`+img.Digest().String(), `/a/b@`+otherDigest.String()), says: "not as it was written"},
		"sum":           {alter: replacing(`"Sum":"`, `"Sum":"0`), says: "not as it was written", local: true},
		"no sum": {alter: func(key, value string) (string, string) {
			return key, regexp.MustCompile(`,"Sum":"[^"]*"`).ReplaceAllString(value, "")
		}, says: "not as it was written", local: true},
		"key":              {alter: func(_, value string) (string, string) { return otherDigest.String(), value }, says: "stands for another", local: true},
		"key that is none": {alter: func(_, value string) (string, string) { return "x", value }, says: "stands for another", local: true},

		"old value":  {alter: before("A=right", "A=wrong"), says: "in Config", local: true, served: true},
		"old layers": {alter: before(`"DiffIDs":[`, `"DiffIDs":["`+otherDigest.String()+`",`), says: "in DiffIDs", local: true, served: true},
		"old ID":     {alter: before(`{"ID":"`+img.ID().String(), `{"ID":"`+otherDigest.String()), says: "stands for another"},
		"old manifest": {alter: before(`"Manifest":"`+img.Digest().String(), `"Manifest":"`+img.ID().String()), says: "manifest that is none",
			served: true},
	}
}

// A record that is not right is not used, costs no layer, is told of, and is made anew with no more than what is broken.
func TestCheckRepairsRecords(t *testing.T) {
	for name := range alteredRecords(image(layer(t, "one"))) {
		t.Run(name, func(t *testing.T) {
			n, m, img := recordNode(t)
			test := alteredRecords(img)[name]
			n.alterRecord(t, test.alter)
			if err := n.Collect(t.Context()); err != nil {
				t.Fatal(err)
			}
			n.wantLayers(t, img.Layers...)
			for _, served := range n.List() {
				if !test.served || len(served.Config.Config.Env) == 0 {
					t.Errorf("it is in sight: %+v", served)
				}
			}
			isRecord := func(f imagesvc.Finding) bool {
				return f.Kind == imagesvc.FindingRecord && strings.Contains(f.Problem, test.says)
			}
			for range 2 { // looking changes nothing
				if found := n.check(t, false); !slices.ContainsFunc(found, isRecord) {
					t.Fatalf("found %+v", found)
				}
			}
			asked := len(m.Requests())
			found := n.check(t, true)
			i := slices.IndexFunc(found, isRecord)
			if i < 0 || !found[i].Repaired || found[i].Action == "" {
				t.Fatalf("found %+v", found)
			}
			if got := len(m.Requests()) - asked; test.local && got > 0 {
				t.Errorf("%d requests for the repair: %s", got, found[i].Action)
			}
			for _, l := range img.Layers {
				if got := m.Count("GET", l.Descriptor().Digest.String()); got != 1 {
					t.Errorf("a layer was fetched %d times: %s", got, found[i].Action)
				}
			}
			for _, when := range []string{"after the repair", "after a restart"} {
				if found := n.check(t, false); len(found) > 0 {
					t.Errorf("%s: %+v", when, found)
				}
				got := n.image(t, img.ID().String())
				if !slices.Equal(got.Config.Config.Env, []string{"A=right"}) || len(got.DiffIDs) != 2 || got.Size == 0 || got.Manifest != img.Digest() {
					t.Errorf("%s: %+v", when, got)
				}
				if test.untagged != (len(got.Tags) == 0) || len(got.Tags) > 0 && got.Tags[0] != m.Host+"/a/b:v1" {
					t.Errorf("%s: tags %v, digests %v", when, got.Tags, got.Digests)
				}
				n.readFile(t, got, "one")
				n.restart(t)
			}
		})
	}
}

// Names that only a registry can confirm are not given up because it does not answer; the next pull gives the image all that it
// had, and so it does where nobody looks for damage.
func TestUnsoundRecord(t *testing.T) {
	cut := func(key, value string) (string, string) { return key, value[:len(value)/2] }
	t.Run("registry down", func(t *testing.T) {
		n, m, _ := recordNode(t)
		n.alterRecord(t, cut)
		m.Server.Close()
		for range 2 {
			if found := n.check(t, true); len(found) != 1 || found[0].Repaired || !strings.Contains(found[0].Action, m.Host) {
				t.Errorf("found %+v", found)
			}
		}
	})
	t.Run("pull", func(t *testing.T) {
		n, m, img := recordNode(t)
		if _, err := n.Tag(t.Context(), m.Host+"/a/b:v1", "local.test/a:mine"); err != nil {
			t.Fatal(err)
		}
		n.alterRecord(t, replacing("A=right", "A=wrong"))
		n.pull(t, m.Host+"/a/b:v1")
		if found := n.check(t, false); len(found) > 0 {
			t.Errorf("found %+v", found)
		}
		if got := n.image(t, "local.test/a:mine"); got.ID != img.ID() || got.Config.Config.Env[0] != "A=right" {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("mended", func(t *testing.T) {
		n, m, img := recordNode(t)
		n.alterRecord(t, cut)
		if err := n.layers.RemoveLayer(t.Context(), img.Layers[1].DiffID()); err != nil {
			t.Fatal(err)
		}
		n.Mend(t.Context())
		n.readFile(t, n.image(t, m.Host+"/a/b:v1"), "two")
	})
	t.Run("removed", func(t *testing.T) {
		n, _, img := recordNode(t)
		n.alterRecord(t, cut)
		if err := n.Remove(t.Context(), img.ID().String()); err != nil {
			t.Fatal(err)
		}
		if found := n.check(t, false); len(found) > 0 {
			t.Errorf("found %+v", found)
		}
		n.wantClean(t)
		n.restart(t)
		n.wantClean(t)
	})
	// What belongs to it cannot be told: all layers wait, but not for ever.
	t.Run("documents gone", func(t *testing.T) {
		n, m, img := recordNode(t)
		for _, d := range []digest.Digest{img.ID(), img.Digest()} {
			if err := os.Remove(filepath.Join(n.root, "content/sha256", d.Encoded())); err != nil {
				t.Fatal(err)
			}
		}
		n.alterRecord(t, cut)
		if err := n.Collect(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.wantLayers(t, img.Layers...)
		if found := n.check(t, true); len(found) != 1 || !found[0].Repaired || !strings.Contains(found[0].Action, "fetched") {
			t.Fatalf("found %+v", found)
		}
		n.readFile(t, n.image(t, m.Host+"/a/b:v1"), "one")
		if got := m.Count("GET", "/blobs/"+img.Layers[0].Descriptor().Digest.String()); got != 1 {
			t.Errorf("a layer was fetched %d times", got)
		}
		n.config.KeepLost = 0
		n.alterRecord(t, cut)
		n.wantLayers(t, img.Layers...)
		for _, d := range []digest.Digest{img.ID(), img.Digest()} {
			if err := os.Remove(filepath.Join(n.root, "content/sha256", d.Encoded())); err != nil {
				t.Fatal(err)
			}
		}
		n.restart(t)
		if err := n.Collect(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.wantLayers(t)
	})
}

// A tag that another image has got meanwhile is that one's.
func TestUnsoundRecordLosesTag(t *testing.T) {
	n, m, img := recordNode(t)
	n.alterRecord(t, replacing("A=right", "A=wrong"))
	m.Add("a/b", "v1", image(layer(t, "three")).Seal())
	now := n.pull(t, m.Host+"/a/b:v1")
	for range 2 {
		n.check(t, true)
		if got := n.image(t, m.Host+"/a/b:v1"); got.ID.String() != now {
			t.Errorf("the tag is that of %s", got.ID)
		}
		if got := n.image(t, img.ID().String()); len(got.Tags) > 0 || len(got.Digests) != 1 {
			t.Errorf("the first has %v, %v", got.Tags, got.Digests)
		}
		n.restart(t)
	}
}
