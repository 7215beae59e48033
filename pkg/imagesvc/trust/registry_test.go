package trust_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
	"criserver/pkg/imagesvc/trust"
)

// pulled is a repository of a registry that has no API for referrers.
type pulled struct {
	client *registry.Client
	name   string
}

func (p pulled) repository(suffix string) (*registry.Repository, error) {
	ref, err := registry.Parse(p.name + suffix)
	if err != nil {
		return nil, err
	}
	return p.client.Repository(ref, registry.Auth{})
}

func (p pulled) ManifestByTag(ctx context.Context, tag string) (string, []byte, bool, error) {
	repo, err := p.repository(":" + tag)
	if err != nil {
		return "", nil, false, err
	}
	m, err := repo.Manifest(ctx, "")
	if errors.Is(err, registry.ErrNotFound) {
		return "", nil, false, nil
	}
	return m.MediaType, m.Data, err == nil, err
}

func (p pulled) Referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error) {
	_, data, found, err := p.ManifestByTag(ctx, d.Algorithm().String()+"-"+d.Encoded())
	if err != nil || !found {
		return nil, err
	}
	var index ocispec.Index
	err = json.Unmarshal(data, &index)
	return index.Manifests, err
}

func (p pulled) Manifest(ctx context.Context, d digest.Digest) ([]byte, error) {
	repo, err := p.repository("@" + d.String())
	if err != nil {
		return nil, err
	}
	m, err := repo.Manifest(ctx, d)
	return m.Data, err
}

func (p pulled) Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	repo, err := p.repository("")
	if err != nil {
		return nil, err
	}
	blob, err := repo.Blob(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(blob)
}

var _ trust.Source = pulled{}

// push puts a manifest with its layers beside an image.
func push(t testing.TB, s *registrytest.Server, tag string, m ocispec.Manifest, content []byte) digest.Digest {
	t.Helper()
	s.PushBlob(t, "org/app", content)
	s.PushBlob(t, "org/app", []byte("{}"))
	m.Versioned, m.MediaType, m.Config = specs.Versioned{SchemaVersion: 2}, ocispec.MediaTypeImageManifest, ocispec.DescriptorEmptyJSON
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(data)
	if tag == "" {
		tag = d.String()
	}
	s.PushManifest(t, "org/app", tag, ocispec.MediaTypeImageManifest, data)
	return d
}

func TestRealRegistry(t *testing.T) {
	server := registrytest.Start(t, registrytest.Options{})
	client, err := registry.New(registry.Config{Mirrors: map[string][]registry.Endpoint{server.Host: {{URL: "http://" + server.Host}}}})
	if err != nil {
		t.Fatal(err)
	}
	signer := newSigner(t, "ecdsa")
	scope := signedBy(signer.file(t))
	scope.Name = server.Host + "/org"
	p := newPolicy(t, scope)
	for name, sign := range map[string]func(t *testing.T, d digest.Digest){
		"tag": func(t *testing.T, d digest.Digest) {
			layer := signer.old(t, &memory{blobs: map[digest.Digest][]byte{}}, d)
			push(t, server, sigTag(d), ocispec.Manifest{Layers: []ocispec.Descriptor{layer}}, payloadOf(d))
		},
		"referrer": func(t *testing.T, d digest.Digest) {
			content := signer.statement(t, statementOf(d, signType))
			layer := ocispec.Descriptor{MediaType: bundleType, Digest: digest.FromBytes(content), Size: int64(len(content))}
			subject := &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d}
			m := push(t, server, "", ocispec.Manifest{ArtifactType: bundleType, Layers: []ocispec.Descriptor{layer}, Subject: subject}, content)
			data, err := pulled{client, server.Host + "/org/app"}.Manifest(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			index := registrytest.NewIndex(ocispec.MediaTypeImageIndex, ocispec.Descriptor{
				MediaType: ocispec.MediaTypeImageManifest, ArtifactType: bundleType, Digest: m, Size: int64(len(data)),
			})
			server.PushManifest(t, "org/app", d.Algorithm().String()+"-"+d.Encoded(), ocispec.MediaTypeImageIndex, index)
		},
	} {
		t.Run(name, func(t *testing.T) {
			layer := registrytest.NewLayer(t, ocispec.MediaTypeImageLayer, map[string][]byte{"name": []byte(name)})
			img := registrytest.NewImage(runtime.GOARCH, layer)
			server.Push(t, "org/app", name, img)
			src, repository := pulled{client, server.Host + "/org/app"}, server.Host+"/org/app"
			if err := p.Check(t.Context(), repository, img.Digest(), src); !errors.Is(err, trust.ErrRejected) {
				t.Errorf("unsigned: %v", err)
			}
			sign(t, img.Digest())
			if err := p.Check(t.Context(), repository, img.Digest(), src); err != nil {
				t.Error(err)
			}
		})
	}
}
