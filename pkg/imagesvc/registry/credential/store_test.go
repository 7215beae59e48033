package credential_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"criserver/pkg/imagesvc/registry/credential"
)

func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	// By rename, as nobody executes or reads a file that is being written.
	if err := os.WriteFile(path+".new", []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

func store(t *testing.T, c credential.Config) *credential.Store {
	t.Helper()
	s, err := credential.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// values are what candidates would send, as one text each.
func values(all []credential.Credential) []string {
	var out []string
	for _, c := range all {
		v := c.Value()
		out = append(out, strings.Trim(strings.Join([]string{v.Username, v.Password, v.RefreshToken, v.AccessToken}, ":"), ":"))
	}
	return out
}

func encode(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestDockerConfig(t *testing.T) {
	path := write(t, t.TempDir()+"/config.json", `{
		"auths": {
			"https://index.docker.io/v1/": {"auth": "`+encode("hub:h")+`"},
			"quay.io": {"username": "q", "password": "all"},
			"quay.io/org": {"auth": "`+encode("q:org")+`"},
			"quay.io/org/app": {"auth": "`+encode("q:app\x00\x00")+`"},
			"*.example.com": {"auth": "`+encode("wild:card")+`"},
			"*.*.example.com": {"auth": "`+encode("wilder:card")+`"},
			"https://a.example.com:5000/v2/team": {"identitytoken": "refresh"},
			"registrytoken.io": {"registrytoken": "bearer"},
			"empty.io": {}
		},
		"psFormat": "unknown keys are none of our business"
	}`, 0o600)
	s := store(t, credential.Config{DockerConfigs: []string{"/nowhere/config.json", path}})
	for image, want := range map[string]string{
		"docker.io/library/busybox":            "hub:h",
		"index.docker.io/library/busybox":      "hub:h",
		"quay.io/other/app":                    "q:all",
		"quay.io/org/x":                        "q:org q:all",
		"quay.io/org/app":                      "q:app q:org q:all",
		"a.example.com/x":                      "wild:card",
		"A.Example.COM/x":                      "wild:card",
		"a.b.example.com/x":                    "wilder:card",
		"example.com/x":                        "",
		"a.example.com.evil.io/x":              "",
		"a.example.com:5000/team/x":            "refresh",
		"a.example.com:5000/other":             "",
		"registrytoken.io/x":                   "bearer",
		"empty.io/x":                           "",
		"quay.io.evil.com/org/x":               "",
		"evil.com/quay.io/org":                 "",
		"registry.example/index.docker.io/v1/": "",
	} {
		host, _, _ := strings.Cut(image, "/")
		found, err := s.Lookup(t.Context(), image, host)
		if got := strings.Join(values(found), " "); got != want || err != nil {
			t.Errorf("%s: got %q, want %q, %v", image, got, want, err)
		}
		for _, c := range found {
			if c.Source != "docker config "+path {
				t.Errorf("source %q", c.Source)
			}
		}
	}
	// At a mirror the mirror's credentials are good, not the registry's.
	for host, want := range map[string]string{"registry-1.docker.io": "hub:h", "mirror.io": "", "quay.io": "q:all", "b.example.com": "wild:card"} {
		found, err := s.Lookup(t.Context(), "docker.io/library/busybox", host)
		if got := strings.Join(values(found), " "); got != want || err != nil {
			t.Errorf("at %s: got %q, want %q, %v", host, got, want, err)
		}
	}
}

func TestFilesAreReadAgain(t *testing.T) {
	path := t.TempDir() + "/config.json"
	s := store(t, credential.Config{DockerConfigs: []string{path}})
	look := func() (string, error) {
		found, err := s.Lookup(t.Context(), "a.io/b", "a.io")
		return strings.Join(values(found), " "), err
	}
	if got, err := look(); got != "" || err != nil {
		t.Errorf("without a file: %q, %v", got, err)
	}
	for i := range 20 {
		// Of the same length, within a tick of the clock, in the same file.
		want := fmt.Sprintf("u:%02d", i)
		if err := os.WriteFile(path, []byte(`{"auths": {"a.io": {"auth": "`+encode(want)+`"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := look(); got != want || err != nil {
			t.Fatalf("got %q, want %q, %v", got, want, err)
		}
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"not JSON": `{"auths": s3cret`, "wrong type": `{"auths": {"a.io": "s3cret"}}`,
		"not base64": `{"auths": {"a.io": {"auth": "s3cret"}}}`, "no colon": `{"auths": {"a.io": {"auth": "` + encode("s3cret") + `"}}}`,
	} {
		write(t, path, text, 0o600)
		got, err := look()
		if got != "" || err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if err := os.Truncate(path, 2<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := look(); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("huge: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got, err := look(); got != "" || err != nil {
		t.Errorf("removed: %q, %v", got, err)
	}
}

func TestDockerHelpers(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	write(t, dir+"/docker-credential-good", `#!/bin/sh
read server
[ "$1" = get ] || exit 2
case "$server" in
"https://index.docker.io/v1/") echo '{"ServerURL":"x","Username":"hub","Secret":"s"}';;
token.io) echo '{"Username":"<token>","Secret":"refresh"}';;
none.io) echo 'credentials not found in native keychain'; exit 1;;
bad.io) echo 's3cret is no JSON';;
fail.io) echo 'the keychain is locked'; echo 'password=s3cret-word' >&2; exit 1;;
half.io) echo '{"Username":"me","Secret":"s3cret-word"}'; echo "sent s3cret-word twice" >&2; exit 1;;
*) echo "{\"Username\":\"store\",\"Secret\":\"$server\"}";;
esac
`, 0o755)
	path := write(t, dir+"/config.json", `{"credsStore": "good", "credHelpers": {"other.io": "good", "missing.io": "missing", "evil.io": "../x"},
		"auths": {"other.io": {"auth": "`+encode("in:file")+`"}, "a.io": {}}}`, 0o600)
	s := store(t, credential.Config{DockerConfigs: []string{path}})
	for host, test := range map[string]struct{ want, err string }{
		"docker.io":  {want: "hub:s"},
		"token.io":   {want: "refresh"},
		"a.io":       {want: "store:a.io"},
		"other.io":   {want: "store:other.io in:file"},
		"none.io":    {},
		"bad.io":     {err: "not what the protocol says"},
		"fail.io":    {err: "the keychain is locked"},
		"half.io":    {err: "exit status 1: sent … twice"},
		"missing.io": {err: "docker-credential-missing"},
		"evil.io":    {err: "not the name of a credential helper"},
	} {
		found, err := s.Lookup(t.Context(), host+"/x", host)
		if got := strings.Join(values(found), " "); got != test.want {
			t.Errorf("%s: got %q, want %q", host, got, test.want)
		}
		if (err == nil) != (test.err == "") || err != nil && (!strings.Contains(err.Error(), test.err) || strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("%s: %v, want %q", host, err, test.err)
		}
	}
}

func TestConfiguredHosts(t *testing.T) {
	s := store(t, credential.Config{Hosts: map[string]credential.Auth{
		"docker.io": {Username: "hub", Password: "p"}, "a.io:5000": {Auth: encode("u:p")},
		"b.io": {IdentityToken: "refresh"}, "c.io": {RegistryToken: "bearer"}, "d.io": {},
	}})
	for host, want := range map[string]string{
		"registry-1.docker.io": "hub:p", "docker.io": "hub:p", "a.io:5000": "u:p", "a.io": "", "b.io": "refresh", "c.io": "bearer", "d.io": "",
	} {
		found, err := s.Lookup(t.Context(), host+"/x/y", host)
		if got := strings.Join(values(found), " "); got != want || err != nil {
			t.Errorf("%s: got %q, want %q, %v", host, got, want, err)
		}
	}
	if _, err := credential.New(credential.Config{Hosts: map[string]credential.Auth{"a.io": {Auth: "s3cret"}}}); err == nil ||
		strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "a.io") {
		t.Errorf("err = %v", err)
	}
}

func TestNothingPrintsSecrets(t *testing.T) {
	a := credential.Auth{Username: "me", Password: "s3cret1", Auth: encode("me:s3cret2"), IdentityToken: "s3cret3", RegistryToken: "s3cret4"}
	c, err := a.Credential("a test")
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(map[string]any{"a": a, "c": c, "p": &c})
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{string(asJSON)}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		for _, v := range []any{a, &a, c, &c, []credential.Credential{c}, map[string]credential.Auth{"x": a}, struct{ C credential.Credential }{c}} {
			texts = append(texts, fmt.Sprintf(format, v))
		}
	}
	for _, text := range texts {
		if strings.Contains(text, "s3cret") || strings.Contains(text, a.Auth) || strings.Contains(text, fmt.Sprintf("%x", "s3cret")) {
			t.Errorf("%s", text)
		}
	}
	if !strings.Contains(fmt.Sprint(c), "a test") {
		t.Errorf("%v does not name the source", c)
	}
}

// plugin writes a plugin that notes its calls, and its configuration.
type plugin struct{ dir, calls string }

func newPlugin(t *testing.T, answer string) *plugin {
	p := &plugin{dir: t.TempDir()}
	p.calls = p.dir + "/calls"
	write(t, p.dir+"/config.yaml", `
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: test-provider
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ["*.dkr.example.com", "docker.io/library"]
  defaultCacheDuration: 1h
  args: [get, "--now"]
  env:
  - {name: PLUGIN_KEY, value: s3cret-key}
`, 0o600)
	p.answer(t, answer)
	return p
}

func (p *plugin) answer(t *testing.T, script string) {
	write(t, p.dir+"/test-provider", "#!/bin/sh\nread -r request\necho \"$* $PLUGIN_KEY $request\" >>"+p.calls+"\n"+script, 0o755)
}

func (p *plugin) config() credential.Config {
	return credential.Config{Provider: credential.ProviderConfig{Config: p.dir + "/config.yaml", BinDir: p.dir, Limit: 5 * time.Second}}
}

func (p *plugin) count(t *testing.T) int {
	data, err := os.ReadFile(p.calls)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Count(string(data), "\n")
}

func respond(keyType, duration, auth string) string {
	return `echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"` + keyType + `",` +
		duration + `"auth":` + auth + `}'` + "\n"
}

