package registry_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// Who sent a part is named, and who is suspected is asked less: if it is not sure, only mirrors are.
func TestSuspects(t *testing.T) {
	img := smallImage(t)
	own, one, two := registrytest.NewMemory(t), registrytest.NewMemory(t), registrytest.NewMemory(t)
	for _, m := range []*registrytest.Memory{own, one, two} {
		m.Add("a/b", "v1", img)
	}
	blob := img.Layers[0].Blob
	one.Hook = func(w http.ResponseWriter, r *http.Request) bool { // it has the beginning only
		if !isLayer(r, img) {
			return false
		}
		if r.Header.Get("Range") != "" {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}
		_, _ = w.Write(blob[:100])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	for name, test := range map[string]struct {
		sure bool
		want []*registrytest.Memory // in the order in which to ask them
	}{
		"sure": {true, []*registrytest.Memory{two, own, one}}, "not sure": {false, []*registrytest.Memory{own, two, one}},
	} {
		t.Run(name, func(t *testing.T) {
			c := client(t, registry.Config{Mirrors: map[string][]registry.Endpoint{
				own.Host: {{URL: "http://" + one.Host}, {URL: "http://" + own.Host}, {URL: "http://" + two.Host}},
			}})
			repo := repository(t, c, own.Host+"/a/b:v1", registry.Auth{})
			part, err := repo.Range(t.Context(), img.Manifest.Layers[0], 0, int64(len(blob)))
			if err != nil {
				t.Fatal(err)
			}
			defer part.Close()
			if got, err := io.ReadAll(part); err != nil || !bytes.Equal(got, blob) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			if want := []string{one.Host, own.Host}; !slices.Equal(part.Senders(), want) {
				t.Errorf("sent by %q, want %q", part.Senders(), want)
			}
			part.Blame(test.sure)
			for i, alone := range repo.Alone() {
				if alone.Server() != test.want[i].Host {
					t.Errorf("%d: %s, want %s", i, alone.Server(), test.want[i].Host)
				}
				before := test.want[i].Count(http.MethodGet, "/blobs/")
				if blob, err := alone.Blob(t.Context(), img.Manifest.Layers[0]); err == nil {
					_ = blob.Drain()
					blob.Close()
				}
				if test.want[i].Count(http.MethodGet, "/blobs/") == before {
					t.Errorf("%s was not asked", alone.Server())
				}
			}
		})
	}
}

// What several endpoints sent together is wrong for all of them, and the registry itself stays.
func TestSeveralSendWrongContent(t *testing.T) {
	img := smallImage(t)
	own, mirror := registrytest.NewMemory(t), registrytest.NewMemory(t)
	own.Add("a/b", "v1", img)
	mirror.Add("a/b", "v1", img)
	mirror.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !isLayer(r, img) {
			return false
		}
		_, _ = w.Write(make([]byte, 100))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	repo := repository(t, client(t, registry.Config{Mirrors: map[string][]registry.Endpoint{
		own.Host: {{URL: "http://" + mirror.Host}, {URL: "http://" + own.Host}},
	}}), own.Host+"/a/b:v1", registry.Auth{})
	err := fetchLayer(t.Context(), repo, img)
	if !errors.Is(err, registry.ErrDigest) || !strings.Contains(err.Error(), mirror.Host+": content") || !strings.Contains(err.Error(), own.Host+": content") {
		t.Errorf("err = %v", err)
	}
	if err := fetchLayer(t.Context(), repo, img); err != nil {
		t.Errorf("again: %v", err)
	}
}
