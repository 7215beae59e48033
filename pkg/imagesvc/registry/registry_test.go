package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestParse(t *testing.T) {
	const hex = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	for s, want := range map[string]string{
		"busybox":                   "docker.io/library/busybox:latest",
		"a/b":                       "docker.io/a/b:latest",
		"registry.k8s.io/pause:3.9": "registry.k8s.io/pause:3.9",
		"127.0.0.1:5000/x/y:t":      "127.0.0.1:5000/x/y:t",
		"q.io/x@sha256:" + hex:      "q.io/x@sha256:" + hex,
		"q.io/x:v1@sha256:" + hex:   "q.io/x:v1@sha256:" + hex,
		"localhost/x":               "localhost/x:latest",
		"":                          "",
		"q.io/x@sha256:short":       "",
		"q.io/x:bad tag":            "",
		"../../etc/passwd":          "",
		"https://q.io/x":            "",
		hex:                         "", // an ID, not a name
	} {
		r, err := Parse(s)
		if want == "" {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("Parse(%q) = %s, %v; want an error", s, r, err)
			}
			continue
		}
		if err != nil || r.String() != want {
			t.Errorf("Parse(%q) = %s, %v; want %s", s, r, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("q.io/x:v1@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(r.String())
		if err != nil || again != r {
			t.Errorf("Parse(%q) = %+v, but read again it is %+v, %v", s, r, again, err)
		}
	})
}

// server is a registry with one manifest "app:1"; auth decides who is let in.
type server struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string // Authorization headers
	auth func(w http.ResponseWriter, r *http.Request) bool
}

var manifest = []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `"}`)

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.seen = append(s.seen, r.Header.Get("Authorization"))
	s.mu.Unlock()
	if s.auth != nil && !s.auth(w, r) {
		return
	}
	if !strings.HasSuffix(r.URL.Path, "/manifests/1") {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(manifest).String())
	w.Header().Set("Content-Length", fmt.Sprint(len(manifest)))
	_, _ = w.Write(manifest)
}

func newServer(t *testing.T, tls bool, auth func(http.ResponseWriter, *http.Request) bool) *server {
	t.Helper()
	s := &server{auth: auth}
	if tls {
		s.Server = httptest.NewTLSServer(s)
	} else {
		s.Server = httptest.NewServer(s)
	}
	t.Cleanup(s.Close)
	return s
}

func (s *server) host() string { return s.URL[strings.Index(s.URL, "//")+2:] }

func resolve(t *testing.T, c Config, name string, a Auth) error {
	t.Helper()
	client, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	_, data, err := client.Open(ref, a).Resolve(t.Context())
	if err == nil && string(data) != string(manifest) {
		t.Errorf("got %q", data)
	}
	return err
}

func basic(user, password string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); ok && u == user && p == password {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
		w.WriteHeader(http.StatusUnauthorized)
		return false
	}
}

func TestBasicAuth(t *testing.T) {
	s := newServer(t, false, basic("me", "secret"))
	name := s.host() + "/app:1"
	for form, a := range map[string]Auth{
		"user and password": {Username: "me", Password: "secret"},
		"auth":              {Auth: base64.StdEncoding.EncodeToString([]byte("me:secret"))},
		"server":            {Username: "me", Password: "secret", ServerAddress: "http://" + s.host() + "/v1/"},
	} {
		if err := resolve(t, Config{}, name, a); err != nil {
			t.Errorf("%s: %v", form, err)
		}
	}
	if err := resolve(t, Config{Auth: map[string]Auth{s.host(): {Username: "me", Password: "secret"}}}, name, Auth{}); err != nil {
		t.Errorf("configured: %v", err)
	}
	for form, a := range map[string]Auth{
		"none": {}, "wrong": {Username: "me", Password: "guess-work"}, "another server's": {Username: "me", Password: "secret", ServerAddress: "q.io"},
		"no base64": {Auth: "%%%"},
	} {
		err := resolve(t, Config{}, name, a)
		if !errors.Is(err, ErrUnauthorized) || strings.Contains(err.Error(), "guess-work") {
			t.Errorf("%s: %v", form, err)
		}
	}
}