func TestPlugin(t *testing.T) {
	p := newPlugin(t, respond("Registry", "", `{"*.dkr.example.com":{"username":"AWS","password":"word"},"a.dkr.example.com/b":{"username":"b","password":"b"},"elsewhere.io":{"username":"x","password":"x"}}`))
	s := store(t, p.config())
	for i, test := range []struct {
		image, want string
		calls       int
	}{
		{"a.dkr.example.com/x", "AWS:word", 1},
		{"a.dkr.example.com/b/c", "b:b AWS:word", 1}, // cached by registry
		{"z.dkr.example.com/x", "AWS:word", 2},
		{"docker.io/library/busybox", "", 3},
		{"docker.io/user/app", "", 3},
		{"elsewhere.io/x", "", 3},
		{"a.b.dkr.example.com/x", "", 3},
	} {
		host, _, _ := strings.Cut(test.image, "/")
		found, err := s.Lookup(t.Context(), test.image, host)
		if got := strings.Join(values(found), " "); got != test.want || err != nil || p.count(t) != test.calls {
			t.Errorf("%d: %s: got %q, want %q, %d calls, %v", i, test.image, got, test.want, p.count(t), err)
		}
	}
	data, err := os.ReadFile(p.calls)
	first, _, _ := strings.Cut(string(data), "\n")
	if want := `get --now s3cret-key {"apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"a.dkr.example.com/x","kind":"CredentialProviderRequest"}`; first != want || err != nil {
		t.Errorf("it was called as %s", first)
	}
}

