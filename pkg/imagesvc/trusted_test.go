package imagesvc_test

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
	"criserver/pkg/imagesvc/trust"
)

// policy is a double of a trust.Policy that asks for signatures of everything.
type policy struct {
	check func(ctx context.Context, repository string, d digest.Digest, from trust.Source) error
}

func (p *policy) Required(string) bool { return true }

func (p *policy) Check(ctx context.Context, repository string, d digest.Digest, from trust.Source) error {
	return p.check(ctx, repository, d, from)
}

// What is not trusted is not fetched, and is refused although it is there.
func TestUntrusted(t *testing.T) {
	m := registrytest.NewMemory(t)
	img := image(layer(t, "one"))
	m.Add("a/b", "v1", img)
	n := newNode(t, direct(m))
	p := &policy{check: func(ctx context.Context, repository string, d digest.Digest, from trust.Source) error {
		if repository != m.Host+"/a/b" || d != img.Digest() {
			t.Errorf("asked for %s of %s", d, repository)
		}
		if _, _, found, err := from.ManifestByTag(ctx, "sha256-"+d.Encoded()+".sig"); found || err != nil {
			t.Errorf("signatures: %t, %v", found, err)
		}
		if data, err := from.Manifest(ctx, d); err != nil || digest.FromBytes(data) != d {
			t.Errorf("manifest: %v", err)
		}
		return trust.ErrRejected
	}}
	n.settings.Policy = p
	n.restart(t)
	if _, err := n.Pull(t.Context(), m.Host+"/a/b:v1", registry.Auth{}); !errors.Is(err, imagesvc.ErrUntrusted) {
		t.Fatalf("got %v", err)
	}
	if got := m.Count(http.MethodGet, "/blobs/"+img.Layers[0].Descriptor().Digest.String()); got != 0 {
		t.Error("the layer was fetched")
	}
	n.wantClean(t)
	reject := p.check
	p.check = func(context.Context, string, digest.Digest, trust.Source) error { return nil }
	n.pull(t, m.Host+"/a/b:v1")
	p.check = reject // the policy has changed
	if _, err := n.Pull(t.Context(), m.Host+"/a/b:v1", registry.Auth{}); !errors.Is(err, imagesvc.ErrUntrusted) {
		t.Errorf("an image that is there: %v", err)
	}
}
