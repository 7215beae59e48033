package hosts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// full has every key of containerd's.
const full = `
server = "https://registry.example"
capabilities = ["pull", "Resolve"]
ca = "root.pem"
client = [["c.cert", "c.key"], ["c.pem", ""]]
skip_verify = true
dial_timeout = "7s"
override_path = false
proxy = "http://proxy.example:8080/"

[header]
x-root = "r"

[host."https://z.example/mirror"]
  capabilities = ["pull"]
  ca = ["/etc/z.pem", "sub/z.pem"]
  client = "z.pem"
  dial_timeout = "1s"
  [host."https://z.example/mirror".header]
    x-custom-1 = ["a", "b"]
    x-custom-2 = "c"

[host."http://a.example:8080"]

[host.bare.example]

[host."m.example/v2/up/"]
  override_path = true
  client = ["one.pem", "two.pem"]
  [host."m.example/v2/up/".rewrite]
    "^library/(.*)" = "hub/$1"
`

func TestParseHosts(t *testing.T) {
	// [host.bare.example] is a host "bare" with an unknown key; containerd takes it so too.
	d, err := parseHosts("/d/hosts.toml", "/d", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	describe := func(e *Endpoint) string {
		return fmt.Sprintf("%s caps=%s ca=%v client=%v skip=%t head=%d dial=%v proxy=%v at %s",
			e.API, e.Capabilities, e.TLS.CA, e.TLS.Client, e.TLS.SkipVerify, len(e.Header), e.DialTimeout, e.Proxy, e.Source)
	}
	want := []string{
		"https://z.example/mirror/v2 caps=pull ca=[/etc/z.pem /d/sub/z.pem] client=[{/d/z.pem }] skip=false head=2 dial=1s proxy=<nil> at /d/hosts.toml:14",
		"http://a.example:8080/v2 caps=resolve, pull, push ca=[] client=[] skip=false head=0 dial=0s proxy=<nil> at /d/hosts.toml:23",
		"https://bare/v2 caps=resolve, pull, push ca=[] client=[] skip=false head=0 dial=0s proxy=<nil> at /d/hosts.toml:25",
		"https://m.example/v2/up caps=resolve, pull, push ca=[] client=[{/d/one.pem } {/d/two.pem }] skip=false head=0 dial=0s proxy=<nil> at /d/hosts.toml:27",
		"https://registry.example/v2 caps=resolve, pull ca=[/d/root.pem] client=[{/d/c.cert /d/c.key} {/d/c.pem }] skip=true head=1 dial=7s proxy=http://proxy.example:8080/ at /d/hosts.toml:2",
	}
	got := append(d.hosts, d.server)
	if len(got) != len(want) {
		t.Fatalf("%d endpoints", len(got))
	}
	for i, e := range got {
		if describe(e) != want[i] {
			t.Errorf("endpoint %d\n got %s\nwant %s", i, describe(e), want[i])
		}
	}
	if len(d.unknown) != 1 || d.unknown[0].Key != "host.bare.example" || d.unknown[0].Line != 25 {
		t.Errorf("unknown: %v", d.unknown)
	}
}

// Order is that of the file, however the tables are written.
func TestOrderOfHosts(t *testing.T) {
	for _, doc := range []string{
		"[host.'http://c']\n[host.'http://a']\n[host.'http://b']\n",
		"host.'http://c'.skip_verify = true\nhost.'http://a'.capabilities = []\nhost.'http://b' = {}\n",
		"host = {'http://c' = {}, 'http://a' = {ca = 'x'}, 'http://b' = {}}\n",
		"[host]\n'http://c' = {}\n'http://a'.ca = 'x'\n['host'.'http://b'.header]\n",
	} {
		d, err := parseHosts("f", "/", []byte(doc))
		if err != nil {
			t.Errorf("%s: %v", doc, err)
			continue
		}
		var order string
		for _, e := range d.hosts {
			order += e.Base.Host
		}
		if order != "cab" {
			t.Errorf("%s: order %s", doc, order)
		}
	}
}

func TestParseHostsErrors(t *testing.T) {
	for doc, want := range map[string]string{
		"\nserver = \n":                                       "f:2: ",
		"server = 'a'\nserver = 'b'\n":                        "f:2: server: ",
		"\n\nserver = 7\n":                                    "f:3: server: want a string",
		"server = 'ftp://a'\n":                                "f:1: server: ",
		"server = 'https://me:s3cret@a'\n":                    "f:1: server: ",
		"server = 'https://s3cret:%@a'\n":                     "f:1: server: ",
		"proxy = 'http://me:s3cret@[a'\n":                     "f:1: proxy: ",
		"\ndial_timeout = 'long'\n":                           "f:2: dial_timeout: want a time",
		"dial_timeout = '-1s'\n":                              "f:1: dial_timeout: -1s is negative",
		"dial_timeout = 5\n":                                  "f:1: dial_timeout: want a time",
		"host = 7\n":                                          "f:1: host: ",
		"[[host]]\n":                                          "f:1: host: ",
		"[host]\n'https://a' = 7\n":                           "f:2: host.\"https://a\": want a table",
		"[host.'https://a']\n\ncapabilities = ['fly']\n":      "f:3: host.\"https://a\".capabilities: \"fly\" is not one of",
		"[host.'https://a']\ncapabilities = 'pull'\n":         "f:2: host.\"https://a\".capabilities: want a list",
		"[host.'https://a']\nca = [['b']]\n":                  "f:2: host.\"https://a\".ca: want",
		"[host.'https://a']\nca = ''\n":                       "f:2: host.\"https://a\".ca: ",
		"[host.'https://a']\nclient = [['b']]\n":              "f:2: host.\"https://a\".client: want",
		"[host.'https://a']\nclient = [['b', 'c', 'd']]\n":    "f:2: host.\"https://a\".client: want",
		"[host.'https://a']\nskip_verify = 'yes'\n":           "f:2: host.\"https://a\".skip_verify: want true or false",
		"[host.'https://a'.header]\n'x y' = 'z'\n":            "f:1: host.\"https://a\".header: ",
		"[host.'https://a'.header]\nx = \"s3cret\\u0000\"\n":  "f:1: host.\"https://a\".header: ",
		"[host.'https://a'.header]\nx = 7\n":                  "f:1: host.\"https://a\".header: want",
		"[host.'https://a']\nrewrite = {'(' = 'b'}\n":         "f:2: host.\"https://a\".rewrite: ",
		"[host.'https://a']\n[host.'https://a?b']\n":          "f:2: host.\"https://a?b\": ",
		"[host.'']\n":                                         "f:1: host.\"\": ",
		"[host.'https://a']\nca = ['b']\noverride_path = 1\n": "f:3: host.\"https://a\".override_path: want true or false",
	} {
		_, err := parseHosts("f", "/", []byte(doc))
		if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "s3cret") || !errors.Is(err, ErrConfig) {
			t.Errorf("%q: got %v, want %s", doc, err, want)
		}
	}
}