func TestPluginCache(t *testing.T) {
	const auth = `{"*.dkr.example.com":{"username":"u","password":"p"}}`
	for name, test := range map[string]struct {
		answer string
		calls  int // for two images, of two registries, each twice
	}{
		"by image":       {respond("Image", "", auth), 4},
		"by registry":    {respond("Registry", "", auth), 2},
		"for all":        {respond("Global", "", auth), 1},
		"not at all":     {respond("Global", `"cacheDuration":"0s",`, auth), 8},
		"for no time":    {respond("Global", `"cacheDuration":"1ns",`, auth), 8},
		"null":           {respond("Global", `"cacheDuration":null,`, auth), 1},
		"said otherwise": {respond("Image", `"cacheDuration":"6h",`, auth), 4},
		"nothing known":  {respond("Global", "", "null"), 1},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlugin(t, test.answer)
			s := store(t, p.config())
			for range 2 {
				for _, image := range []string{"a.dkr.example.com/x", "a.dkr.example.com/y", "b.dkr.example.com/x", "b.dkr.example.com/y"} {
					if _, err := s.Lookup(t.Context(), image, image[:len("a.dkr.example.com")]); err != nil {
						t.Fatal(err)
					}
				}
			}
			if n := p.count(t); n != test.calls {
				t.Errorf("%d calls, want %d", n, test.calls)
			}
		})
	}
}

