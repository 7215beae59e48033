package trust_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/trust"
)

func TestLongestScopeCounts(t *testing.T) {
	p := newPolicy(t,
		trust.Scope{Name: "quay.io", Require: trust.Reject},
		trust.Scope{Name: "quay.io/org", Require: trust.Accept},
		trust.Scope{Name: "quay.io/org/bad", Require: trust.Reject},
		trust.Scope{Name: "localhost:5000", Require: trust.Reject},
		trust.Scope{Name: "[::1]:5000", Require: trust.Reject},
	)
	closed := newPolicy(t, trust.Scope{Name: trust.DefaultScope, Require: trust.Reject}, trust.Scope{Name: "docker.io/library", Require: trust.Accept})
	for _, c := range []struct {
		p          *trust.Policy
		repository string
		accepted   bool
	}{
		{p, "quay.io/app", false}, {p, "quay.io/org/app", true}, {p, "quay.io/org", true}, {p, "quay.io/organ/app", false},
		{p, "quay.io/org/bad", false}, {p, "quay.io/org/bad/app", false}, {p, "quay.io/org/badly", true},
		{p, "quay.io.example/app", true}, {p, "docker.io/library/nginx", true}, {p, "localhost:5000/app", false}, {p, "localhost:50001/app", true},
		{p, "[::1]:5000/app", false},
		{closed, "docker.io/library/nginx", true}, {closed, "docker.io/librarian/nginx", false}, {closed, "quay.io/org", false},
	} {
		m, d := newMemory(t)
		err := c.p.Check(t.Context(), c.repository, d, m)
		if (err == nil) != c.accepted || err != nil && !errors.Is(err, trust.ErrRejected) {
			t.Errorf("%s: got %v, want accepted: %t", c.repository, err, c.accepted)
		}
		if got := c.p.Required(c.repository); got == c.accepted {
			t.Errorf("%s: required: %t", c.repository, got)
		}
		if m.fetched > 0 {
			t.Errorf("%s: %d fetches", c.repository, m.fetched)
		}
	}
	if err := p.Check(t.Context(), "quay.io/app", digest.FromString(""), nil); err == nil || !strings.Contains(err.Error(), `scope "quay.io"`) {
		t.Errorf("got %v", err)
	}
}

func TestNothingConfiguredAcceptsAll(t *testing.T) {
	p := newPolicy(t)
	if p.Required(repository) {
		t.Error("something is required")
	}
	wantAccepted(t, p, "", nil)
}

