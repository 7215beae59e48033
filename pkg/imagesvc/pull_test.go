package imagesvc_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// TestPullFromRealRegistry takes each format through docker-registry to what a container reads.
func TestPullFromRealRegistry(t *testing.T) {
	server := registrytest.Start(t, registrytest.Options{})
	n := newNode(t, registry.Config{})
	lower := map[string][]byte{"etc/release": []byte("old"), "lower": []byte("lower")}
	upper := map[string][]byte{"etc/release": bytes.Repeat([]byte("new "), 100_000), ".wh.lower": nil}
	build := func(mediaType string) *registrytest.Image {
		img := image(registrytest.NewLayer(t, mediaType, lower), registrytest.NewLayer(t, mediaType, upper))
		img.Config.Config.Env = []string{"FORMAT=" + mediaType}
		img.Manifest.Annotations = map[string]string{"org.example": mediaType}
		return img.Seal()
	}
	docker := build(registrytest.DockerLayer)
	docker.Manifest.MediaType, docker.Manifest.Config.MediaType = registrytest.DockerManifest, registrytest.DockerConfig
	other := registrytest.NewImage("s390x", layer(t, "other"))
	empty := image()
	for name, test := range map[string]struct {
		img   *registrytest.Image
		index string
	}{
		"oci-gzip":     {build(ocispec.MediaTypeImageLayerGzip), ""},
		"oci-zstd":     {build(ocispec.MediaTypeImageLayerZstd), ""},
		"oci-tar":      {build(ocispec.MediaTypeImageLayer), ""},
		"docker":       {docker.Seal(), ""},
		"oci-index":    {build(ocispec.MediaTypeImageLayerGzip), ocispec.MediaTypeImageIndex},
		"docker-list":  {docker.Seal(), registrytest.DockerList},
		"empty":        {empty, ""},
		"nested-index": {build(ocispec.MediaTypeImageLayerZstd), "nested"},
	} {
		t.Run(name, func(t *testing.T) {
			server.Push(t, "a/"+name, "v1", test.img)
			resolved := test.img.Digest()
			if test.index != "" {
				server.Push(t, "a/"+name, "other", other)
				list := cmpOr(test.index, "nested", ocispec.MediaTypeImageIndex)
				data := registrytest.NewIndex(list, other.Descriptor(), test.img.Descriptor())
				server.PushManifest(t, "a/"+name, "v1", list, data)
				if test.index == "nested" {
					inner := ocispec.Descriptor{MediaType: list, Digest: digest.FromBytes(data), Size: int64(len(data))}
					data = registrytest.NewIndex(list, other.Descriptor(), inner)
					server.PushManifest(t, "a/"+name, "v1", list, data)
				}
				resolved = digest.FromBytes(data)
			}
			ref := server.Host + "/a/" + name
			id := n.pull(t, ref+":v1")
			img := n.image(t, ref+":v1")
			if id != test.img.ID().String() || img.ID.String() != id {
				t.Errorf("ID %s and %s, want %s", id, img.ID, test.img.ID())
			}
			if !slices.Contains(img.Tags, ref+":v1") || !slices.Contains(img.Digests, ref+"@"+resolved.String()) {
				t.Errorf("tags %v, digests %v, want digest %s", img.Tags, img.Digests, resolved)
			}
			if img.Size != test.img.Size() || img.Size == 0 {
				t.Errorf("size %d, want %d", img.Size, test.img.Size())
			}
			if !slices.Equal(img.Config.Config.Env, test.img.Config.Config.Env) || img.Annotations["org.example"] != test.img.Manifest.Annotations["org.example"] {
				t.Errorf("environment %v, annotations %v", img.Config.Config.Env, img.Annotations)
			}
			if len(test.img.Layers) == 0 {
				return
			}
			if got := n.readFile(t, img, "etc/release"); !bytes.Equal(got, upper["etc/release"]) {
				t.Errorf("the file has %d bytes: %.20s", len(got), got)
			}
		})
	}
}

func cmpOr(v, when, then string) string {
	if v == when {
		return then
	}
	return v
}

