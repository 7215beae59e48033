package imagesvc_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
	"criserver/pkg/imagesvc/trust"
)

func TestShortNames(t *testing.T) {
	first, second := registrytest.NewMemory(t), registrytest.NewMemory(t)
	second.Add("team/app", "v1", image(layer(t, "app")))
	second.Add("lib/busybox", "v1", image(layer(t, "busybox")))
	n := newNode(t, registry.Config{ShortNames: registry.ShortNames{
		Mode: registry.ShortSearch, Search: []string{first.Host, second.Host}, Aliases: map[string]string{"busybox": second.Host + "/lib/busybox"},
	}})
	a := registry.Auth{Username: "me", Password: "s3cret-word"}
	for short, full := range map[string]string{"team/app:v1": "/team/app:v1", "busybox:v1": "/lib/busybox:v1"} {
		if _, err := n.Resolve(short); !errors.Is(err, imagesvc.ErrNotFound) {
			t.Errorf("before: %v", err)
		}
		id, err := n.Pull(t.Context(), short, a)
		if err != nil {
			t.Fatal(err)
		}
		img, err := n.Resolve(short)
		if err != nil || img.ID.String() != id || strings.Join(img.Tags, " ") != second.Host+full {
			t.Errorf("%s is %s with %q, %v", short, img.ID, img.Tags, err)
		}
		if err := n.Remove(t.Context(), short); err != nil {
			t.Error(err)
		}
		if _, err := n.Resolve(second.Host + full); !errors.Is(err, imagesvc.ErrNotFound) {
			t.Errorf("after: %v", err)
		}
	}
	_, err := n.Pull(t.Context(), "team/other:v1", a)
	if !errors.Is(err, registry.ErrNotFound) || !strings.Contains(err.Error(), first.Host) || !strings.Contains(err.Error(), second.Host) {
		t.Errorf("nowhere: %v", err)
	}
	for _, r := range append(first.Requests(), second.Requests()...) {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("%s came with a credential that is for docker.io", r.URL)
		}
	}
	refusing := newNode(t, registry.Config{ShortNames: registry.ShortNames{Mode: registry.ShortRefuse}})
	if _, err := refusing.Pull(t.Context(), "team/app:v1", a); !errors.Is(err, imagesvc.ErrInvalid) || !strings.Contains(err.Error(), "docker.io/team/app:v1") {
		t.Errorf("refused: %v", err)
	}
}

// Only a registry that says that it has no such image is passed over in a search, unless the name has a digest.
func TestShortNameSearchEnds(t *testing.T) {
	img := image(layer(t, "app"))
	blob := "/blobs/" + img.Manifest.Layers[0].Digest.String()
	status := func(part string, code int) func(w http.ResponseWriter, r *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, part) {
				w.WriteHeader(code)
				return true
			}
			return false
		}
	}
	for name, test := range map[string]struct {
		hook     func(w http.ResponseWriter, r *http.Request) bool // of the first registry
		has      bool                                              // the first one has the image
		down     bool
		policy   bool
		err      error
		byDigest error
	}{
		"not there":       {},
		"there":           {has: true},
		"refuses":         {hook: status("/manifests/", 401), err: registry.ErrUnauthorized},
		"forbids":         {hook: status("/manifests/", 403), err: registry.ErrUnauthorized},
		"out of order":    {hook: status("/manifests/", 503), err: registry.ErrUnavailable},
		"down":            {down: true, err: registry.ErrUnavailable},
		"without a layer": {hook: status(blob, 404), has: true, err: registry.ErrNotFound},
		"not trusted":     {has: true, policy: true, err: imagesvc.ErrUntrusted, byDigest: imagesvc.ErrUntrusted},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := registrytest.NewMemory(t), registrytest.NewMemory(t)
			first.Hook = test.hook
			if test.has {
				first.Add("team/app", "v1", img)
			}
			second.Add("team/app", "v1", img)
			n := newNode(t, registry.Config{
				ShortNames: registry.ShortNames{Mode: registry.ShortSearch, Search: []string{first.Host, second.Host}},
				Mirrors:    map[string][]registry.Endpoint{first.Host: {{URL: "http://" + first.Host}}},
			})
			if test.policy {
				n.settings.Policy = rejects(first.Host)
				n.restart(t)
			}
			if test.down {
				first.Server.Close()
			}
			// In this order: what the second pull brings is there for the first.
			for _, pull := range []struct {
				short string
				want  error
			}{{"team/app:v1", test.err}, {"team/app@" + img.Digest().String(), test.byDigest}} {
				short, want := pull.short, pull.want
				before := len(second.Requests())
				_, err := n.Pull(t.Context(), short, registry.Auth{})
				if !errors.Is(err, want) {
					t.Fatalf("%s: %v, want %v", short, err, want)
				}
				if asked := len(second.Requests()) > before; want != nil && (asked || !strings.Contains(err.Error(), "the search ends here")) {
					t.Errorf("%s: %v; the second was asked: %t", short, err, asked)
				}
			}
		})
	}
}

