package registry_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// client has short clocks.
func client(t *testing.T, c registry.Config) *registry.Client {
	t.Helper()
	c.Backoff = time.Millisecond
	if c.NoProgress == 0 {
		c.NoProgress = 5 * time.Second
	}
	client, err := registry.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func reference(t *testing.T, name string) registry.Reference {
	t.Helper()
	ref, err := registry.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func repository(t *testing.T, c *registry.Client, name string, a registry.Auth) *registry.Repository {
	t.Helper()
	repo, err := c.Repository(reference(t, name), a)
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

func smallImage(t *testing.T) *registrytest.Image {
	return registrytest.NewImage("amd64", registrytest.NewLayer(t, ocispec.MediaTypeImageLayerGzip,
		map[string][]byte{"file": bytes.Repeat([]byte("content "), 10_000)}))
}

// fetchAll fetches the manifest and the first layer.
func fetchAll(ctx context.Context, repo *registry.Repository, img *registrytest.Image) error {
	m, err := repo.Manifest(ctx, "")
	if err != nil {
		return err
	}
	if !bytes.Equal(m.Data, img.ManifestData) || m.Digest != img.Digest() || m.MediaType != img.Manifest.MediaType {
		return errors.New("another manifest came")
	}
	return fetchLayer(ctx, repo, img)
}

func fetchLayer(ctx context.Context, repo *registry.Repository, img *registrytest.Image) error {
	blob, err := repo.Blob(ctx, img.Manifest.Layers[0])
	if err != nil {
		return err
	}
	defer blob.Close()
	data, err := io.ReadAll(blob)
	if err != nil {
		return err
	}
	if !bytes.Equal(data, img.Layers[0].Blob) {
		return errors.New("another layer came")
	}
	return nil
}

func TestRealRegistry(t *testing.T) {
	img := smallImage(t)
	plain := registrytest.Start(t, registrytest.Options{})
	plain.Push(t, "a/b", "v1", img)
	basic := registrytest.Start(t, registrytest.Options{User: "me", Password: "s3cret-word"})
	basic.Push(t, "a/b", "v1", img)
	secure := registrytest.Start(t, registrytest.Options{TLS: true})
	secure.Push(t, "a/b", "v1", img)
	both := registrytest.Start(t, registrytest.Options{TLS: true, User: "me", Password: "s3cret-word"})
	both.Push(t, "a/b", "v1", img)
	tokens := registrytest.NewTokenServer(t, "me", "s3cret-word", "s3cret-refresh")
	token := registrytest.Start(t, registrytest.Options{Auth: tokens})
	token.Push(t, "a/b", "v1", img)

	encoded := base64.StdEncoding.EncodeToString([]byte("me:s3cret-word"))
	trust := registry.Config{Mirrors: map[string][]registry.Endpoint{secure.Host: {{URL: secure.URL(), CA: []string{secure.CA}}}}}
	for name, test := range map[string]struct {
		config registry.Config
		host   string
		auth   registry.Auth
		err    error
	}{
		"plain":                        {host: plain.Host},
		"plain, needless credentials":  {host: plain.Host, auth: registry.Auth{Username: "me", Password: "x"}},
		"basic":                        {host: basic.Host, auth: registry.Auth{Username: "me", Password: "s3cret-word"}},
		"basic, base64":                {host: basic.Host, auth: registry.Auth{Auth: encoded}},
		"basic, for this server":       {host: basic.Host, auth: registry.Auth{Auth: encoded, ServerAddress: "http://" + basic.Host + "/v1/"}},
		"basic, for another server":    {host: basic.Host, auth: registry.Auth{Auth: encoded, ServerAddress: "quay.io"}, err: registry.ErrUnauthorized},
		"basic, wrong password":        {host: basic.Host, auth: registry.Auth{Username: "me", Password: "s3cret-typo"}, err: registry.ErrUnauthorized},
		"basic, no credentials":        {host: basic.Host, err: registry.ErrUnauthorized},
		"basic, from the config":       {host: basic.Host, config: registry.Config{Auth: map[string]registry.Auth{basic.Host: {Auth: encoded}}}},
		"TLS, own authority":           {host: secure.Host, config: trust},
		"TLS, own authority, basic":    {host: both.Host, auth: registry.Auth{Auth: encoded}, config: registry.Config{Mirrors: map[string][]registry.Endpoint{both.Host: {{URL: both.URL(), CA: []string{both.CA}}}}}},
		"TLS, unknown authority":       {host: secure.Host, err: errAny},
		"TLS, configured insecure":     {host: secure.Host, config: registry.Config{Hosts: map[string]registry.HostConfig{secure.Host: {Insecure: true}}}},
		"TLS, mirror without checking": {host: "docker.io", config: registry.Config{Mirrors: map[string][]registry.Endpoint{"docker.io": {{URL: secure.URL(), SkipVerify: true}}}}},
		"token":                        {host: token.Host, auth: registry.Auth{Username: "me", Password: "s3cret-word"}},
		"token, refresh token":         {host: token.Host, auth: registry.Auth{IdentityToken: "s3cret-refresh"}},
		"token, ready made":            {host: token.Host, auth: registry.Auth{RegistryToken: tokens.Token("repository:a/b:pull")}},
		"token, of another image":      {host: token.Host, auth: registry.Auth{RegistryToken: tokens.Token("repository:a/c:pull")}, err: registry.ErrUnauthorized},
		"token, wrong password":        {host: token.Host, auth: registry.Auth{Username: "me", Password: "s3cret-typo"}, err: registry.ErrUnauthorized},
		"token, no credentials":        {host: token.Host, err: registry.ErrUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			repo := repository(t, client(t, test.config), test.host+"/a/b:v1", test.auth)
			err := fetchAll(t.Context(), repo, img)
			t.Log(err)
			if errors.Is(test.err, errAny) && err != nil {
				err = errAny
			}
			if !errors.Is(err, test.err) {
				t.Fatalf("err = %v, want %v", err, test.err)
			}
			if err != nil && !errors.Is(test.err, errAny) {
				if !strings.Contains(err.Error(), test.host) || strings.Contains(err.Error(), "s3cret") {
					t.Errorf("the error names no host, or tells a secret: %v", err)
				}
			}
		})
	}
	t.Run("a token is used for the whole pull", func(t *testing.T) {
		before := tokens.Issued.Load()
		repo := repository(t, client(t, registry.Config{}), token.Host+"/a/b:v1", registry.Auth{Username: "me", Password: "s3cret-word"})
		if err := errors.Join(fetchAll(t.Context(), repo, img), fetchLayer(t.Context(), repo, img)); err != nil {
			t.Fatal(err)
		}
		if n := tokens.Issued.Load() - before; n != 1 {
			t.Errorf("%d tokens were asked for", n)
		}
	})
	t.Run("what is not there", func(t *testing.T) {
		for _, name := range []string{"/a/b:v2", "/x/y:v1", "/a/b@" + digest.FromString("x").String()} {
			repo := repository(t, client(t, registry.Config{}), plain.Host+name, registry.Auth{})
			if _, err := repo.Manifest(t.Context(), ""); !errors.Is(err, registry.ErrNotFound) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	t.Run("by digest, and the digest alone", func(t *testing.T) {
		repo := repository(t, client(t, registry.Config{}), plain.Host+"/a/b@"+img.Digest().String(), registry.Auth{})
		if err := fetchAll(t.Context(), repo, img); err != nil {
			t.Error(err)
		}
		if d, err := repo.Digest(t.Context()); d != img.Digest() || err != nil {
			t.Errorf("%s, %v", d, err)
		}
	})
}

var errAny = errors.New("some error")

func TestConfigIsChecked(t *testing.T) {
	mirror := func(e registry.Endpoint) registry.Config {
		return registry.Config{Mirrors: map[string][]registry.Endpoint{"docker.io": {e}}}
	}
	noCert := t.TempDir() + "/ca.pem"
	if err := os.WriteFile(noCert, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]registry.Config{
		"no scheme":       mirror(registry.Endpoint{URL: "mirror.example"}),
		"other scheme":    mirror(registry.Endpoint{URL: "ftp://mirror.example"}),
		"password in URL": mirror(registry.Endpoint{URL: "https://me:s3cret@mirror.example"}),
		"broken URL":      mirror(registry.Endpoint{URL: "https://s3cret:x%@mirror.example"}),
		"query":           mirror(registry.Endpoint{URL: "https://mirror.example?token=s3cret"}),
		"no such CA":      mirror(registry.Endpoint{URL: "https://mirror.example", CA: []string{"/nowhere"}}),
		"CA is empty":     mirror(registry.Endpoint{URL: "https://mirror.example", CA: []string{noCert}}),
		"no endpoint":     {Hosts: map[string]registry.HostConfig{"docker.io": {NoFallback: true}}},
		"bad credential":  {Auth: map[string]registry.Auth{"docker.io": {Auth: "s3cret"}}},
	} {
		if _, err := registry.New(c); err == nil || !strings.Contains(err.Error(), "docker.io") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	ref, err := registry.Parse("busybox")
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"s3cret", base64.StdEncoding.EncodeToString([]byte("s3cret"))} {
		_, err := client(t, registry.Config{}).Repository(ref, registry.Auth{Auth: bad})
		if !errors.Is(err, registry.ErrInvalid) || strings.Contains(err.Error(), bad) {
			t.Errorf("%v", err)
		}
	}
}
