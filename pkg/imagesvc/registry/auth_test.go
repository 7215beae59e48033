package registry_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/credential"
	"criserver/pkg/imagesvc/registry/registrytest"
)

func encode(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func writeFile(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	path := t.TempDir() + "/" + name
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func dockerConfig(t *testing.T, host, user string) string {
	return writeFile(t, "config.json", fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, host, encode(user)), 0o600)
}

func provider(t *testing.T, host, script string) credential.ProviderConfig {
	plugin := writeFile(t, "test-provider", "#!/bin/sh\n"+script, 0o755)
	host, port, _ := strings.Cut(host, ":")
	config := writeFile(t, "config.yaml", `{apiVersion: kubelet.config.k8s.io/v1, kind: CredentialProviderConfig, providers: [
		{name: test-provider, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: ["`+host+":"+port+`"], defaultCacheDuration: 0s}]}`, 0o600)
	return credential.ProviderConfig{Config: config, BinDir: strings.TrimSuffix(plugin, "/test-provider")}
}

func answer(host, user, password string) string {
	return fmt.Sprintf(`echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Image",`+
		`"auth":{%q:{"username":%q,"password":%q}}}'`, host, user, password)
}

// Where credentials come from, with a real registry that wants a password and one that wants a token.
func TestCredentialSources(t *testing.T) {
	img := smallImage(t)
	tokens := registrytest.NewTokenServer(t, "me", "s3cret-word", "s3cret-refresh")
	for kind, server := range map[string]*registrytest.Server{
		"basic": registrytest.Start(t, registrytest.Options{User: "me", Password: "s3cret-word"}),
		"TLS":   registrytest.Start(t, registrytest.Options{User: "me", Password: "s3cret-word", TLS: true}),
		"token": registrytest.Start(t, registrytest.Options{Auth: tokens}),
	} {
		server.Push(t, "a/b", "v1", img)
		host := server.Host
		right, wrong := registry.Auth{Username: "me", Password: "s3cret-word"}, registry.Auth{Username: "me", Password: "s3cret-typo"}
		for name, test := range map[string]struct {
			given  registry.Auth
			config registry.Config
			says   string // of an error
		}{
			"given":                     {given: right},
			"docker config":             {config: registry.Config{DockerConfigs: []string{dockerConfig(t, host, "me:s3cret-word")}}},
			"docker config, by path":    {config: registry.Config{DockerConfigs: []string{dockerConfig(t, host+"/a", "me:s3cret-word")}}},
			"docker config, other path": {config: registry.Config{DockerConfigs: []string{dockerConfig(t, host+"/c", "me:s3cret-word")}}, says: "no credentials were given"},
			"plugin":                    {config: registry.Config{Providers: provider(t, host, answer(host, "me", "s3cret-word"))}},
			"the second one": {given: wrong, config: registry.Config{
				Auth: map[string]registry.Auth{host: wrong}, DockerConfigs: []string{dockerConfig(t, host, "me:s3cret-other"), dockerConfig(t, host, "me:s3cret-word")}}},
			"the last one": {given: wrong, config: registry.Config{
				Auth:          map[string]registry.Auth{host: {Username: "me", Password: "s3cret-old"}},
				DockerConfigs: []string{dockerConfig(t, host, "me:s3cret-other")},
				Providers:     provider(t, host, answer(host, "me", "s3cret-word"))}},
			"none of them": {given: wrong, config: registry.Config{
				Auth:          map[string]registry.Auth{host: {Username: "me", Password: "s3cret-old"}},
				DockerConfigs: []string{dockerConfig(t, host, "me:s3cret-other")},
				Providers:     provider(t, host, answer(host, "me", "s3cret-more"))},
				says: "tried the credentials of the pull, the configuration for " + host + ", docker config "},
			"a plugin that fails": {config: registry.Config{Providers: provider(t, host, "echo no network >&2; exit 1")}, says: "credential provider test-provider: exit status 1: no network"},
			"a file that is none": {config: registry.Config{DockerConfigs: []string{writeFile(t, "config.json", "{s3cret", 0o600)}}, says: "docker config /"},
		} {
			t.Run(kind+", "+name, func(t *testing.T) {
				if server.CA != "" {
					test.config.Mirrors = map[string][]registry.Endpoint{host: {{URL: server.URL(), CA: []string{server.CA}}}}
				}
				err := fetchAll(t.Context(), repository(t, client(t, test.config), host+"/a/b:v1", test.given), img)
				t.Log(err)
				if test.says == "" && err != nil || test.says != "" && (!errors.Is(err, registry.ErrUnauthorized) || !strings.Contains(err.Error(), test.says)) {
					t.Errorf("err = %v, want %q", err, test.says)
				}
				if err != nil && strings.Contains(err.Error(), "s3cret") {
					t.Errorf("the error tells a secret: %v", err)
				}
			})
		}
	}
}

// The one that worked is used for the rest of the pull.
func TestGoodCredentialIsKept(t *testing.T) {
	img := smallImage(t)
	m := registrytest.NewMemory(t)
	m.Add("a/b", "v1", img)
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if demand(w, r) {
			return true
		}
		_, password, _ := r.BasicAuth()
		if password != "s3cret-word" {
			registrytest.Fail(w, http.StatusForbidden, "DENIED", "not you")
		}
		return password != "s3cret-word"
	}
	c := client(t, registry.Config{DockerConfigs: []string{dockerConfig(t, m.Host, "me:s3cret-word")}})
	repo := repository(t, c, m.Host+"/a/b:v1", registry.Auth{Username: "me", Password: "typo"})
	if err := errors.Join(fetchAll(t.Context(), repo, img), fetchLayer(t.Context(), repo, img)); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, r := range m.Requests() {
		_, password, _ := r.BasicAuth()
		seen = append(seen, password)
	}
	if got := strings.Join(seen, ","); got != ",typo,,s3cret-word,s3cret-word,s3cret-word" {
		t.Errorf("passwords: %s", got)
	}
}