func TestSignedWantsADigest(t *testing.T) {
	m, _ := newMemory(t)
	err := newPolicy(t, signedBy(newSigner(t, "ecdsa").file(t))).Check(t.Context(), repository, "sha256:../x", m)
	if !errors.Is(err, trust.ErrRejected) || m.fetched > 0 {
		t.Errorf("got %v after %d fetches", err, m.fetched)
	}
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	key, d := newSigner(t, "ecdsa").file(t), newDeployment(t)
	emptyRoot := writeFile(t, "empty.json", []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`))
	someone := []trust.Keyless{{Identity: "i", Issuer: "i"}}
	for name, c := range map[string]struct {
		scope trust.Scope
		texts []string
	}{
		"no requirement":      {trust.Scope{Name: "quay.io"}, []string{`scope "quay.io"`, `"" is not one of`}},
		"no identity":         {trust.Scope{Require: trust.Signed}, []string{`scope "_default"`, "by nobody"}},
		"useless identity":    {trust.Scope{Require: trust.Accept, Keys: []string{key}}, []string{"does not look at signatures"}},
		"no host":             {trust.Scope{Name: "library/nginx", Require: trust.Reject}, []string{"docker.io/library/nginx"}},
		"Docker Hub's API":    {trust.Scope{Name: "index.docker.io/library", Require: trust.Reject}, []string{"known as docker.io"}},
		"with a tag":          {trust.Scope{Name: "quay.io/org/app:v1", Require: trust.Reject}, []string{"not a registry"}},
		"with a slash":        {trust.Scope{Name: "quay.io/org/", Require: trust.Reject}, []string{"not a registry"}},
		"with a scheme":       {trust.Scope{Name: "https://quay.io", Require: trust.Reject}, []string{"not a registry"}},
		"upper case":          {trust.Scope{Name: "quay.io/Org", Require: trust.Reject}, []string{"not a registry"}},
		"wildcard":            {trust.Scope{Name: "*.quay.io", Require: trust.Reject}, []string{"not a registry"}},
		"key is not there":    {signedBy("/nowhere/key.pub"), []string{`scope "quay.io/org"`, "/nowhere/key.pub", "no such file"}},
		"key is a directory":  {signedBy(t.TempDir()), []string{"is a directory"}},
		"key is no PEM":       {signedBy(writeFile(t, "k", []byte("x"))), []string{"/k: PEM"}},
		"key is too large":    {signedBy(writeFile(t, "k", make([]byte, 4<<20+1))), []string{"larger than"}},
		"key is private":      {signedBy(writeFile(t, "k", []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))), []string{"/k: unknown Public key"}},
		"key is weak":         {signedBy(newSigner(t, "rsa 1024").file(t)), []string{"1024 bits is too weak"}},
		"no root":             {trust.Scope{Require: trust.Signed, Keyless: someone}, []string{"need a trusted root"}},
		"root is not there":   {keylessBy("/nowhere/root.json", someone...), []string{`scope "quay.io"`, "/nowhere/root.json"}},
		"root is none":        {keylessBy(writeFile(t, "root.json", []byte("{}")), someone...), []string{"/root.json: unsupported TrustedRoot media type"}},
		"root has nothing":    {keylessBy(emptyRoot, someone...), []string{"no certificate authority"}},
		"root has no CT log":  {trust.Scope{Require: trust.Signed, Keyless: someone, TrustedRoot: withoutLogs(t, d)}, []string{"no certificate transparency log"}},
		"root has no log":     {keylessBy(withoutLogs(t, d), someone...), []string{"no transparency log"}},
		"root has no TSA":     {trust.Scope{Require: trust.Signed, Keys: []string{key}, TrustedRoot: emptyRoot, TimestampAuthority: true}, []string{"no timestamp authority"}},
		"both of a pair":      {keylessBy(d.root(t), trust.Keyless{Identity: "i", IdentityRegexp: "i", Issuer: "i"}), []string{"either an identity"}},
		"none of a pair":      {keylessBy(d.root(t), trust.Keyless{Identity: "i"}), []string{"either an issuer"}},
		"expression":          {keylessBy(d.root(t), trust.Keyless{IdentityRegexp: "(", Issuer: "i"}), []string{"missing closing )"}},
		"expression's escape": {keylessBy(d.root(t), trust.Keyless{IdentityRegexp: "a)|(?:b", Issuer: "i"}), []string{"unexpected )"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := trust.New(trust.Config{Scopes: []trust.Scope{c.scope}})
			if err == nil {
				t.Fatal("accepted")
			}
			for _, text := range append(c.texts, "signature policy of scope") {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("no %q in: %v", text, err)
				}
			}
		})
	}
	twice := trust.Config{Scopes: []trust.Scope{{Require: trust.Accept}, {Name: "_default", Require: trust.Reject}}}
	if _, err := trust.New(twice); err == nil || !strings.Contains(err.Error(), "another one of the same name") {
		t.Errorf("got %v", err)
	}
}

func TestChangedFilesAreReadAgain(t *testing.T) {
	before, after := newSigner(t, "ecdsa"), newSigner(t, "ecdsa")
	file, other := before.file(t), newSigner(t, "ecdsa").file(t)
	p := newPolicy(t, signedBy(file), trust.Scope{Name: "ghcr.io", Require: trust.Signed, Keys: []string{other}})
	m, d := newMemory(t)
	m.addOld(t, d, after.old(t, m, d))
	wantRejected(t, p, d, m, "not of this key and content")

	replace(t, file, after.pem(t))
	wantAccepted(t, p, d, m)
	replace(t, file, before.pem(t))
	wantRejected(t, p, d, m, "not of this key and content")
	replace(t, file, after.pem(t))
	wantAccepted(t, p, d, m)

	replace(t, file, []byte("half a k"))
	m.fetched = 0
	wantRejected(t, p, d, m, file, `signature policy of scope "quay.io/org"`)
	if err := p.Reload(); err == nil || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), other) {
		t.Errorf("reload: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	wantRejected(t, p, d, m, file, "no such file")
	if m.fetched > 0 {
		t.Errorf("%d fetches that could be of no use", m.fetched)
	}
	if err := p.Check(t.Context(), "ghcr.io/app", d, m); !errors.Is(err, trust.ErrRejected) || !strings.Contains(err.Error(), "not of this key and content") {
		t.Errorf("the other scope: %v", err)
	}
	replace(t, file, after.pem(t))
	wantAccepted(t, p, d, m)
	if err := p.Reload(); err != nil {
		t.Error(err)
	}
}

// replace renames a new file over another, as configuration tools do.
func replace(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// Kubernetes' config maps change by a link of a directory.
func TestChangedLinkIsFollowed(t *testing.T) {
	before, after := newSigner(t, "ecdsa"), newSigner(t, "ecdsa")
	dir := t.TempDir()
	link := filepath.Join(dir, "data")
	if err := os.Symlink(filepath.Dir(before.file(t)), link); err != nil {
		t.Fatal(err)
	}
	p := newPolicy(t, signedBy(filepath.Join(link, "key.pub")))
	m, d := newMemory(t)
	m.addOld(t, d, after.old(t, m, d))
	wantRejected(t, p, d, m)
	if err := os.Symlink(filepath.Dir(after.file(t)), link+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		t.Fatal(err)
	}
	wantAccepted(t, p, d, m)
}

func TestConcurrentChecks(t *testing.T) {
	s := newSigner(t, "ecdsa")
	file := s.file(t)
	p := newPolicy(t, signedBy(file))
	var wg sync.WaitGroup
	for range 8 {
		m, d := newMemory(t)
		m.addOld(t, d, s.old(t, m, d))
		wg.Go(func() {
			for range 20 {
				wantAccepted(t, p, d, m)
			}
		})
	}
	for range 20 {
		replace(t, file, s.pem(t))
	}
	wg.Wait()
}
