package registry_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

func TestMirrors(t *testing.T) {
	img := smallImage(t)
	with := func(hook func(w http.ResponseWriter, r *http.Request) bool) *registrytest.Memory {
		m := registrytest.NewMemory(t)
		m.Add("a/b", "v1", img)
		m.Hook = hook
		return m
	}
	status := func(code int) *registrytest.Memory {
		return with(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true })
	}
	down := "http://127.0.0.1:1" // tcpmux: nobody listens
	for name, test := range map[string]struct {
		mirror *registrytest.Memory // nil: down
		own    *registrytest.Memory
		only   bool
		err    error
	}{
		"mirror answers":                {mirror: with(nil), own: status(500)},
		"mirror is down":                {own: with(nil)},
		"mirror does not have it":       {mirror: status(404), own: with(nil)},
		"mirror refuses":                {mirror: status(403), own: with(nil)},
		"mirror is out of order":        {mirror: status(503), own: with(nil)},
		"mirror serves other manifests": {mirror: with(serveOther), own: with(nil)},
		"none has it":                   {mirror: status(404), own: status(404), err: registry.ErrNotFound},
		"the registry's word counts":    {mirror: status(404), own: status(403), err: registry.ErrUnauthorized},
		"all are down":                  {own: status(503), err: registry.ErrUnavailable},
		"no fallback":                   {mirror: status(404), own: with(nil), only: true, err: registry.ErrNotFound},
		"no fallback, down":             {own: with(nil), only: true, err: registry.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			url := down
			if test.mirror != nil {
				url = "http://" + test.mirror.Host
			}
			own := test.own.Host
			c := client(t, registry.Config{
				Mirrors: map[string][]registry.Endpoint{own: {{URL: url}}},
				Hosts:   map[string]registry.HostConfig{own: {NoFallback: test.only}},
			})
			before := len(test.own.Requests())
			// By digest, so that another manifest is noticed.
			err := fetchAll(t.Context(), repository(t, c, own+"/a/b@"+img.Digest().String(), registry.Auth{}), img)
			t.Log(err)
			if !errors.Is(err, test.err) {
				t.Fatalf("err = %v, want %v", err, test.err)
			}
			for _, kind := range []error{registry.ErrNotFound, registry.ErrUnauthorized, registry.ErrUnavailable} {
				if test.err != nil && !errors.Is(test.err, kind) && errors.Is(err, kind) {
					t.Errorf("the error is of kind %v too", kind)
				}
			}
			if n := len(test.own.Requests()) - before; test.only && n > 0 {
				t.Errorf("the registry itself was asked %d times", n)
			}
			if test.mirror != nil && test.mirror.Requests()[0].URL.Query().Get("ns") != own {
				t.Errorf("the mirror was not told whose image it is: %s", test.mirror.Requests()[0].URL)
			}
		})
	}
}

func serveOther(w http.ResponseWriter, _ *http.Request) bool {
	_, _ = w.Write([]byte("{}"))
	return true
}

// An endpoint that does not work is asked once a pull, not once a blob.
func TestBrokenMirrorIsAskedOnce(t *testing.T) {
	img := smallImage(t)
	own, mirror := registrytest.NewMemory(t), registrytest.NewMemory(t)
	own.Add("a/b", "v1", img)
	mirror.Hook = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusNotImplemented)
		return true
	}
	c := client(t, registry.Config{Mirrors: map[string][]registry.Endpoint{own.Host: {{URL: "http://" + mirror.Host}}}})
	if err := fetchAll(t.Context(), repository(t, c, own.Host+"/a/b:v1", registry.Auth{}), img); err != nil {
		t.Fatal(err)
	}
	if n := len(mirror.Requests()); n != 1 {
		t.Errorf("the mirror was asked %d times", n)
	}
}

// A pull's credential, which only the host that it is for may see, whatever a server does.
var secret = registry.Auth{Username: "me", Password: "s3cret-word"}

