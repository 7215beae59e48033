package archive_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	ctrd "github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What "ctr image import", and a docker that keeps its images in containerd, make of what is written; and what is read of what
// they export.
func TestContainerd(t *testing.T) {
	img := testImage(t, ocispec.MediaTypeImageLayerGzip, "one")
	for _, format := range formats {
		store, err := local.NewStore(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		desc, err := ctrd.ImportIndex(t.Context(), store, bytes.NewReader(write(t, format, source(img, busybox, "quay.io/a/b:v1"))))
		if err != nil {
			t.Fatal(err)
		}
		data, err := content.ReadBlob(t.Context(), store, desc)
		if err != nil {
			t.Fatal(err)
		}
		var index ocispec.Index
		if err := json.Unmarshal(data, &index); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, d := range index.Manifests {
			names = append(names, d.Annotations["io.containerd.image.name"])
			if got, err := content.ReadBlob(t.Context(), store, d); err != nil || !bytes.Equal(got, img.ManifestData) {
				t.Errorf("%s: containerd has the manifest %s, %v", format, got, err)
			}
		}
		if !slices.Equal(names, []string{busybox, "quay.io/a/b:v1"}) {
			t.Errorf("%s: containerd has the names %v", format, names)
		}
		for _, l := range img.Manifest.Layers {
			if _, err := content.ReadBlob(t.Context(), store, l); err != nil {
				t.Errorf("%s: %v", format, err)
			}
		}

		var exported bytes.Buffer
		if err := ctrd.Export(t.Context(), store, &exported, ctrd.WithManifest(img.Descriptor(), names...)); err != nil {
			t.Fatal(err)
		}
		a := read(t, exported.Bytes())
		if got := only(t, a); !slices.Equal(got.Names, names) || got.Root.Digest != img.Digest() {
			t.Errorf("of containerd's archive: %+v", got)
		}
		checkWhole(t, a, only(t, a))
	}
}
