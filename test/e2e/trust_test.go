package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"criserver/pkg/imagesvc/registry"
)

// signingKey makes a key and writes its public part to a file.
func signingKey(t *testing.T) (*ecdsa.PrivateKey, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cosign.pub")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return key, path
}

// pusher uploads to a repository of the test registry.
func pusher(t *testing.T, repository, tag string) *registry.Pusher {
	t.Helper()
	client, err := registry.New(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := registry.Parse(registryAddr + "/" + repository + ":" + tag)
	if err != nil {
		t.Fatal(err)
	}
	p, err := client.Pusher(ref, registry.Auth{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func pushBlob(t *testing.T, p *registry.Pusher, mediaType string, data []byte) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if _, err := p.PushBlob(t.Context(), d, bytes.NewReader(data), registry.BlobOptions{}); err != nil {
		t.Fatal(err)
	}
	return d
}

func pushManifest(t *testing.T, p *registry.Pusher, m ocispec.Manifest) digest.Digest {
	t.Helper()
	m.SchemaVersion, m.MediaType = 2, ocispec.MediaTypeImageManifest
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Manifest(t.Context(), "", m.MediaType, data)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// sign writes a signature as cosign does for a key: a manifest under a tag made of the digest.
func sign(t *testing.T, key *ecdsa.PrivateKey, repository string, d digest.Digest) {
	t.Helper()
	payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":""},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, d)
	sum := sha256.Sum256(payload)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	p := pusher(t, repository, "sha256-"+d.Encoded()+".sig")
	layer := pushBlob(t, p, "application/vnd.dev.cosign.simplesigning.v1+json", payload)
	layer.Annotations = map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)}
	config := pushBlob(t, p, ocispec.MediaTypeImageConfig, []byte("{}"))
	pushManifest(t, p, ocispec.Manifest{Config: config, Layers: []ocispec.Descriptor{layer}})
}

// TestTrust holds the node to its policy: what is not signed by the key is refused with the error that the kubelet knows.
func TestTrust(t *testing.T) {
	key, public := signingKey(t)
	stranger, _ := signingKey(t)
	n := newNode(t, fmt.Sprintf("[[trust.policy]]\nscope = \"%[1]s/trust\"\nrequire = \"signed\"\nkeys = [%[2]q]\n"+
		"[[trust.policy]]\nscope = \"%[1]s/forbidden\"\nrequire = \"reject\"\n", registryAddr, public))
	img := testImage(t)
	for _, repo := range []string{"trust/good", "trust/bad", "trust/none", "forbidden/x", "free/x"} {
		p := pusher(t, repo, "v1")
		for _, l := range img.Layers {
			pushBlob(t, p, l.MediaType, l.Blob)
		}
		pushBlob(t, p, img.Manifest.Config.MediaType, img.ConfigData)
		if _, err := p.Manifest(t.Context(), "", img.Manifest.MediaType, img.ManifestData); err != nil {
			t.Fatal(err)
		}
	}
	sign(t, key, "trust/good", img.Digest())
	sign(t, stranger, "trust/bad", img.Digest())
	for repo, good := range map[string]bool{"trust/good": true, "trust/bad": false, "trust/none": false, "forbidden/x": false, "free/x": true} {
		err := n.pullAs(registryAddr+"/"+repo+":v1", nil)
		if good != (err == nil) {
			t.Errorf("%s: %v", repo, err)
		}
		if st := status.Convert(err); err != nil && (st.Code() != codes.Unknown || !strings.HasPrefix(st.Message(), "SignatureValidationFailed")) {
			t.Errorf("%s: %v", repo, err)
		}
	}
}

// TestReload changes the configuration under a running daemon. A broken one changes nothing.
func TestReload(t *testing.T) {
	n := newNode(t)
	good, err := os.ReadFile(n.config)
	if err != nil {
		t.Fatal(err)
	}
	image := registryAddr + "/library/busybox:latest"
	reload := func(extra, says string) {
		t.Helper()
		before := strings.Count(n.log(), says)
		if err := os.WriteFile(n.config, append(good, extra...), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := n.cmd.Process.Signal(unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the log says "+says, func() bool { return strings.Count(n.log(), says) > before })
	}
	reload(fmt.Sprintf("[[trust.policy]]\nscope = %q\nrequire = \"reject\"\n", registryAddr), "the configuration is read again")
	if err := n.pullAs(image, nil); !strings.Contains(fmt.Sprint(err), "SignatureValidationFailed") {
		t.Errorf("pull under the new policy: %v", err)
	}
	reload("[nonsense]\n", "the configuration cannot be taken over")
	if err := n.pullAs(image, nil); err == nil {
		t.Error("a broken configuration has ended the policy")
	}
	reload("[image]\nkeep_layers = true\n", "needs a restart")
	if err := n.pullAs(image, nil); err != nil {
		t.Errorf("pull without the policy: %v", err)
	}
}
