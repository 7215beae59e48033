package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// TestHostsFiles configures registries as operators of containerd and docker do, by files that are there already or come
// while the daemon runs: client certificates, private authorities, and a default for all other registries.
func TestHostsFiles(t *testing.T) {
	img := testImage(t)
	strict := registrytest.Start(t, registrytest.Options{TLS: true, ClientCert: true})
	private := registrytest.Start(t, registrytest.Options{TLS: true})
	plain := registrytest.Start(t, registrytest.Options{})
	for _, s := range []*registrytest.Server{strict, private, plain} {
		s.Push(t, "team/app", "v1", img)
	}
	foreign := registrytest.Start(t, registrytest.Options{TLS: true, ClientCert: true}) // only its client's certificate is used
	d := hostsFiles{t, t.TempDir()}
	n := newNode(t, fmt.Sprintf("[registry]\nconfig_path = [%q]\n[image]\nkeep_downloads = \"0s\"\n", d.dir))
	n.collect()
	before := n.stored()
	both := string(readAll(t, strict.ClientCert, strict.ClientKey))

	d.write("pair.test/hosts.toml", fmt.Sprintf("server = %q\nca = %q\nclient = [[%q, %q]]\n",
		strict.URL(), strict.CA, strict.ClientCert, strict.ClientKey))
	d.write("one-file.test/client.pem", both)
	d.write("one-file.test/hosts.toml", fmt.Sprintf("server = %q\nca = %q\nclient = \"client.pem\"\n", strict.URL(), strict.CA))
	d.write("mirror.test/hosts.toml", fmt.Sprintf("server = \"https://mirror.test\"\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\nca = [%q]\nclient = [[%q, %q]]\n",
		strict.URL(), strict.CA, strict.ClientCert, strict.ClientKey))
	d.write("without.test/hosts.toml", fmt.Sprintf("server = %q\nca = %q\n", strict.URL(), strict.CA))
	d.write("stranger.test/hosts.toml", fmt.Sprintf("server = %q\nca = %q\nclient = [[%q, %q]]\n",
		strict.URL(), strict.CA, foreign.ClientCert, foreign.ClientKey))
	d.write("no-key.test/hosts.toml", fmt.Sprintf("server = %q\nca = %q\nclient = [[%q, \"missing.key\"]]\n", strict.URL(), strict.CA, strict.ClientCert))
	// As docker has them, by the name of the registry itself.
	d.write(strict.Host+"/ca.crt", string(readAll(t, strict.CA)))
	d.write(strict.Host+"/client.cert", string(readAll(t, strict.ClientCert)))
	d.write(strict.Host+"/client.key", string(readAll(t, strict.ClientKey)))
	d.write(private.Host+"/hosts.toml", fmt.Sprintf("server = %q\nca = [%q]\n", private.URL(), private.CA))
	d.write("broken.test/hosts.toml", "server = \"https://broken.test\"\n[host.\"https://mirror.test\"]\nclient = 5\n")

	refused, misconfigured := []codes.Code{codes.Unknown}, []codes.Code{codes.InvalidArgument, codes.FailedPrecondition}
	for _, row := range []struct {
		name, host string
		want       outcome
	}{
		{"client certificate", "pair.test", outcome{}},
		{"client certificate and key in one file", "one-file.test", outcome{}},
		{"client certificate of a mirror", "mirror.test", outcome{}},
		{"client certificate as docker has it", strict.Host, outcome{}},
		// With HTTP/2 the reason that the server gives, the certificate, may come too late for Go's client to tell of it.
		{"no client certificate", "without.test", outcome{refused, []string{"without.test"}}},
		{"client certificate of another authority", "stranger.test", outcome{refused, []string{"stranger.test"}}},
		{"client key that is missing", "no-key.test", outcome{misconfigured, []string{"no-key.test/hosts.toml", "missing.key"}}},
		{"private authority", private.Host, outcome{}},
		{"broken file", "broken.test", outcome{misconfigured, []string{"broken.test/hosts.toml:3", "client"}}},
	} {
		t.Run(row.name, func(t *testing.T) { n.try(t, before, row.host+"/"+repoTag, nil, row.want) })
	}

	// A default that comes later is for the hosts that have no directory; what is in it may change.
	fromDefault := "of-no-directory.test/" + repoTag
	if err := n.pullAs(fromDefault, nil); err == nil {
		t.Fatal("a registry that does not exist has given an image")
	}
	d.write("_default/hosts.toml", fmt.Sprintf("[host.%q]\nca = %q\nclient = [[%q, %q]]\n",
		strict.URL(), strict.CA, strict.ClientCert, strict.ClientKey))
	if e := n.awaitEndpoint(fromDefault, strict.Host); !slices.Contains(e.TLS.Client, strict.ClientCert) {
		t.Errorf("explain shows the client certificates %v", e.TLS.Client)
	}
	n.try(t, before, fromDefault, nil, outcome{})
	n.try(t, before, "without.test/"+repoTag, nil, outcome{refused, []string{"without.test"}})
	// The registry itself comes after the default's mirrors, if those do not work.
	closed := closedPort(t)
	d.write("_default/hosts.toml", fmt.Sprintf("[host.%q]\n", closed))
	n.awaitEndpoint(fromDefault, closed)
	n.try(t, before, plain.Host+"/"+repoTag, nil, outcome{})
	n.try(t, before, fromDefault, nil, outcome{refused, []string{"connection refused", "of-no-directory.test"}})
}

// hostsFiles is a directory in the layout certs.d.
type hostsFiles struct {
	t   *testing.T
	dir string
}

// write replaces a file in one step.
func (d hostsFiles) write(name, text string) {
	d.t.Helper()
	path := filepath.Join(d.dir, name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path+".new~", []byte(text), 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new~", path)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// awaitEndpoint waits until an image would be pulled from a host first: files are looked at again after a second.
func (n *node) awaitEndpoint(image, host string) (first registry.EndpointExplanation) {
	n.t.Helper()
	eventually(n.t, image+" would be pulled from "+host, func() bool {
		var got registry.Explanation
		text := n.image("explain", image, "--json")
		if err := json.Unmarshal([]byte(text), &got); err != nil || len(got.Endpoints) == 0 {
			n.t.Fatalf("explain %s: %v: %s", image, err, text)
		}
		first = got.Endpoints[0]
		return strings.Contains(first.URL, host)
	})
	return first
}

func readAll(t *testing.T, files ...string) []byte {
	t.Helper()
	var all bytes.Buffer
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
	return all.Bytes()
}
