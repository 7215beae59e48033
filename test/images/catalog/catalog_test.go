package catalog_test

import (
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"criserver/test/images/catalog"
	"criserver/test/images/registry"
)

func load(t *testing.T) []catalog.Entry {
	t.Helper()
	entries, err := catalog.Load(t.Context(), "../../../.cache")
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func TestNamesAreUniqueAndDigestsStable(t *testing.T) {
	first, second := load(t), load(t)
	seen := map[string]bool{}
	for i, e := range first {
		if got := second[i].Image.Root.Digest; got != e.Image.Root.Digest {
			t.Errorf("%s is %s at first, then %s", e.Names[0], e.Image.Root.Digest, got)
		}
		for _, name := range e.Names {
			if seen[name] {
				t.Errorf("%s names two images", name)
			}
			seen[name] = true
		}
	}
	if !seen[catalog.Busybox] {
		t.Errorf("no image is named %s", catalog.Busybox)
	}
}

func TestSplit(t *testing.T) {
	for name, want := range map[string][2]string{
		"registry.k8s.io/pause:3.9":              {"pause", "3.9"},
		"docker.io/library/busybox:latest":       {"library/busybox", "latest"},
		"localhost:5000/some/deep/repo/name:tag": {"some/deep/repo/name", "tag"},
	} {
		if repository, tag := catalog.Split(name); [2]string{repository, tag} != want {
			t.Errorf("%s is repository %q and tag %q, want %q", name, repository, tag, want)
		}
	}
}

func TestPushToRegistry(t *testing.T) {
	if _, err := exec.LookPath("docker-registry"); err != nil {
		t.Skip("docker-registry is not installed")
	}
	r, err := registry.Start(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
		if resp, err := http.Get("http://" + r.Addr + "/v2/"); err == nil {
			resp.Body.Close()
			t.Error("the registry still answers when it is stopped")
		}
	})
	entries := load(t)
	// Twice: the second time all blobs are there.
	for range 2 {
		if err := catalog.Push(t.Context(), r.Addr, entries); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range entries {
		for _, name := range e.Names {
			repository, tag := catalog.Split(name)
			if got := pulled(t, r.Addr, repository, tag, e.Image.Root.MediaType); got != e.Image.Root.Digest.String() {
				t.Errorf("the registry has %s for %s, want %s", got, name, e.Image.Root.Digest)
			}
		}
	}
}

// pulled asks the registry for the digest of a tag.
func pulled(t *testing.T, addr, repository, tag, mediaType string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodHead, "http://"+addr+"/v2/"+repository+"/manifests/"+tag, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return strings.TrimSpace(resp.Header.Get("Docker-Content-Digest"))
}
