package registry_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// eventually tries until it is true: files are looked at once a second.
func eventually(t *testing.T, what string, try func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); !try(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

func rewriteFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A client sees what an operator changes while it lives.
func TestHostsFileIsReadAgain(t *testing.T) {
	img := smallImage(t)
	one, two := registrytest.NewMemory(t), registrytest.NewMemory(t)
	one.Add("a/b", "v1", img)
	two.Add("a/b", "v1", img)
	dir := t.TempDir()
	file := filepath.Join(dir, gone, "hosts.toml")
	c := client(t, registry.Config{ConfigPath: []string{dir}})
	pull := func() error { return tryPull(t, c, gone+"/a/b:v1", img) }
	if err := pull(); !errors.Is(err, registry.ErrUnavailable) {
		t.Fatalf("without a file: %v", err)
	}
	rewriteFile(t, file, fmt.Sprintf("server = 'http://%s'\n", one.Host))
	eventually(t, "the file is not seen", func() bool { return pull() == nil })

	// The same server under other words keeps its connections.
	rewriteFile(t, file, fmt.Sprintf("# more\nserver = 'http://%s'\n", one.Host))
	eventually(t, "the change is not seen", func() bool {
		ref, _ := registry.Parse(gone + "/a/b:v1")
		e := c.Explain(t.Context(), ref, registry.Auth{})
		return pull() == nil && strings.HasSuffix(e.Endpoints[0].Source, "hosts.toml:2")
	})
	from := map[string]bool{}
	for _, r := range one.Requests() {
		from[r.RemoteAddr] = true
	}
	if len(from) != 1 {
		t.Errorf("%d connections were made", len(from))
	}

	// What is wrong is said, and no way around it taken; and it is forgotten when it is right.
	rewriteFile(t, file, fmt.Sprintf("server = 'http://%s'\n\n[host.'http://%s']\nskip_verify = 7\n", one.Host, two.Host))
	eventually(t, "the mistake is not seen", func() bool { return errors.Is(pull(), registry.ErrInvalid) })
	if err := pull(); !strings.Contains(err.Error(), file+":4: host.") {
		t.Errorf("err = %v", err)
	}
	rewriteFile(t, file, fmt.Sprintf("server = 'http://%s'\n", two.Host))
	before := len(one.Requests())
	eventually(t, "the mended file is not seen", func() bool { return pull() == nil })
	if len(one.Requests()) != before || len(two.Requests()) == 0 {
		t.Error("the other server was not asked alone")
	}
	if err := os.RemoveAll(filepath.Dir(file)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removal is not seen", func() bool { return pull() != nil })
}

// tryPull fetches an image of a registry that may not be configured well.
func tryPull(t *testing.T, c *registry.Client, name string, img *registrytest.Image) error {
	t.Helper()
	repo, err := c.Repository(reference(t, name), registry.Auth{})
	if err != nil {
		return err
	}
	return fetchAll(t.Context(), repo, img)
}

// So it does with certificates, and asks at once again what was refused for the old ones.
func TestCertificatesAreReadAgain(t *testing.T) {
	img := smallImage(t)
	good, other := registrytest.Start(t, registrytest.Options{TLS: true}), registrytest.Start(t, registrytest.Options{TLS: true})
	good.Push(t, "a/b", "v1", img)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	rewriteFile(t, ca, readText(t, other.CA))
	c := client(t, registry.Config{Mirrors: map[string][]registry.Endpoint{good.Host: {{URL: good.URL(), CA: []string{ca}}}}})
	pull := func() error { return tryPull(t, c, good.Host+"/a/b:v1", img) }
	if err := pull(); !errors.Is(err, registry.ErrUnavailable) {
		t.Fatalf("another authority: %v", err)
	}
	rewriteFile(t, ca, readText(t, good.CA))
	eventually(t, "the certificate is not seen", func() bool { return pull() == nil })
	ref, _ := registry.Parse(good.Host + "/a/b:v1")
	if e := c.Explain(t.Context(), ref, registry.Auth{}); e.Endpoints[0].RestsUntil != nil {
		t.Errorf("the endpoint rests: %+v", e)
	}
	rewriteFile(t, ca, "no certificate")
	eventually(t, "the mistake is not seen", func() bool { return errors.Is(pull(), registry.ErrInvalid) })
	if err := pull(); !strings.Contains(err.Error(), ca) {
		t.Errorf("err = %v", err)
	}
}