// What anybody may have is not refused for a wrong password.
func TestAnonymousIsLast(t *testing.T) {
	img := smallImage(t)
	tokens := registrytest.NewTokenServer(t, "me", "s3cret-word", "")
	tokens.Public = true
	server := registrytest.Start(t, registrytest.Options{Auth: tokens})
	server.Push(t, "a/b", "v1", img)
	for name, a := range map[string]registry.Auth{
		"none": {}, "wrong password": {Username: "me", Password: "typo"}, "wrong token": {RegistryToken: "typo"}, "wrong refresh token": {IdentityToken: "typo"},
		"for another server": {Username: "me", Password: "s3cret-word", ServerAddress: "https://index.docker.io/v1/"},
	} {
		if err := fetchAll(t.Context(), repository(t, client(t, registry.Config{}), server.Host+"/a/b:v1", a), img); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOAuth2(t *testing.T) {
	img := smallImage(t)
	tokens := registrytest.NewTokenServer(t, "me", "s3cret-word", "s3cret-refresh")
	tokens.OnlyOAuth2 = true
	server := registrytest.Start(t, registrytest.Options{Auth: tokens})
	server.Push(t, "a/b", "v1", img)
	for name, test := range map[string]struct {
		auth   registry.Auth
		config registry.Config
		err    error
	}{
		"password":              {auth: registry.Auth{Username: "me", Password: "s3cret-word"}},
		"refresh token":         {auth: registry.Auth{IdentityToken: "s3cret-refresh"}},
		"refresh token, config": {config: registry.Config{Auth: map[string]registry.Auth{server.Host: {IdentityToken: "s3cret-refresh"}}}},
		"refresh token, docker": {config: registry.Config{DockerConfigs: []string{
			writeFile(t, "config.json", fmt.Sprintf(`{"auths": {%q: {"auth": %q, "identitytoken": "s3cret-refresh"}}}`, server.Host, encode("me:")), 0o600)}}},
		"wrong password":      {auth: registry.Auth{Username: "me", Password: "s3cret-typo"}, err: registry.ErrUnauthorized},
		"wrong refresh token": {auth: registry.Auth{IdentityToken: "s3cret-typo"}, err: registry.ErrUnauthorized},
		"nothing":             {err: registry.ErrUnauthorized},
	} {
		before := tokens.Grants.Load()
		repo := repository(t, client(t, test.config), server.Host+"/a/b:v1", test.auth)
		err := fetchAll(t.Context(), repo, img)
		if err == nil {
			err = fetchLayer(t.Context(), repo, img)
		}
		if !errors.Is(err, test.err) || err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", name, err)
		}
		if n := tokens.Grants.Load() - before; test.err == nil && n != 1 {
			t.Errorf("%s: %d tokens", name, n)
		}
	}
}

// A registry names a token server that is reached by plain HTTP: nothing secret goes there, in none of the forms. (The
// address is one of documentation: were it asked, it would take the time of a connection that comes about nowhere.)
func TestCredentialsStayFromPlainTokenServers(t *testing.T) {
	img := smallImage(t)
	for name, a := range map[string]registry.Auth{
		"password": secret, "base64": {Auth: encode("me:s3cret-word")}, "refresh token": {IdentityToken: "s3cret-word"},
	} {
		m := registrytest.NewMemory(t)
		m.Add("a/b", "v1", img)
		m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://192.0.2.1/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		c := client(t, registry.Config{})
		err := fetchAll(t.Context(), repository(t, c, m.Host+"/a/b:v1", a), img)
		t.Log(err)
		if !errors.Is(err, registry.ErrUnauthorized) || !strings.Contains(err.Error(), "plain HTTP to 192.0.2.1") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A token that a server sends back is as secret as what it was got for.
func TestTokensAreNotInErrors(t *testing.T) {
	m := registrytest.NewMemory(t)
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		switch given := r.Header.Get("Authorization"); {
		case r.URL.Path == "/token":
			_, _ = w.Write([]byte(`{"token": "s3cret-token"}`))
		case given == "":
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, m.Host))
			w.WriteHeader(http.StatusUnauthorized)
		default:
			registrytest.Fail(w, http.StatusForbidden, "DENIED", given+" is not good enough")
		}
		return true
	}
	err := fetchAll(t.Context(), repository(t, client(t, registry.Config{}), m.Host+"/a/b:v1", secret), smallImage(t))
	if !errors.Is(err, registry.ErrUnauthorized) || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "not good enough") {
		t.Errorf("err = %v", err)
	}
}
