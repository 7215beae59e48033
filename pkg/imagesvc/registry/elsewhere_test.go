package registry_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/hosts"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// A registry that sends clients to a token server and has its blobs elsewhere: what is configured of the registry is for its own
// host, but for the authorities that are trusted.
func TestElsewhere(t *testing.T) {
	img := smallImage(t)
	cert, key := registrytest.NewClientCert(t)
	ca := registrytest.NewMemoryTLS(t).CA(t)
	// hosts.toml by what it is for: the registry, its token server, its store. TOKENS and STORE in them are the hosts of these.
	type files struct{ registry, tokens, store string }
	trusting, any := fmt.Sprintf("ca = %q\n", ca), "skip_verify = true\n"
	client1 := fmt.Sprintf("client = [[%q, %q]]\n", cert, key)
	for name, test := range map[string]struct {
		files    files
		insecure string // hosts that are configured insecure instead
		fails    string // what the error says
		shown    string // hosts that see the client certificate
	}{
		"nothing":                             {fails: "certificate"},
		"authority":                           {files: files{registry: trusting}},
		"skip_verify":                         {files: files{registry: any}, fails: "hosts.toml"},
		"skip_verify, token server too":       {files: files{registry: any, tokens: any}, fails: "certificate"},
		"skip_verify, store too":              {files: files{registry: any, store: any}, fails: "certificate"},
		"skip_verify for each":                {files: files{any, any, any}},
		"skip_verify, authorities elsewhere":  {files: files{any, trusting, trusting}},
		"skip_verify and authority":           {files: files{registry: any + trusting}},
		"client certificate":                  {files: files{registry: trusting + client1}, shown: "registry"},
		"client certificate for tokens too":   {files: files{registry: trusting + client1, tokens: client1}, shown: "registry tokens"},
		"client certificate for the store":    {files: files{registry: trusting, store: trusting + client1}, shown: "store"},
		"the store is another endpoint":       {files: files{registry: any + "[host.'https://STORE']\nskip_verify = true\ncapabilities = ['push']\n", tokens: any}},
		"client certificate, other endpoint":  {files: files{registry: trusting + "[host.'https://STORE']\ncapabilities = ['push']\n" + trusting + client1}, shown: "store"},
		"broken settings of the token server": {files: files{registry: trusting, tokens: "ca = '/nowhere'"}, fails: "/nowhere"},
		"insecure":                            {insecure: "registry", fails: "it sends on to 127.0.0.1:"},
		"insecure, all":                       {insecure: "registry tokens store"},
	} {
		t.Run(name, func(t *testing.T) {
			all := map[string]*registrytest.Memory{}
			for _, is := range []string{"registry", "tokens", "store"} {
				all[is] = registrytest.NewMemoryTLS(t)
			}
			own, tokens, store := all["registry"], all["tokens"], all["store"]
			own.Add("a/b", "v1", img)
			store.Add("a/b", "v1", img)
			tokens.Hook = func(w http.ResponseWriter, _ *http.Request) bool {
				_, _ = w.Write([]byte(`{"token":"good"}`))
				return true
			}
			own.Hook = func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case r.Header.Get("Authorization") != "Bearer good":
					w.Header().Set("WWW-Authenticate", `Bearer realm="https://`+tokens.Host+`/token",service="x",scope="repository:a/b:pull"`)
					w.WriteHeader(http.StatusUnauthorized)
				case isLayer(r, img):
					http.Redirect(w, r, "https://"+store.Host+r.URL.Path, http.StatusTemporaryRedirect)
				default:
					return false
				}
				return true
			}
			put := strings.NewReplacer("STORE", store.Host)
			config := registry.Config{Hosts: map[string]registry.HostConfig{}}
			dirs := map[string]string{}
			for is, content := range map[string]string{"registry": test.files.registry, "tokens": test.files.tokens, "store": test.files.store} {
				if content != "" {
					dirs[all[is].Host+"/hosts.toml"] = put.Replace(content)
				}
				if strings.Contains(test.insecure, is) {
					config.Hosts[all[is].Host] = registry.HostConfig{Insecure: true}
				}
			}
			config.ConfigPath = []string{certsD(t, dirs)}
			err := fetchAll(t.Context(), repository(t, client(t, config), own.Host+"/a/b:v1", registry.Auth{}), img)
			t.Log(err)
			if (err != nil) != (test.fails != "") || err != nil && !strings.Contains(err.Error(), test.fails) {
				t.Errorf("err = %v, want %q", err, test.fails)
			}
			for is, m := range all {
				shown := false
				for _, r := range m.Requests() {
					shown = shown || len(r.TLS.PeerCertificates) > 0
				}
				if shown != strings.Contains(test.shown, is) {
					t.Errorf("%s saw the client certificate: %t", is, shown)
				}
			}
		})
	}
}

// The port that a URL leaves out makes no other host of it, and what may stand in a redirect is no name of a file.
func TestElsewhereByURL(t *testing.T) {
	dir := certsD(t, map[string]string{"hosts.toml": "skip_verify = true", "registry.example/hosts.toml": "server = 'https://registry.example:443'\nskip_verify = true"})
	r, err := hosts.NewResolver(hosts.Config{Dirs: []string{dir + "/registry.example", dir}})
	if err != nil {
		t.Fatal(err)
	}
	e := &hosts.Endpoint{}
	for url, want := range map[string]bool{
		"https://registry.example/x": true, "https://REGISTRY.example:443/x": true, "https://registry.example:444/x": false,
		"http://registry.example/x": false, "https://../x": false, "https://./x": false, "https://other.example": false,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := r.Elsewhere(e, nil, req.URL); err != nil || got.TLS.SkipVerify != want {
			t.Errorf("%s: %+v, %v", url, got, err)
		}
	}
}