// demand asks for credentials, and says whether it did.
func demand(w http.ResponseWriter, r *http.Request) bool {
	if r.Header.Get("Authorization") != "" {
		return false
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="give it to me"`)
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

// thief is a server that asks for credentials and keeps what it gets.
type thief struct {
	*httptest.Server
	mu     sync.Mutex
	stolen []string
}

func newThief(t *testing.T) *thief {
	th := &thief{}
	th.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); ok {
			th.mu.Lock()
			th.stolen = append(th.stolen, user+":"+password)
			th.mu.Unlock()
		}
		if !demand(w, r) {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	t.Cleanup(th.Close)
	return th
}

func (th *thief) thefts() []string {
	th.mu.Lock()
	defer th.mu.Unlock()
	return th.stolen
}

func TestCredentialsStayOnRedirect(t *testing.T) {
	img := smallImage(t)
	thief := newThief(t)
	m := registrytest.NewMemory(t)
	m.Add("a/b", "v1", img)
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if demand(w, r) {
			return true
		}
		if isLayer(r, img) {
			http.Redirect(w, r, thief.URL+"/x?X-Signature=s3cret-key", http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	err := fetchAll(t.Context(), repository(t, client(t, registry.Config{}), m.Host+"/a/b:v1", secret), img)
	t.Log(err)
	if err == nil || strings.Contains(err.Error(), "s3cret") || len(thief.thefts()) > 0 {
		t.Errorf("err = %v, stolen: %q", err, thief.thefts())
	}
}

func TestCredentialsStayOnGoodRedirect(t *testing.T) {
	img := smallImage(t)
	store, m := registrytest.NewMemory(t), registrytest.NewMemory(t)
	store.Add("a/b", "v1", img)
	m.Add("a/b", "v1", img)
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if demand(w, r) {
			return true
		}
		if isLayer(r, img) {
			http.Redirect(w, r, "http://"+store.Host+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	if err := fetchAll(t.Context(), repository(t, client(t, registry.Config{}), m.Host+"/a/b:v1", secret), img); err != nil {
		t.Fatal(err)
	}
	for _, r := range store.Requests() {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("%s came with credentials", r.URL)
		}
	}
}

func TestCredentialsStayFromMirrors(t *testing.T) {
	img := smallImage(t)
	thief := newThief(t)
	own := registrytest.NewMemory(t)
	own.Add("a/b", "v1", img)
	own.Hook = demand
	mirrors := map[string][]registry.Endpoint{own.Host: {{URL: thief.URL}}}
	c := client(t, registry.Config{Mirrors: mirrors})
	err := fetchAll(t.Context(), repository(t, c, own.Host+"/a/b:v1", secret), img)
	if err != nil || len(thief.thefts()) > 0 {
		t.Errorf("err = %v, stolen: %q", err, thief.thefts())
	}
	// Unless the operator says that it may, or gives it its own.
	mirrors[own.Host][0].TakesCredentials = true
	c = client(t, registry.Config{Mirrors: mirrors})
	if err := fetchAll(t.Context(), repository(t, c, own.Host+"/a/b:v1", secret), img); err != nil || len(thief.thefts()) == 0 {
		t.Errorf("allowed: err = %v, given: %q", err, thief.thefts())
	}
	mirrors[own.Host][0].TakesCredentials = false
	c = client(t, registry.Config{Mirrors: mirrors, Auth: map[string]registry.Auth{
		strings.TrimPrefix(thief.URL, "http://"): {Username: "node", Password: "own-word"},
	}})
	if err := fetchAll(t.Context(), repository(t, c, own.Host+"/a/b:v1", secret), img); err != nil || thief.thefts()[len(thief.thefts())-1] != "node:own-word" {
		t.Errorf("own: err = %v, given: %q", err, thief.thefts())
	}
}

func TestCredentialsAreNotInErrors(t *testing.T) {
	img := smallImage(t)
	m := registrytest.NewMemory(t)
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !demand(w, r) {
			_, password, _ := r.BasicAuth()
			registrytest.Fail(w, http.StatusForbidden, "DENIED", "password "+password+" is wrong")
		}
		return true
	}
	err := fetchAll(t.Context(), repository(t, client(t, registry.Config{}), m.Host+"/a/b:v1", secret), img)
	if !errors.Is(err, registry.ErrUnauthorized) || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("err = %v", err)
	}
}

func TestNoRedirectFromTLSToPlain(t *testing.T) {
	img := smallImage(t)
	m, plain := registrytest.NewMemoryTLS(t), registrytest.NewMemory(t)
	m.Add("a/b", "v1", img)
	plain.Add("a/b", "v1", img)
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, "http://"+plain.Host+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
	c := client(t, registry.Config{Mirrors: map[string][]registry.Endpoint{m.Host: {{URL: m.Server.URL, SkipVerify: true}}}})
	err := fetchAll(t.Context(), repository(t, c, m.Host+"/a/b:v1", secret), img)
	if err == nil || len(plain.Requests()) > 0 {
		t.Errorf("err = %v, %d requests", err, len(plain.Requests()))
	}
}

func TestAuthIsNotPrinted(t *testing.T) {
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(format, secret); strings.Contains(text, "s3cret") {
			t.Errorf("%s prints %s", format, text)
		}
	}
}

// Registries redirect to URLs that are keys to the content.
func TestSignedURLsAreNotInErrors(t *testing.T) {
	img := smallImage(t)
	m := registrytest.NewMemory(t)
	m.Add("a/b", "v1", img)
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !isLayer(r, img) {
			return false
		}
		http.Redirect(w, r, "http://user:s3cret-word@127.0.0.1:1/x?X-Signature=s3cret-key", http.StatusTemporaryRedirect) // nobody listens
		return true
	}
	err := fetchAll(t.Context(), repository(t, client(t, registry.Config{}), m.Host+"/a/b:v1", registry.Auth{}), img)
	t.Log(err)
	if !errors.Is(err, registry.ErrUnavailable) || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("err = %v", err)
	}
}
