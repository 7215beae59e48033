package trust_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/trust"
)

const (
	repository        = "quay.io/org/app"
	simpleSigningType = "application/vnd.dev.cosign.simplesigning.v1+json"
	bundleType        = "application/vnd.dev.sigstore.bundle.v0.3+json"
)

// memory is a repository. fail, if set, is asked before every fetch.
type memory struct {
	tags      map[string][]byte
	manifests map[digest.Digest][]byte
	blobs     map[digest.Digest][]byte
	referrers []ocispec.Descriptor
	fail      func(what string) error
	fetched   int
}

// newMemory has one image.
func newMemory(t testing.TB) (*memory, digest.Digest) {
	m := &memory{tags: map[string][]byte{}, manifests: map[digest.Digest][]byte{}, blobs: map[digest.Digest][]byte{}}
	return m, m.addManifest(t, ocispec.Manifest{Annotations: map[string]string{"test": t.Name()}})
}

func (m *memory) addManifest(t testing.TB, v ocispec.Manifest) digest.Digest {
	t.Helper()
	v.Versioned, v.MediaType = specs.Versioned{SchemaVersion: 2}, ocispec.MediaTypeImageManifest
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(data)
	m.manifests[d] = data
	return d
}

func (m *memory) addBlob(mediaType string, data []byte, annotations map[string]string) ocispec.Descriptor {
	d := digest.FromBytes(data)
	m.blobs[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data)), Annotations: annotations}
}

// addOld adds layers to the manifest of the tag of an image.
func (m *memory) addOld(t testing.TB, image digest.Digest, layers ...ocispec.Descriptor) {
	t.Helper()
	var all ocispec.Manifest
	if data, ok := m.tags[sigTag(image)]; ok {
		if err := json.Unmarshal(data, &all); err != nil {
			t.Fatal(err)
		}
	}
	all.Layers = append(all.Layers, layers...)
	m.tags[sigTag(image)] = m.manifests[m.addManifest(t, all)]
}

// addNew adds a referrer as cosign 3 does.
func (m *memory) addNew(t testing.TB, image digest.Digest, bundle []byte) *ocispec.Descriptor {
	t.Helper()
	return m.addReferrer(t, image, bundleType, m.addBlob(bundleType, bundle, nil))
}

func (m *memory) addReferrer(t testing.TB, image digest.Digest, artifactType string, layers ...ocispec.Descriptor) *ocispec.Descriptor {
	t.Helper()
	d := m.addManifest(t, ocispec.Manifest{
		ArtifactType: artifactType, Config: ocispec.DescriptorEmptyJSON, Layers: layers,
		Subject: &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: image, Size: int64(len(m.manifests[image]))},
	})
	m.referrers = append(m.referrers, ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType, Digest: d, Size: int64(len(m.manifests[d])),
	})
	return &m.referrers[len(m.referrers)-1]
}

func sigTag(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() + ".sig" }

var errGone = errors.New("registry: gone")

func (m *memory) ask(what string) error {
	m.fetched++
	if m.fail != nil {
		return m.fail(what)
	}
	return nil
}

func (m *memory) ManifestByTag(_ context.Context, tag string) (string, []byte, bool, error) {
	if err := m.ask("tag"); err != nil {
		return "", nil, false, err
	}
	data, found := m.tags[tag]
	return ocispec.MediaTypeImageManifest, data, found, nil
}

func (m *memory) Referrers(_ context.Context, _ digest.Digest) ([]ocispec.Descriptor, error) {
	return m.referrers, m.ask("referrers")
}

func (m *memory) Manifest(_ context.Context, d digest.Digest) ([]byte, error) {
	if err := m.ask("manifest"); err != nil {
		return nil, err
	}
	data, found := m.manifests[d]
	if !found {
		return nil, fmt.Errorf("manifest %s: %w", d, errGone)
	}
	return data, nil
}

func (m *memory) Blob(_ context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if err := m.ask("blob"); err != nil {
		return nil, err
	}
	data, found := m.blobs[desc.Digest]
	if !found {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, errGone)
	}
	return data, nil
}

var _ trust.Source = (*memory)(nil)
