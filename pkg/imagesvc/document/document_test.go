package document_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/document"
	"criserver/pkg/imagesvc/registry"
)

// documents is an origin that has a first document, and others by digest.
type documents struct {
	first []byte
	more  map[digest.Digest][]byte
}

func (o *documents) Manifest(_ context.Context, d digest.Digest) (registry.Manifest, error) {
	data, ok := o.first, true
	if d != "" {
		data, ok = o.more[d]
	}
	if !ok {
		return registry.Manifest{}, registry.ErrNotFound
	}
	return registry.Manifest{Descriptor: ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}, Data: data}, nil
}

func (o *documents) Content(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	data, ok := o.more[d.Digest]
	if !ok {
		return nil, registry.ErrNotFound
	}
	return data, nil
}

func (o *documents) add(v any) ocispec.Descriptor {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	if o.more == nil {
		o.more = map[digest.Digest][]byte{}
	}
	d := digest.FromBytes(data)
	o.more[d] = data
	return ocispec.Descriptor{Digest: d, Size: int64(len(data))}
}

const layers = 3

// image adds an image to an origin and returns its manifest.
func image(o *documents) ocispec.Descriptor {
	var config ocispec.Image
	config.OS, config.Architecture = "linux", runtime.GOARCH
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for i := range layers {
		d := digest.FromString(fmt.Sprint(i))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d)
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: 10})
	}
	m.Config = o.add(config)
	m.Config.MediaType = ocispec.MediaTypeImageConfig
	desc := o.add(m)
	desc.MediaType = m.MediaType
	return desc
}

func TestRead(t *testing.T) {
	o := &documents{}
	desc := image(o)
	desc.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	other := ocispec.Descriptor{MediaType: desc.MediaType, Digest: digest.FromString("other"), Size: 1, Platform: &ocispec.Platform{OS: "linux", Architecture: "s390x"}}
	index := o.add(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{other, desc}})
	o.first = o.more[index.Digest]
	img, err := document.Read(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if img.Resolved.Digest != index.Digest || img.Manifest.Digest != desc.Digest || img.Artifact || len(img.Layers) != layers {
		t.Errorf("%+v", img)
	}
	if img.ID() != img.Parsed.Config.Digest || img.Size() != desc.Size+img.Parsed.Config.Size+10*layers {
		t.Errorf("ID %s, size %d", img.ID(), img.Size())
	}
}

func TestTooManyLayers(t *testing.T) {
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString("c")}}
	for i := range 10_000 {
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(fmt.Sprint(i))})
	}
	o := &documents{}
	o.first = o.more[o.add(m).Digest]
	if _, err := document.Read(t.Context(), o); !errors.Is(err, document.ErrInvalid) || !strings.Contains(err.Error(), "10000 layers") {
		t.Errorf("got %v", err)
	}
}

// wantSane fails if what was read could harm who uses it.
func wantSane(t *testing.T, img *document.Image) {
	t.Helper()
	if len(img.Layers) != len(img.Parsed.Layers) || img.Artifact && len(img.Files) != len(img.Layers) {
		t.Fatalf("%d layers, %d blobs, %d files", len(img.Layers), len(img.Parsed.Layers), len(img.Files))
	}
	for i, d := range img.Layers {
		if err := errors.Join(d.Validate(), img.Parsed.Layers[i].Digest.Validate()); err != nil || img.Parsed.Layers[i].Size < 0 {
			t.Fatalf("layer %q of %+v: %v", d, img.Parsed.Layers[i], err)
		}
	}
	for _, name := range img.Files {
		if !filepath.IsLocal(name) || filepath.Clean(name) != name || name == "." {
			t.Fatalf("file %q", name)
		}
	}
	if img.ID().Validate() != nil {
		t.Fatalf("ID %q", img.ID())
	}
}

// FuzzManifest reads any bytes as what an image's name stands for.
func FuzzManifest(f *testing.F) {
	o := &documents{}
	desc := image(o)
	f.Add(o.more[desc.Digest])
	index := o.add(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc}})
	f.Add(o.more[index.Digest])
	f.Add([]byte(`{"schemaVersion":2,"artifactType":"a/b","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"` +
		string(ocispec.DescriptorEmptyJSON.Digest) + `","size":2},"layers":[{"digest":"` + string(ocispec.DescriptorEmptyJSON.Digest) +
		`","size":2,"annotations":{"org.opencontainers.image.title":"a/b"}}]}`))
	f.Add([]byte(`{"schemaVersion":1}`))
	o.more[ocispec.DescriptorEmptyJSON.Digest] = ocispec.DescriptorEmptyJSON.Data
	f.Fuzz(func(t *testing.T, data []byte) {
		img, err := document.Read(t.Context(), &documents{data, o.more})
		if err == nil {
			wantSane(t, img)
		} else if !errors.Is(err, document.ErrInvalid) && !errors.Is(err, registry.ErrNotFound) {
			t.Fatalf("neither invalid nor missing: %v", err)
		}
	})
}

// FuzzConfig reads any bytes as the configuration of an image with one layer.
func FuzzConfig(f *testing.F) {
	d := digest.FromString("layer")
	f.Add([]byte(`{"os":"linux","rootfs":{"type":"layers","diff_ids":["` + d.String() + `"]},"config":{"Env":["A=1"],"User":"1"}}`))
	f.Add([]byte(`{"os":"windows","rootfs":{"diff_ids":["../../x"]}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, config []byte) {
		o := &documents{more: map[digest.Digest][]byte{digest.FromBytes(config): config}}
		m := ocispec.Manifest{
			MediaType: ocispec.MediaTypeImageManifest,
			Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
			Layers:    []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: 1}},
		}
		o.first = o.more[o.add(m).Digest]
		img, err := document.Read(t.Context(), o)
		if err == nil {
			wantSane(t, img)
		} else if !errors.Is(err, document.ErrInvalid) {
			t.Fatalf("not invalid: %v", err)
		}
	})
}
