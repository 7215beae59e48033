package registry_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

func explain(t *testing.T, c *registry.Client, name string, a registry.Auth) registry.Explanation {
	t.Helper()
	ref, err := registry.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	return c.Explain(t.Context(), ref, a)
}

func TestExplain(t *testing.T) {
	m := registrytest.NewMemory(t)
	files := certsD(t, map[string]string{
		"broken.example/hosts.toml": "\nserver = 7\n",
		"quay.io/hosts.toml":        "server = 'https://cache.example'\n[host.'http://10.0.0.1:5000']\ncapabilities = ['pull']\n",
	})
	c := client(t, registry.Config{
		ConfigPath: []string{files},
		Mirrors: map[string][]registry.Endpoint{"docker.io": {
			{
				URL: "https://mirror.example/p", SkipVerify: true, Header: map[string][]string{"X-Key": {"s3cret-key"}},
				Rewrite: map[string]string{"^library/": "hub/"}, DialTimeout: time.Second, Proxy: "http://me:s3cret@proxy.example:3128",
				Capabilities: []string{"pull"},
			},
			{URL: "https://own.example/v2/x", OverridePath: true, TakesCredentials: true},
		}},
		Hosts: map[string]registry.HostConfig{"old.example": {Insecure: true}},
		Auth:  map[string]registry.Auth{"mirror.example": {Username: "node", Password: "s3cret"}},
	})

	e := explain(t, c, "busybox", secret)
	if data, err := json.Marshal(e); err != nil || strings.Contains(string(data), "s3cret") {
		t.Fatalf("%s, %v", data, err)
	}
	if e.Error != "" || e.Source != `registry.mirrors."docker.io"` || e.Registry != "docker.io" || len(e.Endpoints) != 3 {
		t.Fatalf("%+v", e)
	}
	mirror, second, own := e.Endpoints[0], e.Endpoints[1], e.Endpoints[2]
	want := registry.EndpointExplanation{
		URL:    "https://mirror.example/p/v2/hub/busybox/manifests/latest?ns=docker.io",
		Source: `registry.mirrors."docker.io".endpoints[0]`, Capabilities: []string{"pull"},
		TLS: registry.TLSExplanation{Verify: "none: any certificate is taken"}, Headers: []string{"X-Key"}, Rewritten: "hub/busybox",
		DialTimeout: "1s", Proxy: "proxy.example:3128", Credential: "the configuration for mirror.example",
		Resolve: registry.Decision{In: false, Why: "it is configured without resolve"},
		Pull:    registry.Decision{In: true, Why: "it is a mirror"},
	}
	if got, want := fmt.Sprintf("%+v", mirror), fmt.Sprintf("%+v", want); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if second.URL != "https://own.example/v2/x/library/busybox/manifests/latest?ns=docker.io" || second.Credential != "given with the pull" ||
		second.DialTimeout != "5s" {
		t.Errorf("%+v", second)
	}
	if own.URL != "https://registry-1.docker.io/v2/library/busybox/manifests/latest" || !own.Own || own.TLS.Verify != "system" ||
		own.DialTimeout != "30s" || own.Credential != "given with the pull" || !own.Resolve.In {
		t.Errorf("%+v", own)
	}

	e = explain(t, c, "quay.io/a/b@sha256:"+strings.Repeat("a", 64), secret)
	if len(e.Endpoints) != 2 || e.Endpoints[0].Source != files+"/quay.io/hosts.toml:2" || e.Endpoints[1].Source != files+"/quay.io/hosts.toml:1" ||
		e.Endpoints[0].TLS.PlainAllowed != "its URL begins with http://" || e.Endpoints[1].Own || e.Endpoints[1].Resolve.In ||
		!strings.HasPrefix(e.Endpoints[1].Credential, "none: ") {
		t.Errorf("%+v", e)
	}
	if e = explain(t, c, "broken.example/a", registry.Auth{}); !strings.Contains(e.Error, files+"/broken.example/hosts.toml:2: server") {
		t.Errorf("%+v", e)
	}
	if e = explain(t, c, "old.example/a", registry.Auth{}); len(e.Endpoints) != 2 || e.Endpoints[1].TLS.PlainAllowed != `registry.mirrors."old.example" says insecure` {
		t.Errorf("%+v", e)
	}
	if e = explain(t, c, "localhost:5000/a", registry.Auth{}); len(e.Endpoints) != 2 || e.Source != "built in" ||
		e.Endpoints[0].TLS.PlainAllowed != "" || e.Endpoints[1].TLS.PlainAllowed != "the registry is on this machine" {
		t.Errorf("%+v", e)
	}
	if len(m.Requests()) != 0 {
		t.Error("something was asked")
	}
}

func TestProbe(t *testing.T) {
	locked := registrytest.Start(t, registrytest.Options{TLS: true, User: "me", Password: "x"})
	echo := registrytest.NewMemory(t)
	echo.Hook = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true }
	c := client(t, registry.Config{
		Mirrors: map[string][]registry.Endpoint{gone: {
			{URL: locked.URL(), CA: []string{locked.CA}}, {URL: locked.URL() + "/x"}, {URL: "http://" + echo.Host}, {URL: "http://127.0.0.1:1"},
		}},
		Hosts: map[string]registry.HostConfig{gone: {NoFallback: true}},
	})
	ref, err := registry.Parse(gone + "/a/b")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range c.Probe(t.Context(), ref, registry.Auth{}).Endpoints {
		got = append(got, fmt.Sprint(e.Probe.Status, " ", e.Probe.Error != ""))
	}
	if fmt.Sprint(got) != "[401 false 0 true 502 false 0 true]" {
		t.Errorf("got %q", got)
	}
	if n := len(echo.Requests()); n != 1 {
		t.Errorf("%d requests", n)
	}
}