// What cannot be used is refused by name, and nothing of it is left.
func TestRefused(t *testing.T) {
	good := func() *registrytest.Image { return image(layer(t, "one"), layer(t, "two")) }
	edit := func(f func(*registrytest.Image)) *registrytest.Image {
		img := good()
		f(img)
		return img.Seal()
	}
	raw := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	cyclic := raw(map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": []any{
		map[string]any{"mediaType": ocispec.MediaTypeImageIndex, "digest": digest.FromString("self"), "size": 1}}})
	for name, test := range map[string]struct {
		img  *registrytest.Image
		data []byte // instead of the manifest
		err  error
		says string
	}{
		"layer is not what the configuration says": {img: edit(func(i *registrytest.Image) {
			i.Config.RootFS.DiffIDs[1] = digest.FromString("else")
		}), err: imagesvc.ErrInvalid, says: digest.FromString("else").String()},
		"one layer too few in the configuration": {img: edit(func(i *registrytest.Image) {
			i.Config.RootFS.DiffIDs = i.Config.RootFS.DiffIDs[:1]
		}), err: imagesvc.ErrInvalid, says: "has 1 layers, the manifest 2"},
		"a diffID that is none":           {img: edit(func(i *registrytest.Image) { i.Config.RootFS.DiffIDs[0] = "../../x" }), err: imagesvc.ErrInvalid, says: "../../x"},
		"layer digest that is none":       {img: edit(func(i *registrytest.Image) { i.Manifest.Layers[0].Digest = "../x" }), err: imagesvc.ErrInvalid, says: "../x"},
		"layer of impossible size":        {img: edit(func(i *registrytest.Image) { i.Manifest.Layers[0].Size = math.MaxInt64 }), err: imagesvc.ErrInvalid, says: "size 9223372036854775807"},
		"layer of negative size":          {img: edit(func(i *registrytest.Image) { i.Manifest.Layers[0].Size = -1 }), err: imagesvc.ErrInvalid, says: "size -1"},
		"layer is not what was said":      {img: edit(func(i *registrytest.Image) { i.Manifest.Layers[1].Digest = digest.FromString("x") }), err: registry.ErrDigest, says: "digest"},
		"layer is larger than said":       {img: edit(func(i *registrytest.Image) { i.Manifest.Layers[1].Size-- }), err: registry.ErrDigest, says: "bytes"},
		"encrypted layer":                 {img: edit(func(i *registrytest.Image) { i.Manifest.Layers[0].MediaType += "+encrypted" }), err: imagesvc.ErrInvalid, says: "+encrypted"},
		"layer is no tar":                 {img: edit(func(i *registrytest.Image) { i.Manifest.Layers[0].MediaType = "text/html" }), err: imagesvc.ErrInvalid, says: "text/html"},
		"huge configuration":              {img: good(), data: raw(map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "layers": []any{}, "config": map[string]any{"mediaType": ocispec.MediaTypeImageConfig, "size": 1 << 40, "digest": digest.FromString("x")}}), err: imagesvc.ErrInvalid, says: "1099511627776"},
		"for Windows":                     {img: edit(func(i *registrytest.Image) { i.Config.OS = "windows" }), err: imagesvc.ErrInvalid, says: "windows"},
		"schema 1":                        {img: good(), data: raw(map[string]any{"schemaVersion": 1, "name": "a/b", "fsLayers": []any{}}), err: imagesvc.ErrInvalid, says: "schema 1"},
		"schema 1 by type":                {img: good(), data: raw(map[string]any{"mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws"}), err: imagesvc.ErrInvalid, says: "schema 1"},
		"manifest and index at once":      {img: good(), data: raw(map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": []any{}, "layers": []any{}}), err: imagesvc.ErrInvalid, says: "at once"},
		"no JSON":                         {img: good(), data: []byte("<html>"), err: imagesvc.ErrInvalid, says: "decode"},
		"JSON of another form":            {img: good(), data: []byte(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[7]}`), err: imagesvc.ErrInvalid, says: "decode"},
		"other platforms only":            {img: good(), data: registrytest.NewIndex(ocispec.MediaTypeImageIndex, registrytest.NewImage("s390x").Descriptor()), err: imagesvc.ErrInvalid, says: "linux/s390x"},
		"empty index":                     {img: good(), data: registrytest.NewIndex(ocispec.MediaTypeImageIndex), err: imagesvc.ErrInvalid, says: runtime.GOARCH},
		"index of what is not there":      {img: good(), data: cyclic, err: registry.ErrNotFound, says: digest.FromString("self").String()},
		"unknown name":                    {img: good(), data: raw(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.other+json"}), err: imagesvc.ErrInvalid, says: "application/vnd.other+json"},
		"configuration is not there":      {img: edit(func(i *registrytest.Image) { i.ConfigData = nil }), err: registry.ErrNotFound, says: "blob"},
		"configuration is an array":       {img: edit(func(*registrytest.Image) {}), err: imagesvc.ErrInvalid, says: "decode configuration"},
		"gzip is cut and its digest good": {img: image(cutGzip(t)), err: imagesvc.ErrInvalid, says: "its gzip ends too early"},
	} {
		t.Run(name, func(t *testing.T) {
			m := registrytest.NewMemory(t)
			img := test.img
			if name == "configuration is an array" {
				img.ConfigData = []byte(`[]`)
				img.Manifest.Config.Digest, img.Manifest.Config.Size = digest.FromBytes(img.ConfigData), 2
				img.ManifestData = raw(img.Manifest)
			}
			m.Add("a/b", "v1", img)
			if name == "configuration is not there" {
				m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
					if strings.HasSuffix(r.URL.Path, img.Manifest.Config.Digest.String()) {
						registrytest.Fail(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown")
						return true
					}
					return false
				}
			}
			if test.data != nil {
				m.AddManifest("a/b", "v1", test.data)
			}
			n := newNode(t, direct(m))
			_, err := n.Pull(t.Context(), m.Host+"/a/b:v1", registry.Auth{})
			t.Log(err)
			if err == nil || !errors.Is(test.err, errAny) && !errors.Is(err, test.err) {
				t.Fatalf("err = %v, want %v", err, test.err)
			}
			if !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), m.Host+"/a/b:v1") {
				t.Errorf("%v: does not say %q, or not the image", err, test.says)
			}
			n.restart(t)
			n.wantClean(t)
		})
	}
	t.Run("no name", func(t *testing.T) {
		n := newNode(t, registry.Config{})
		for _, name := range []string{"", "A", "a b", digest.FromString("x").Encoded()} {
			if _, err := n.Pull(t.Context(), name, registry.Auth{}); !errors.Is(err, imagesvc.ErrInvalid) {
				t.Errorf("%q: %v", name, err)
			}
		}
	})
}

var errAny = errors.New("some error")

// cutGzip is a layer whose compressed stream ends too early, under the right digest of that.
func cutGzip(t testing.TB) registrytest.Layer {
	l := layer(t, "cut")
	l.Blob = l.Blob[:len(l.Blob)/2]
	return l
}

// On most pulls of policy Always there is nothing to do, but the registry must be asked whether these credentials may.
func TestPullAgain(t *testing.T) {
	m := registrytest.NewMemory(t)
	img := image(layer(t, "one"))
	m.Add("a/b", "v1", img)
	allowed := true
	m.Hook = func(w http.ResponseWriter, _ *http.Request) bool {
		if !allowed {
			w.WriteHeader(http.StatusForbidden)
		}
		return !allowed
	}
	n := newNode(t, direct(m))
	n.pull(t, m.Host+"/a/b:v1")
	for _, name := range []string{"/a/b:v1", "/a/b@" + img.Digest().String()} {
		before := len(m.Requests())
		if id := n.pull(t, m.Host+name); id != img.ID().String() {
			t.Errorf("ID %s", id)
		}
		if after := m.Requests()[before:]; len(after) != 1 || after[0].Method != http.MethodHead {
			t.Errorf("%s: %d requests, the first %s %s", name, len(after), after[0].Method, after[0].URL)
		}
	}
	allowed = false
	if _, err := n.Pull(t.Context(), m.Host+"/a/b:v1", registry.Auth{}); !errors.Is(err, registry.ErrUnauthorized) {
		t.Errorf("err = %v", err)
	}
}

// A mirror with a damaged layer does not keep the image from the node.
func TestDamagedMirror(t *testing.T) {
	own, mirror := registrytest.NewMemory(t), registrytest.NewMemory(t)
	img := image(layer(t, "one"), layer(t, "two"))
	own.Add("a/b", "v1", img)
	mirror.Add("a/b", "v1", img)
	for i, damage := range [][]byte{
		bytes.Repeat([]byte("x"), len(img.Layers[0].Blob)), img.Layers[0].Blob[:100],
		append(bytes.Clone(img.Layers[0].Blob[:len(img.Layers[0].Blob)-1]), 'x'),
	} {
		mirror.AddBlob(img.Manifest.Layers[0].Digest, damage)
		n := newNode(t, registry.Config{Mirrors: map[string][]registry.Endpoint{own.Host: {{URL: "http://" + mirror.Host}}}})
		if n.pull(t, own.Host+"/a/b:v1"); mirror.Count(http.MethodGet, "/blobs/"+img.Manifest.Layers[0].Digest.String()) != i+1 {
			t.Error("the mirror was not asked")
		}
		n.wantLayers(t, img.Layers...)
	}
}

// An image that is removed while the registry says that it has not changed is fetched again.
func TestRemovedWhileUnchanged(t *testing.T) {
	m := registrytest.NewMemory(t)
	m.Add("a/b", "v1", image(layer(t, "app")))
	n := newNode(t, direct(m))
	name := m.Host + "/a/b:v1"
	var heads atomic.Int64
	m.Hook = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			heads.Add(1)
			if err := errors.Join(n.Remove(context.Background(), name), n.Collect(context.Background())); err != nil {
				t.Error(err)
			}
		}
		return false
	}
	first := n.pull(t, name)
	if second := n.pull(t, name); second != first || heads.Load() != 1 {
		t.Errorf("%s, then %s, after %d questions", first, second, heads.Load())
	}
	if img := n.image(t, name); img.ID.String() != first {
		t.Errorf("the image is %s", img.ID)
	}
	n.wantLayers(t, layer(t, "app"))
}