// rejects is a policy that trusts no image of a registry.
type rejects string

func (r rejects) Required(repository string) bool { return strings.HasPrefix(repository, string(r)) }

func (r rejects) Check(context.Context, string, digest.Digest, trust.Source) error {
	return imagesvc.ErrUntrusted
}

// Names that images are given stand for what they stand for in a pull.
func TestShortNamesThatAreGiven(t *testing.T) {
	server := registrytest.NewMemory(t)
	server.Add("a/b", "v1", image(layer(t, "app")))
	n := newNode(t, registry.Config{ShortNames: registry.ShortNames{
		Mode: registry.ShortRefuse, Aliases: map[string]string{"mine": server.Host + "/private/mine"},
	}})
	id := n.pull(t, server.Host+"/a/b:v1")
	img, err := n.Tag(t.Context(), id, "mine:1")
	if want := server.Host + "/private/mine:1"; err != nil || !slices.Contains(img.Tags, want) {
		t.Errorf("tagged %v, %v, want %s", img.Tags, err, want)
	}
	for what, give := range map[string]func(name string) error{
		"tag":  func(name string) error { _, err := n.Tag(t.Context(), id, name); return err },
		"push": func(name string) error { _, err := n.Push(t.Context(), id, name, registry.Auth{}, nil); return err },
		"commit": func(name string) error {
			_, err := n.Commit(t.Context(), imagesvc.CommitOptions{Name: name})
			return err
		},
		"import": func(name string) error {
			_, err := n.Import(t.Context(), strings.NewReader(""), imagesvc.ImportOptions{Name: name})
			return err
		},
	} {
		if err := give("other:1"); !errors.Is(err, imagesvc.ErrInvalid) || !strings.Contains(err.Error(), "short names are refused") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := n.image(t, id).Tags; len(got) != 2 {
		t.Errorf("tags %v", got)
	}
}

// lines is what was logged.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// Pulls that fail, with each form of a credential, leave nothing of it in the error and in the log at its most talkative.
func TestSecretsAreNotLogged(t *testing.T) {
	log := &lines{}
	level := logrus.GetLevel()
	logrus.SetLevel(logrus.TraceLevel)
	logrus.SetOutput(log)
	t.Cleanup(func() { logrus.SetLevel(level); logrus.SetOutput(os.Stderr) })
	tokens := registrytest.NewTokenServer(t, "me", "right", "right")
	encoded := base64.StdEncoding.EncodeToString([]byte("me:s3cret-word"))
	forms := map[string]registry.Auth{
		"password": {Username: "me", Password: "s3cret-word"}, "base64": {Auth: encoded},
		"refresh token": {IdentityToken: "s3cret-word"}, "bearer token": {RegistryToken: "s3cret-word"},
	}
	for _, host := range []string{
		registrytest.Start(t, registrytest.Options{User: "me", Password: "right"}).Host, registrytest.Start(t, registrytest.Options{Auth: tokens}).Host,
	} {
		for name, a := range forms {
			for where, n := range map[string]*node{
				"given": newNode(t, registry.Config{}), "configured": newNode(t, registry.Config{Auth: map[string]registry.Auth{host: a}}),
			} {
				given := a
				if where == "configured" {
					given = registry.Auth{}
				}
				_, err := n.Pull(t.Context(), host+"/a/b:v1", given)
				if !errors.Is(err, registry.ErrUnauthorized) || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), encoded) {
					t.Errorf("%s, %s: %v", name, where, err)
				}
			}
		}
	}
	if text := log.b.String(); strings.Contains(text, "s3cret") || strings.Contains(text, encoded) || strings.Count(text, "pull failed") != 16 {
		t.Errorf("the log is\n%s", text)
	}
}
