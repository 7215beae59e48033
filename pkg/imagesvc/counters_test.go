package imagesvc_test

import (
	"net/http"
	"strconv"
	"strings"
	"testing"

	"criserver/pkg/imagesvc/progress"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// The counters say what was done: layers of an earlier image are reused, what is fetched counts by the blob, also if it came in
// two pieces, and a pull that fails is one.
func TestCounters(t *testing.T) {
	m := registrytest.NewMemory(t)
	one, two, three := layer(t, "one"), layer(t, "two"), layer(t, "three")
	m.Add("a/b", "v1", image(one, two))
	m.Add("a/b", "v2", image(one, three))
	cut := true
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !cut || !strings.HasSuffix(r.URL.Path, three.Descriptor().Digest.String()) {
			return false
		}
		cut = false
		w.Header().Set("Content-Length", strconv.Itoa(len(three.Blob)))
		_, _ = w.Write(three.Blob[:len(three.Blob)/2])
		panic(http.ErrAbortHandler)
	}
	n := newNode(t, direct(m))
	size := func(layers ...registrytest.Layer) (sum int64) {
		for _, l := range layers {
			sum += int64(len(l.Blob))
		}
		return sum
	}
	want := progress.Counters{}
	for _, step := range []struct {
		name  string
		do    func()
		after progress.Counters
	}{
		{"nothing", func() {}, progress.Counters{}},
		{"first", func() { n.pull(t, m.Host+"/a/b:v1") }, progress.Counters{Pulls: 1, Layers: 2, Bytes: size(one, two)}},
		{"unchanged", func() { n.pull(t, m.Host+"/a/b:v1") }, progress.Counters{Pulls: 1}},
		{"shared layer", func() { n.pull(t, m.Host+"/a/b:v2") }, progress.Counters{Pulls: 1, Layers: 1, Reused: 1, Bytes: size(three)}},
		{"failed", func() {
			if _, err := n.Pull(t.Context(), m.Host+"/a/b:none", registry.Auth{}); err == nil {
				t.Error("what is not there was pulled")
			}
		}, progress.Counters{Pulls: 1, Failed: 1}},
	} {
		step.do()
		want.Pulls, want.Failed, want.Bytes = want.Pulls+step.after.Pulls, want.Failed+step.after.Failed, want.Bytes+step.after.Bytes
		want.Layers, want.Reused = want.Layers+step.after.Layers, want.Reused+step.after.Reused
		if got := n.Counters(); got != want {
			t.Errorf("%s: %+v, want %+v", step.name, got, want)
		}
	}
}
