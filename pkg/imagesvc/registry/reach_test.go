package registry_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/hosts"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// gone is a registry that no longer exists: what is pulled from it comes from a mirror.
const gone = "registry.invalid"

// certsD makes a directory of the layout certs.d/<host>/, of files by path in it.
func certsD(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func readText(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// Each way to write how a registry is reached, against real registries.
func TestReach(t *testing.T) {
	img := smallImage(t)
	start := func(repo string, o registrytest.Options) *registrytest.Server {
		s := registrytest.Start(t, o)
		s.Push(t, repo, "v1", img)
		return s
	}
	plain := start("a/b", registrytest.Options{})
	plain.Push(t, "hub/a/b", "v1", img)
	prefixed := start("a/b", registrytest.Options{Prefix: "/deep/path"})
	private := start("a/b", registrytest.Options{TLS: true})
	mutual := start("a/b", registrytest.Options{TLS: true, ClientCert: true})
	both := filepath.Join(t.TempDir(), "both.pem")
	if err := os.WriteFile(both, []byte(readText(t, mutual.ClientCert)+readText(t, mutual.ClientKey)), 0o600); err != nil {
		t.Fatal(err)
	}
	cas := certsD(t, map[string]string{"a.crt": readText(t, private.CA), "b.crt": readText(t, mutual.CA), "readme": "x"})
	toml := func(format string, args ...any) registry.Config {
		dir := certsD(t, map[string]string{gone + "/hosts.toml": fmt.Sprintf(format, args...)})
		return registry.Config{ConfigPath: []string{"/nowhere", dir}}
	}
	mirror := func(e registry.Endpoint) registry.Config {
		return registry.Config{Mirrors: map[string][]registry.Endpoint{gone: {e}}, Hosts: map[string]registry.HostConfig{gone: {NoFallback: true}}}
	}
	pair := []hosts.KeyPair{{Cert: mutual.ClientCert, Key: mutual.ClientKey}}
	underscore := strings.ReplaceAll(private.Host, ":", "_") + "_"
	for name, test := range map[string]struct {
		config registry.Config
		host   string // gone if empty
		fails  bool
	}{
		"prefix":                  {config: mirror(registry.Endpoint{URL: prefixed.URL()})},
		"prefix with /v2":         {config: mirror(registry.Endpoint{URL: prefixed.URL() + "/v2"})},
		"prefix forgotten":        {config: mirror(registry.Endpoint{URL: "http://" + prefixed.Host}), fails: true},
		"prefix, hosts.toml":      {config: toml("[host.%q]\n", prefixed.URL())},
		"override_path":           {config: mirror(registry.Endpoint{URL: plain.URL() + "/v2/hub", OverridePath: true})},
		"override_path left out":  {config: mirror(registry.Endpoint{URL: plain.URL() + "/v2/hub"}), fails: true},
		"override_path in a file": {config: toml("[host.%q]\noverride_path = true\n", plain.URL()+"/v2/hub")},
		"rewrite":                 {config: mirror(registry.Endpoint{URL: plain.URL(), Rewrite: map[string]string{"^a/(.*)": "hub/a/$1", "a": "never"}})},
		"rewrite elsewhere":       {config: mirror(registry.Endpoint{URL: plain.URL(), Rewrite: map[string]string{"^(.*)$": "nothing/$1"}}), fails: true},
		"rewrite to no name":      {config: mirror(registry.Endpoint{URL: plain.URL(), Rewrite: map[string]string{".*": "../../x"}}), fails: true},
		"rewrite in a file":       {config: toml("[host.%q.rewrite]\n\"^a/\" = \"hub/a/\"\n", plain.URL())},
		"private CA":              {config: mirror(registry.Endpoint{URL: private.URL(), CA: []string{mutual.CA, private.CA}})},
		"directory of CAs":        {config: mirror(registry.Endpoint{URL: private.URL(), CA: []string{cas}})},
		"another CA":              {config: mirror(registry.Endpoint{URL: private.URL(), CA: []string{mutual.CA}}), fails: true},
		"CA in a file":            {config: toml("server = %q\nca = %q\n", private.URL(), private.CA)},
		"skip_verify":             {config: toml("server = %q\nskip_verify = true\n", private.URL())},
		"http and skip_verify":    {config: toml("[host.%q]\nskip_verify = true\n", "http://"+private.Host)},
		"http, skip_verify, HTTP": {config: toml("[host.%q]\nskip_verify = true\n", plain.URL())},
		"client certificate":      {config: mirror(registry.Endpoint{URL: mutual.URL(), CA: []string{cas}, Client: pair})},
		"no client certificate":   {config: mirror(registry.Endpoint{URL: mutual.URL(), CA: []string{cas}}), fails: true},
		"client, one file":        {config: toml("[host.%q]\nca = [%q]\nclient = %q\n", mutual.URL(), mutual.CA, both)},
		"client, list":            {config: toml("[host.%q]\nca = [%q]\nclient = [[%q, %q], [%q, '']]\n", mutual.URL(), mutual.CA, mutual.ClientCert, mutual.ClientKey, both)},
		"docker's layout": {host: private.Host, config: registry.Config{ConfigPath: []string{
			certsD(t, map[string]string{private.Host + "/ca.crt": readText(t, private.CA)}),
		}}},
		"docker's layout, client": {host: mutual.Host, config: registry.Config{ConfigPath: []string{certsD(t, map[string]string{
			mutual.Host + "/ca.crt": readText(t, mutual.CA), mutual.Host + "/client.cert": readText(t, mutual.ClientCert),
			mutual.Host + "/client.key": readText(t, mutual.ClientKey),
		})}}},
		"host_port_, relative CA, the registry itself": {host: private.Host, config: registry.Config{ConfigPath: []string{
			certsD(t, map[string]string{underscore + "/hosts.toml": "ca = 'my/ca.pem'", underscore + "/my/ca.pem": readText(t, private.CA)}),
		}}},
		"_default": {config: registry.Config{Mirrors: map[string][]registry.Endpoint{"_default": {{URL: plain.URL()}}}}},
		"_default in a file": {config: registry.Config{ConfigPath: []string{
			certsD(t, map[string]string{"_default/hosts.toml": fmt.Sprintf("[host.%q]\n", plain.URL())}),
		}}},
		"own settings before _default": {fails: true, config: registry.Config{Mirrors: map[string][]registry.Endpoint{
			"_default": {{URL: plain.URL()}}, gone: {{URL: "http://127.0.0.1:1"}},
		}}},
		"a file before _default": {config: registry.Config{
			Mirrors:    map[string][]registry.Endpoint{"_default": {{URL: "http://127.0.0.1:1"}}},
			ConfigPath: []string{certsD(t, map[string]string{gone + "/hosts.toml": fmt.Sprintf("server = %q\n", plain.URL())})},
		}},
		"own settings before a file": {fails: true, config: registry.Config{
			Mirrors:    map[string][]registry.Endpoint{gone: {{URL: "http://127.0.0.1:1"}}},
			ConfigPath: []string{certsD(t, map[string]string{gone + "/hosts.toml": fmt.Sprintf("server = %q\n", plain.URL())})},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			ref, err := registry.Parse(strings.Replace(gone+"/a/b:v1", gone, map[bool]string{true: gone, false: test.host}[test.host == ""], 1))
			if err != nil {
				t.Fatal(err)
			}
			repo, err := client(t, test.config).Repository(ref, registry.Auth{})
			if err == nil {
				err = fetchAll(t.Context(), repo, img)
			}
			if test.fails != (err != nil) {
				t.Errorf("err = %v, want one: %t", err, test.fails)
			}
		})
	}
}

// What is not a mirror's to say is not asked of it.
func TestCapabilities(t *testing.T) {
	img := smallImage(t)
	own, mirror := registrytest.NewMemory(t), registrytest.NewMemory(t)
	own.Add("a/b", "v1", img)
	mirror.Add("a/b", "v1", img)
	pull := func(ref string, own registry.HostConfig, host string, endpoints ...registry.Endpoint) error {
		c := client(t, registry.Config{
			Mirrors: map[string][]registry.Endpoint{host: endpoints}, Hosts: map[string]registry.HostConfig{host: own},
		})
		return fetchAll(t.Context(), repository(t, c, host+"/a/b"+ref, registry.Auth{}), img)
	}
	pulls := registry.Endpoint{URL: "http://" + mirror.Host, Capabilities: []string{"pull"}}
	if err := pull(":v1", registry.HostConfig{}, own.Host, pulls); err != nil {
		t.Fatal(err)
	}
	if n, m := mirror.Count("GET", "/manifests/"), mirror.Count("GET", "/blobs/"); n != 0 || m != 1 {
		t.Errorf("by tag, the mirror was asked for %d manifests and %d blobs", n, m)
	}
	if n := own.Count("GET", "/blobs/"); n != 0 {
		t.Errorf("by tag, the registry was asked for %d blobs", n)
	}
	before := len(own.Requests())
	if err := pull("@"+img.Digest().String(), registry.HostConfig{}, own.Host, pulls); err != nil || len(own.Requests()) != before {
		t.Errorf("by digest: %v, the registry was asked %d times", err, len(own.Requests())-before)
	}

	// One that only resolves tells the digest; the rest comes from the other.
	resolves := registry.Endpoint{URL: "http://" + own.Host, Capabilities: []string{"resolve"}}
	only := registry.HostConfig{NoFallback: true}
	before = own.Count("GET", "/")
	if err := pull(":v1", only, gone, resolves, pulls); err != nil || own.Count("GET", "/") != before {
		t.Errorf("resolving apart: %v, %d GETs", err, own.Count("GET", "/")-before)
	}
	if err := pull(":v1", only, gone, pulls); !errors.Is(err, registry.ErrInvalid) || !strings.Contains(err.Error(), "capability resolve") {
		t.Errorf("nobody resolves: %v", err)
	}
}

func TestHeaders(t *testing.T) {
	img := smallImage(t)
	elsewhere, m := registrytest.NewMemory(t), registrytest.NewMemory(t)
	elsewhere.Add("a/b", "v1", img)
	m.Add("a/b", "v1", img)
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if isLayer(r, img) {
			http.Redirect(w, r, "http://"+elsewhere.Host+r.URL.Path, http.StatusTemporaryRedirect)
		}
		return isLayer(r, img)
	}
	dir := certsD(t, map[string]string{gone + "/hosts.toml": fmt.Sprintf(
		"server = \"http://%s\"\n[header]\nx-one = 'a'\nx-two = ['b', 'c']\nauthorization = 'Basic s3cret'\nuser-agent = 'me'\n", m.Host)})
	if err := fetchAll(t.Context(), repository(t, client(t, registry.Config{ConfigPath: []string{dir}}), gone+"/a/b:v1", registry.Auth{}), img); err != nil {
		t.Fatal(err)
	}
	for _, r := range m.Requests() {
		got := fmt.Sprint(r.Header["X-One"], r.Header["X-Two"], r.Header["Authorization"], r.Header["User-Agent"])
		if got != "[a] [b c] [Basic s3cret] [me]" {
			t.Errorf("%s: header %s", r.URL, got)
		}
	}
	for _, r := range elsewhere.Requests() {
		if len(r.Header["X-One"])+len(r.Header["Authorization"]) > 0 {
			t.Errorf("%s went elsewhere with %v", r.URL, r.Header)
		}
	}
}

// blackhole is an address at which connecting hangs: nobody accepts, and the queue is full.
func blackhole(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	for {
		c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
}

// silent is an address that takes connections and says nothing.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// A mirror that is dead costs its timeout once, not once a pull.
func TestDeadMirror(t *testing.T) {
	img := smallImage(t)
	own := registrytest.Start(t, registrytest.Options{})
	own.Push(t, "a/b", "v1", img)
	const timeout = 300 * time.Millisecond
	for name, url := range map[string]string{
		"refused": "http://127.0.0.1:1", "black hole": "http://" + blackhole(t), "black hole, TLS": "https://" + blackhole(t),
		"silent": "http://" + silent(t), "silent, TLS": "https://" + silent(t),
	} {
		t.Run(name, func(t *testing.T) {
			c := client(t, registry.Config{Mirrors: map[string][]registry.Endpoint{own.Host: {{URL: url, DialTimeout: timeout}}}, NoProgress: time.Minute})
			for i, limit := range []time.Duration{4*timeout + 2*time.Second, timeout - 50*time.Millisecond} {
				start := time.Now()
				if err := fetchAll(t.Context(), repository(t, c, own.Host+"/a/b:v1", registry.Auth{}), img); err != nil {
					t.Fatal(err)
				}
				took := time.Since(start)
				t.Logf("pull %d took %v", i+1, took.Round(time.Millisecond))
				if took > limit {
					t.Errorf("pull %d took %v, want less than %v", i+1, took, limit)
				}
			}
		})
	}
}

// One that is asked for blobs only is found out as soon.
func TestDeadMirrorForBlobs(t *testing.T) {
	img := smallImage(t)
	own := registrytest.NewMemory(t)
	own.Add("a/b", "v1", img)
	dead := registry.Endpoint{URL: "http://" + silent(t), DialTimeout: 100 * time.Millisecond, Capabilities: []string{"pull"}}
	c := client(t, registry.Config{
		Mirrors: map[string][]registry.Endpoint{own.Host: {dead, {URL: "http://" + own.Host}}}, NoProgress: time.Minute,
	})
	start := time.Now()
	err := fetchAll(t.Context(), repository(t, c, own.Host+"/a/b:v1", registry.Auth{}), img)
	if took := time.Since(start); err != nil || took > 5*time.Second {
		t.Errorf("%v after %v", err, took)
	}
}

// A mirror that failed rests, whoever asks for what; but it is asked when nobody else can help.
func TestDeadMirrorIsRemembered(t *testing.T) {
	img, other := smallImage(t), registrytest.NewImage("arm64", smallImage(t).Layers...)
	own, mirror := registrytest.NewMemory(t), registrytest.NewMemory(t)
	own.Add("a/b", "v1", img)
	mirror.Add("a/b", "v1", img)
	mirror.Add("a/b", "v2", other)
	broken := true
	mirror.Hook = func(w http.ResponseWriter, _ *http.Request) bool {
		if broken {
			w.WriteHeader(http.StatusInternalServerError)
		}
		return broken
	}
	c := client(t, registry.Config{Mirrors: map[string][]registry.Endpoint{
		own.Host: {{URL: "http://" + mirror.Host}, {URL: "http://" + own.Host}},
	}})
	pull := func(ref string, img *registrytest.Image) (asked int) {
		t.Helper()
		before := len(mirror.Requests())
		if err := fetchAll(t.Context(), repository(t, c, own.Host+"/a/b:"+ref, registry.Auth{}), img); err != nil {
			t.Fatal(err)
		}
		return len(mirror.Requests()) - before
	}
	if n := pull("v1", img); n != 5 { // once, and four times again
		t.Errorf("the first pull asked the mirror %d times", n)
	}
	if n := pull("v1", img); n != 0 {
		t.Errorf("the second pull asked the mirror %d times", n)
	}
	ref, err := registry.Parse(own.Host + "/a/b:v1")
	if err != nil {
		t.Fatal(err)
	}
	if e := c.Explain(t.Context(), ref, registry.Auth{}).Endpoints; len(e) != 2 || !e[0].Own || e[1].RestsUntil == nil ||
		time.Until(*e[1].RestsUntil) > 30*time.Second || !strings.Contains(e[1].Pull.Why, "no answer lately") {
		t.Errorf("explained as %+v", e)
	}
	// It comes back, with what nobody else has; and is in its place again.
	broken = false
	if n := pull("v2", other); n == 0 {
		t.Error("the mirror was not asked for what only it has")
	}
	if n := pull("v1", img); n != 2 {
		t.Errorf("after an answer, the mirror was asked %d times", n)
	}
}

func TestRetryAfter(t *testing.T) {
	img := smallImage(t)
	for name, test := range map[string]struct {
		code     int
		after    string
		requests int // for one manifest
		atLeast  time.Duration
	}{
		"429":           {429, "1", 2, time.Second},
		"503":           {503, "1", 2, time.Second},
		"date":          {503, "date", 2, time.Second},
		"500":           {500, "1", 2, 0},
		"nonsense":      {503, "soon", 2, 0},
		"negative":      {503, "-7", 2, 0},
		"next hour":     {429, "3600", 1, 0},
		"beyond number": {429, "99999999999999999999", 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := registrytest.NewMemory(t)
			m.Add("a/b", "v1", img)
			m.Hook = func(w http.ResponseWriter, _ *http.Request) bool {
				if len(m.Requests()) > 1 {
					return false
				}
				after := test.after
				if after == "date" { // to the second, so at least one
					after = time.Now().Add(2 * time.Second).UTC().Format(http.TimeFormat)
				}
				w.Header().Set("Retry-After", after)
				w.WriteHeader(test.code)
				return true
			}
			c := client(t, registry.Config{Mirrors: map[string][]registry.Endpoint{m.Host: {{URL: "http://" + m.Host}}}})
			start := time.Now()
			_, err := repository(t, c, m.Host+"/a/b:v1", registry.Auth{}).Manifest(t.Context(), "")
			took := time.Since(start)
			if n := len(m.Requests()); n != test.requests || (err == nil) != (test.requests > 1) {
				t.Errorf("%d requests, %v", n, err)
			}
			if took < test.atLeast || took > test.atLeast+2*time.Second {
				t.Errorf("took %v, want %v", took, test.atLeast)
			}
		})
	}
}

// The rest of a body is asked for when the server wishes it, too.
func TestRetryAfterInBody(t *testing.T) {
	img := smallImage(t)
	m := registrytest.NewMemory(t)
	m.Add("a/b", "v1", img)
	var asked []time.Time
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		asked = append(asked, time.Now())
		switch len(asked) {
		case 1: // cut in the middle
			w.Header().Set("Content-Length", strconv.Itoa(len(img.Layers[0].Blob)))
			_, _ = w.Write(img.Layers[0].Blob[:len(img.Layers[0].Blob)/2])
			panic(http.ErrAbortHandler)
		case 2:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		return false
	}
	c := client(t, registry.Config{Mirrors: map[string][]registry.Endpoint{m.Host: {{URL: "http://" + m.Host}}}})
	if err := fetchLayer(t.Context(), repository(t, c, m.Host+"/a/b:v1", registry.Auth{}), img); err != nil {
		t.Fatal(err)
	}
	if len(asked) != 3 || asked[2].Sub(asked[1]) < time.Second {
		t.Errorf("asked at %v", asked)
	}
}