func TestTokenAuth(t *testing.T) {
	var s *server
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != "me" || p != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"token": "granted " + r.URL.Query().Get("scope")})
	}))
	t.Cleanup(tokens.Close)
	s = newServer(t, false, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer granted repository:app:pull" || r.Header.Get("Authorization") == "Bearer given" {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+tokens.URL+`/token",service="s",scope="repository:app:pull"`)
		w.WriteHeader(http.StatusUnauthorized)
		return false
	})
	name := s.host() + "/app:1"
	if err := resolve(t, Config{}, name, Auth{Username: "me", Password: "secret"}); err != nil {
		t.Error(err)
	}
	if err := resolve(t, Config{}, name, Auth{RegistryToken: "given"}); err != nil {
		t.Errorf("registry token: %v", err)
	}
	if err := resolve(t, Config{}, name, Auth{}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("no credential: %v", err)
	}
}

// The credential of a pull goes to its registry only: not to a mirror, and not to where a registry redirects.
func TestCredentialsStayAtHome(t *testing.T) {
	secret := Auth{Username: "me", Password: "secret"}
	thief := newServer(t, false, nil)
	home := newServer(t, false, func(w http.ResponseWriter, r *http.Request) bool {
		if !basic("me", "secret")(w, r) {
			return false
		}
		http.Redirect(w, r, thief.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return false
	})
	// Another name of the same address is another host.
	if err := resolve(t, Config{}, strings.Replace(home.host(), "127.0.0.1", "localhost", 1)+"/app:1", secret); err != nil {
		t.Fatal(err)
	}
	mirror := newServer(t, false, nil)
	if err := resolve(t, Config{Mirrors: map[string][]Endpoint{"q.io": {{URL: mirror.URL}}}}, "q.io/app:1", secret); err != nil {
		t.Fatal(err)
	}
	for who, s := range map[string]*server{"the redirect's target": thief, "the mirror": mirror} {
		for _, header := range s.seen {
			if header != "" {
				t.Errorf("%s got %q", who, header)
			}
		}
	}
	guarded := newServer(t, false, basic("mirror", "own"))
	c := Config{Mirrors: map[string][]Endpoint{"q.io": {{URL: guarded.URL}}}, Auth: map[string]Auth{guarded.host(): {Username: "mirror", Password: "own"}}}
	if err := resolve(t, c, "q.io/app:1", secret); err != nil {
		t.Errorf("a mirror with a credential of its own: %v", err)
	}
}

func TestMirrorsInOrder(t *testing.T) {
	dead := httptest.NewServer(nil)
	dead.Close()
	failing := newServer(t, false, func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusForbidden); return false })
	good := newServer(t, false, nil)
	c := Config{Mirrors: map[string][]Endpoint{"q.io": {{URL: dead.URL}, {URL: failing.URL}, {URL: good.URL}}}}
	if err := resolve(t, c, "q.io/app:1", Auth{}); err != nil {
		t.Error(err)
	}
	err := resolve(t, Config{Mirrors: map[string][]Endpoint{"127.0.0.1:1": {{URL: dead.URL}}}}, "127.0.0.1:1/app:1", Auth{})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), dead.URL) || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("nobody answers: %v", err)
	}
}

func TestTLS(t *testing.T) {
	s := newServer(t, true, nil)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	mirrors := func(e Endpoint) Config { return Config{Mirrors: map[string][]Endpoint{"127.0.0.1:1": {e}}} }
	if err := resolve(t, mirrors(Endpoint{URL: s.URL, CA: ca}), "127.0.0.1:1/app:1", Auth{}); err != nil {
		t.Errorf("with the CA: %v", err)
	}
	if err := resolve(t, mirrors(Endpoint{URL: s.URL, SkipVerify: true}), "127.0.0.1:1/app:1", Auth{}); err != nil {
		t.Errorf("unverified: %v", err)
	}
	if err := resolve(t, mirrors(Endpoint{URL: s.URL}), "127.0.0.1:1/app:1", Auth{}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown CA: %v", err)
	}
	for _, e := range []Endpoint{{URL: "ftp://x"}, {URL: "x"}, {URL: s.URL, CA: "/no/such/file"}, {URL: "http://x/path"}} {
		if _, err := New(mirrors(e)); err == nil {
			t.Errorf("endpoint %+v is accepted", e)
		}
	}
}

func TestAuthIsNotPrinted(t *testing.T) {
	a := Auth{Username: "me", Password: "secret", RegistryToken: "token"}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(format, a); strings.Contains(s, "secret") || strings.Contains(s, "token") {
			t.Errorf("%s prints %s", format, s)
		}
	}
}

func TestVerify(t *testing.T) {
	data := []byte("some content")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	for name, row := range map[string]struct {
		body io.Reader
		want error
	}{
		"right": {strings.NewReader("some content"), nil},
		"short": {strings.NewReader("some"), ErrTruncated},
		"wrong": {strings.NewReader("SOME content"), ErrDigest},
		"long":  {strings.NewReader("some content and more"), ErrDigest},
		"empty": {strings.NewReader(""), ErrTruncated},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		r := verify(ctx, cancel, io.NopCloser(row.body), desc, time.Minute)
		if _, err := io.ReadAll(r); !errors.Is(err, row.want) {
			t.Errorf("%s: %v, want %v", name, err, row.want)
		}
		_ = r.Close()
	}
}