func FuzzHosts(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("host = {'http://c' = {}, 'http://a' = {ca = 'x'}}\n"))
	f.Add([]byte("[[host]]\n[host.''.header]\nx = ['']"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		d, err := parseHosts("/d/hosts.toml", "/d", doc)
		if err != nil {
			var p *Problem
			if !errors.As(err, &p) || p.File != "/d/hosts.toml" || p.Line < 1 || p.Reason == "" {
				t.Errorf("%#v", err)
			}
			return
		}
		for _, host := range []string{"docker.io", "localhost:5000", "a.example"} {
			for _, e := range (&hostDir{path: "/d", doc: d}).endpoints(host) {
				valid := (e.API.Scheme == "https") == (e.Plain == "") && e.API.Host != "" && e.API.User == nil && e.Base.Host == e.API.Host &&
					e.Capabilities != 0 && e.Capabilities&^All == 0 && e.DialTimeout > 0 && e.Source != ""
				if !valid {
					t.Errorf("endpoint %+v", e)
				}
				_, _ = e.Repository("library/busybox")
				_, _ = e.Scope("library/busybox")
			}
		}
	})
}

func write(t *testing.T, dir string, files map[string]string) string {
	t.Helper()
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

// list is the endpoints of a host in short.
func list(t *testing.T, c Config, host string) string {
	t.Helper()
	r, err := NewResolver(c)
	if err != nil {
		t.Fatal(err)
	}
	endpoints, _, err := r.Endpoints(host)
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, e := range endpoints {
		text := e.API.String()
		if e.Own {
			text += "*"
		}
		if e.Capabilities != All {
			text += " " + e.Capabilities.String()
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

func TestEndpoints(t *testing.T) {
	one := write(t, t.TempDir(), map[string]string{
		"reg.example_5000_/hosts.toml": "server = 'http://underscore'",
		"reg.example:5000/hosts.toml":  "server = 'http://colon'",
		"only.example:5000/hosts.toml": "server = 'http://colon'",
		"docker.io/hosts.toml":         "server = 'https://docker.io'\n[host.'https://registry-1.docker.io']\ncapabilities = ['pull', 'resolve']\n",
		"localhost:5000/hosts.toml":    "[host.'http://m']",
		"127.0.0.1:1/ca.crt":           "",
		"_default/hosts.toml":          "[host.'http://default']\n",
		"plain.example/hosts.toml":     "[host.'http://a:5000']\nskip_verify = true\n[host.'http://b']\nskip_verify = true\n",
		"empty.example/hosts.toml":     "",
		"second.example/hosts.toml":    "# nothing",
		"[::1]_80_/hosts.toml":         "server = 'http://six'",
		"_/x":                          "",
	})
	if err := os.MkdirAll(filepath.Join(one, "bare.example"), 0o755); err != nil {
		t.Fatal(err)
	}
	two := write(t, t.TempDir(), map[string]string{
		"second.example/hosts.toml": "server = 'http://two'", "bare.example/hosts.toml": "server = 'http://two'",
		"other.example/hosts.toml": "server = 'http://two'",
	})
	if err := os.MkdirAll(filepath.Join(two, "none.example"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := Config{Dirs: []string{filepath.Join(one, "missing"), one, two}, Registries: map[string]Registry{
		"m.example": {Mirrors: []Entry{{URL: "https://m.example", Capabilities: []string{"pull"}}}},
		"i.example": {Insecure: true},
	}}
	for host, want := range map[string]string{
		"reg.example:5000":  "http://underscore/v2",
		"only.example:5000": "http://colon/v2",
		"docker.io":         "https://registry-1.docker.io/v2* resolve, pull, https://registry-1.docker.io/v2* push",
		"localhost:5000":    "http://m/v2, https://localhost:5000/v2*, http://localhost:5000/v2*",
		"127.0.0.1:1":       "https://127.0.0.1:1/v2*",
		"unknown.example":   "http://default/v2, https://unknown.example/v2*",
		"plain.example":     "https://a:5000/v2, http://a:5000/v2, http://b/v2, https://plain.example/v2*",
		"empty.example":     "https://empty.example/v2*",
		"second.example":    "https://second.example/v2*",
		"bare.example":      "http://two/v2",
		"none.example":      "https://none.example/v2*",
		"other.example":     "http://two/v2",
		"[::1]:80":          "http://six/v2",
		"m.example":         "https://m.example/v2* pull, https://m.example/v2* resolve, push",
		"i.example":         "https://i.example/v2*, http://i.example/v2*",
	} {
		if got := list(t, c, host); got != want {
			t.Errorf("%s:\n got %s\nwant %s", host, got, want)
		}
	}
	c.Registries[Default] = Registry{Mirrors: []Entry{{URL: "http://ours"}}, NoFallback: true}
	for host, want := range map[string]string{"unknown.example": "http://ours/v2", "other.example": "http://two/v2"} {
		if got := list(t, c, host); got != want {
			t.Errorf("with a default of our own, %s:\n got %s\nwant %s", host, got, want)
		}
	}
	notADir := filepath.Join(write(t, t.TempDir(), map[string]string{"f": ""}), "f")
	if got := list(t, Config{Dirs: []string{notADir}}, "a.example"); !strings.Contains(got, notADir) {
		t.Errorf("a file for a directory: %s", got)
	}
}

func TestScope(t *testing.T) {
	for url, want := range map[string]string{
		"https://a": "r true", "https://a/p": "r true", "https://a/v2": "r true", "!https://a/v2/p/q": "p/q/r true", "!https://a/p": "r false", "!https://a": "r false",
	} {
		url, override := strings.CutPrefix(url, "!")
		e, f := Entry{URL: url, OverridePath: override}.endpoint("/")
		if f != nil {
			t.Fatal(f)
		}
		scope, ok := e.Scope("r")
		if got := fmt.Sprint(scope, " ", ok); got != want {
			t.Errorf("%s: %s, want %s", url, got, want)
		}
	}
}

func TestHealth(t *testing.T) {
	var h Health
	h.Failed("a")
	first := h.RestsUntil("a")
	if d := time.Until(first); d <= firstRest-time.Second || d > firstRest || !h.RestsUntil("b").IsZero() {
		t.Fatalf("rests for %v", d)
	}
	h.Failed("a")
	if h.RestsUntil("a") != first {
		t.Error("it rests longer for what failed at the same time")
	}
	for _, want := range []time.Duration{2 * firstRest, 4 * firstRest, 8 * firstRest, maxRest, maxRest} {
		h.resting["a"] = rest{time.Now(), h.resting["a"].wait} // as if the time had passed
		if h.Failed("a"); h.resting["a"].wait != want {
			t.Errorf("rests for %v, want %v", h.resting["a"].wait, want)
		}
	}
	h.Answered("a")
	if !h.RestsUntil("a").IsZero() {
		t.Error("it rests after an answer")
	}
	h.resting["old"] = rest{time.Now().Add(-2 * maxRest), maxRest}
	if h.Failed("a"); len(h.resting) != 1 || h.resting["a"].wait != firstRest {
		t.Errorf("%v", h.resting)
	}
}