func TestPluginConfigIsReadAgain(t *testing.T) {
	p := newPlugin(t, respond("Global", "", `{"*.dkr.example.com":{"username":"u","password":"p"}}`))
	s := store(t, p.config())
	look := func() (string, error) {
		found, err := s.Lookup(t.Context(), "a.dkr.example.com/x", "a.dkr.example.com")
		return strings.Join(values(found), " "), err
	}
	if got, err := look(); got != "u:p" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	text, err := os.ReadFile(p.dir + "/config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	write(t, p.dir+"/config.yaml", strings.Replace(string(text), "[get", "[fetch", 1), 0o600)
	if got, err := look(); got != "u:p" || err != nil || p.count(t) != 2 {
		t.Errorf("changed arguments: %q, %v, %d calls", got, err, p.count(t))
	}
	write(t, p.dir+"/config.yaml", strings.Replace(string(text), "*.dkr", "*.ecr", 1), 0o600)
	if got, err := look(); got != "" || err != nil {
		t.Errorf("other images: %q, %v", got, err)
	}
	write(t, p.dir+"/config.yaml", "nonsense", 0o600)
	if _, err := look(); err == nil || !strings.Contains(err.Error(), p.dir) {
		t.Errorf("broken: %v", err)
	}
	write(t, p.dir+"/config.yaml", string(text), 0o600)
	if got, err := look(); got != "u:p" || err != nil {
		t.Errorf("repaired: %q, %v", got, err)
	}
}

func TestPluginFails(t *testing.T) {
	const ok = `{"*.dkr.example.com":{"username":"u","password":"s3cret-word"}}`
	for name, test := range map[string]struct{ script, err string }{
		"exit":          {"echo 'no instance profile' >&2; exit 3", "exit status 3: no instance profile"},
		"exit, secrets": {respond("Image", "", ok) + "echo \"used s3cret-word with $PLUGIN_KEY\" >&2; exit 3", "exit status 3: used … with …"},
		"a named one":   {"echo 'token: s3cret' >&2; exit 1", "token: …"},
		"a long one":    {"echo 's3cret/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAs3cret' | tr -d / >&2; exit 1", "…"},
		"no JSON":       {"echo s3cret-word", "not what the protocol says"},
		"wrong kind":    {`echo '{"kind":"x","apiVersion":"credentialprovider.kubelet.k8s.io/v1"}'`, "not a CredentialProviderResponse"},
		"wrong version": {`echo '{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1alpha1","cacheKeyType":"Image"}'`, "not a CredentialProviderResponse"},
		"wrong cache":   {respond("Pod", "", ok), "cacheKeyType"},
		"bad duration":  {respond("Image", `"cacheDuration":"s3cret",`, ok), "not what the protocol says"},
		"endless":       {"exec cat /dev/zero", "too long"},
		"crash":         {"kill -SEGV $$", "signal"},
		"hangs":         {"sleep 1000 & wait", "no answer within"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlugin(t, test.script)
			config := p.config()
			if name == "hangs" {
				config.Provider.Limit = 300 * time.Millisecond
			}
			start := time.Now()
			found, err := store(t, config).Lookup(t.Context(), "a.dkr.example.com/x", "a.dkr.example.com")
			if len(found) > 0 || err == nil || !strings.Contains(err.Error(), test.err) || !strings.Contains(err.Error(), "test-provider") || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%v, %v, want %s", found, err, test.err)
			}
			if took := time.Since(start); took > 4*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
	t.Run("does not exist", func(t *testing.T) {
		p := newPlugin(t, "")
		if err := os.Remove(p.dir + "/test-provider"); err != nil {
			t.Fatal(err)
		}
		if _, err := store(t, p.config()).Lookup(t.Context(), "a.dkr.example.com/x", "a.dkr.example.com"); !os.IsNotExist(unwrapAll(err)) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("is not awaited by who has left", func(t *testing.T) {
		p := newPlugin(t, "sleep 1000 & wait")
		config := p.config()
		config.Provider.Limit = time.Second
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		s := store(t, config)
		if _, err := s.Lookup(ctx, "a.dkr.example.com/x", "a.dkr.example.com"); err == nil || ctx.Err() == nil {
			t.Errorf("err = %v", err)
		}
		if _, err := s.Lookup(t.Context(), "a.dkr.example.com/x", "a.dkr.example.com"); err == nil { // until it has ended
			t.Error("it answered")
		}
	})
}

func unwrapAll(err error) error {
	for err != nil {
		if os.IsNotExist(err) {
			return err
		}
		switch e := err.(type) {
		case interface{ Unwrap() []error }:
			err = e.Unwrap()[0]
		case interface{ Unwrap() error }:
			err = e.Unwrap()
		default:
			return err
		}
	}
	return err
}

func TestEqualRequestsAreOneExec(t *testing.T) {
	p := newPlugin(t, "sleep 0.3\n"+respond("Image", `"cacheDuration":"0s",`, `{"*.dkr.example.com":{"username":"u","password":"p"}}`))
	s := store(t, p.config())
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if found, err := s.Lookup(t.Context(), "a.dkr.example.com/x", "a.dkr.example.com"); len(found) != 1 || err != nil {
				t.Errorf("%v, %v", found, err)
			}
		})
	}
	wg.Wait()
	if n := p.count(t); n != 1 {
		t.Errorf("%d calls", n)
	}
}

func TestProviderConfigIsChecked(t *testing.T) {
	const head = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n"
	entry := func(change, to string) string {
		return head + strings.Replace("- {name: a, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: [a.io], defaultCacheDuration: 0s}\n", change, to, 1)
	}
	for name, test := range map[string]struct{ text, err string }{
		"good":              {entry("", ""), ""},
		"JSON":              {`{"apiVersion":"kubelet.config.k8s.io/v1","kind":"CredentialProviderConfig","providers":[{"name":"a","apiVersion":"credentialprovider.kubelet.k8s.io/v1","matchImages":["a.io"],"defaultCacheDuration":"10m0s"}]}`, ""},
		"older":             {strings.ReplaceAll(entry("", ""), "/v1", "/v1beta1"), ""},
		"empty":             {"", "CredentialProviderConfig"},
		"other kind":        {strings.Replace(entry("", ""), "CredentialProviderConfig", "KubeletConfiguration", 1), "KubeletConfiguration"},
		"name with a path":  {entry("name: a", "name: ../a"), "program"},
		"other API":         {entry("credentialprovider.kubelet.k8s.io/v1", "v1"), "apiVersion"},
		"no images":         {entry("[a.io]", "[]"), "matchImages"},
		"no cache duration": {entry("defaultCacheDuration: 0s", ""), "defaultCacheDuration"},
		"negative":          {entry("0s", "-1s"), "defaultCacheDuration"},
		"twice":             {entry("", "") + strings.TrimPrefix(entry("", ""), head), "twice"},
		"no duration":       {entry("0s", "5"), "decode"},
	} {
		path := write(t, t.TempDir()+"/c.yaml", test.text, 0o600)
		_, err := credential.New(credential.Config{Provider: credential.ProviderConfig{Config: path, BinDir: "/bin"}})
		if (err == nil) != (test.err == "") || err != nil && (!strings.Contains(err.Error(), test.err) || !strings.Contains(err.Error(), path) && name != "twice") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := credential.New(credential.Config{Provider: credential.ProviderConfig{Config: "/nowhere", BinDir: "/bin"}}); err == nil {
		t.Error("there is no file")
	}
	if _, err := credential.New(credential.Config{Provider: credential.ProviderConfig{Config: "/nowhere"}}); err == nil {
		t.Error("there is no directory")
	}
	// A directory, as newer kubelets take it.
	dir := t.TempDir()
	write(t, filepath.Join(dir, "10.yaml"), entry("", ""), 0o600)
	write(t, filepath.Join(dir, "20.json"), entry("name: a", "name: b"), 0o600)
	write(t, filepath.Join(dir, "README"), "nonsense", 0o600)
	write(t, dir+"/a", "#!/bin/sh\n"+respond("Image", "", `{"a.io":{"username":"a","password":"a"}}`), 0o755)
	write(t, dir+"/b", "#!/bin/sh\n"+respond("Image", "", `{"a.io":{"username":"b","password":"b"}}`), 0o755)
	s := store(t, credential.Config{Provider: credential.ProviderConfig{Config: dir, BinDir: dir}})
	found, err := s.Lookup(t.Context(), "a.io/x", "a.io")
	if !slices.Equal(values(found), []string{"a:a", "b:b"}) || err != nil {
		t.Errorf("%v, %v", values(found), err)
	}
	// One that only the kubelet can call.
	path := write(t, dir+"/pod.yaml", entry("0s", "0s, tokenAttributes: {requireServiceAccount: true, cacheType: Token, serviceAccountTokenAudience: x}"), 0o600)
	s = store(t, credential.Config{Provider: credential.ProviderConfig{Config: path, BinDir: dir}})
	if found, err := s.Lookup(t.Context(), "a.io/x", "a.io"); len(found) > 0 || err == nil || !strings.Contains(err.Error(), "service account") {
		t.Errorf("%v, %v", found, err)
	}
}
