package archive_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/archive"
	"criserver/pkg/imagesvc/registry/registrytest"
)

func TestReadLayout(t *testing.T) {
	img := testImage(t, ocispec.MediaTypeImageLayerGzip, "one")
	entries := layout(t, indexOf(annotated(img.Descriptor(), "io.containerd.image.name", busybox)), blobsOf(img)...)
	backwards := slices.Clone(entries)
	slices.Reverse(backwards)
	dotted := []entry{{name: "./", kind: tar.TypeDir}, {name: "./blobs/", kind: tar.TypeDir}, {name: "./blobs/sha256/", kind: tar.TypeDir}}
	for _, e := range entries {
		e.name = "./" + e.name
		dotted = append(dotted, e)
	}
	top, layer := blobName(img.Layers[1].Blob), entry{name: "elsewhere/" + strings.Repeat("long/", 50), data: img.Layers[1].Blob}
	layer.name += "layer"
	without := slices.DeleteFunc(slices.Clone(entries), func(e entry) bool { return e.name == top })
	hard := append(slices.Clone(without), layer, entry{name: top, kind: tar.TypeLink, link: layer.name})
	symbolic := append([]entry{{name: top, kind: tar.TypeSymlink, link: "../../between"}, {name: "between", kind: tar.TypeSymlink, link: layer.name}},
		append(without, layer)...)
	global := slices.Clone(makeTar(t, entries...))
	for name, data := range map[string][]byte{
		"plain": makeTar(t, entries...), "gzip": gzipped(t, makeTar(t, entries...)), "zstd": zstandard(t, makeTar(t, entries...)),
		"backwards": makeTar(t, backwards...), "dotted": makeTar(t, dotted...), "hard link, PAX": makeTar(t, hard...),
		"symbolic link": makeTar(t, symbolic...), "padded": append(global, make([]byte, 10240)...),
		"skippable zstd": append([]byte{0x5e, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 7, 7}, zstandard(t, makeTar(t, entries...))...),
	} {
		t.Run(name, func(t *testing.T) {
			a := read(t, data)
			got := only(t, a)
			if !slices.Equal(got.Names, []string{busybox}) || got.Root.Digest != img.Digest() || got.Tag != "" {
				t.Errorf("got %+v, want %s named %s", got, img.Digest(), busybox)
			}
			checkWhole(t, a, got)
		})
	}
}

// Byte for byte, as a slow pipe may give it.
func TestReadOneByOne(t *testing.T) {
	img := testImage(t, ocispec.MediaTypeImageLayer, "one")
	data := gzipped(t, write(t, archive.Docker, source(img, busybox)))
	a, err := archive.Read(t.Context(), iotest.OneByteReader(bytes.NewReader(data)), t.TempDir(), generous)
	if err != nil {
		t.Fatal(err)
	}
	checkWhole(t, a, only(t, a))
}

func TestReadOtherDigests(t *testing.T) {
	img := testImage(t, ocispec.MediaTypeImageLayer, "one")
	long := digest.SHA512.FromBytes(img.Layers[0].Blob)
	img.Manifest.Layers[0].Digest = long
	img.Seal()
	entries := layout(t, indexOf(img.Descriptor()), blobsOf(img)...)
	entries = append(entries, entry{name: "blobs/sha512/" + long.Encoded(), data: img.Layers[0].Blob},
		entry{name: "blobs/md5/d41d8cd98f00b204e9800998ecf8427e"}, entry{name: "blobs/sha256/README", data: []byte("no blob")})
	a := read(t, makeTar(t, entries...))
	checkWhole(t, a, only(t, a))
}

func TestReadNames(t *testing.T) {
	img, other := testImage(t, ocispec.MediaTypeImageLayer, "one"), testImage(t, ocispec.MediaTypeImageLayer, "two")
	const full, ref = "io.containerd.image.name", "org.opencontainers.image.ref.name"
	byDigest := "quay.io/a/b@" + other.Digest().String()
	for _, tc := range []struct {
		what  string
		descs []ocispec.Descriptor
		want  []archive.Image
	}{
		{"none", []ocispec.Descriptor{img.Descriptor()}, []archive.Image{{}}},
		{"a tag, of umoci", []ocispec.Descriptor{annotated(img.Descriptor(), ref, "v1")}, []archive.Image{{Tag: "v1"}}},
		{"a full reference, of podman", []ocispec.Descriptor{annotated(img.Descriptor(), ref, "localhost/a:v1")},
			[]archive.Image{{Names: []string{"localhost/a:v1"}}}},
		{"both, of containerd", []ocispec.Descriptor{annotated(img.Descriptor(), full, "busybox", ref, "latest")},
			[]archive.Image{{Names: []string{busybox}}}},
		{"free text", []ocispec.Descriptor{annotated(img.Descriptor(), ref, "My Image: the best")}, []archive.Image{{}}},
		{"several, of one image and of two", []ocispec.Descriptor{annotated(img.Descriptor(), ref, "v1"),
			annotated(other.Descriptor(), full, byDigest), annotated(img.Descriptor(), full, "b:v1"), annotated(img.Descriptor(), full, "a:v1"),
			annotated(img.Descriptor(), full, "docker.io/library/b:v1")},
			[]archive.Image{{Names: []string{"docker.io/library/b:v1", "docker.io/library/a:v1"}}, {Names: []string{byDigest}}}},
		{"of what is no image", []ocispec.Descriptor{{MediaType: "application/xml", Digest: img.Layers[0].DiffID(), Size: 1},
			annotated(other.Descriptor(), "io.containerd.manifest.subject", img.Digest().String()), img.Descriptor()}, []archive.Image{{}}},
	} {
		t.Run(tc.what, func(t *testing.T) {
			entries := layout(t, indexOf(tc.descs...), append(blobsOf(img), blobsOf(other)...)...)
			got := read(t, makeTar(t, entries...)).Images()
			if !slices.EqualFunc(got, tc.want, func(g, w archive.Image) bool { return slices.Equal(g.Names, w.Names) && g.Tag == w.Tag }) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestReadIndexOfOnePlatform(t *testing.T) {
	img := testImage(t, ocispec.MediaTypeImageLayer, "one")
	absent := registrytest.NewImage("arm64")
	index := registrytest.NewIndex(ocispec.MediaTypeImageIndex, absent.Descriptor(), img.Descriptor())
	root := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(index), Size: int64(len(index))}
	items := toJSON(t, []item{{Config: blobName(img.ConfigData), RepoTags: []string{"busybox:latest"},
		Layers: []string{blobName(img.Layers[0].Blob), blobName(img.Layers[1].Blob)}}})
	entries := append(layout(t, indexOf(root), append(blobsOf(img), blobs(index)...)...), entry{name: "manifest.json", data: items})
	a := read(t, makeTar(t, entries...))
	got := only(t, a)
	if got.Root.Digest != root.Digest || got.Root.MediaType != ocispec.MediaTypeImageIndex || !slices.Equal(got.Names, []string{busybox}) {
		t.Errorf("got %+v", got)
	}
	if mediaType, data, err := a.Manifest(t.Context(), img.Digest()); err != nil || mediaType != img.Manifest.MediaType || !bytes.Equal(data, img.ManifestData) {
		t.Errorf("manifest of the platform that is there: %s %s %v", mediaType, data, err)
	}
	if _, _, err := a.Manifest(t.Context(), absent.Digest()); !errors.Is(err, archive.ErrNotFound) {
		t.Errorf("manifest of the platform that is not there: %v", err)
	}
	if _, _, err := a.Blob(t.Context(), "sha256:../../../etc/passwd"); !errors.Is(err, archive.ErrNotFound) {
		t.Errorf("blob of a hostile digest: %v", err)
	}
	if _, _, err := a.Manifest(t.Context(), img.Layers[0].DiffID()); !errors.Is(err, archive.ErrInvalid) {
		t.Errorf("layer as manifest: %v", err)
	}
}

func TestReadDocker(t *testing.T) {
	for mediaType, want := range map[string]string{
		ocispec.MediaTypeImageLayer: ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip: ocispec.MediaTypeImageLayerGzip,
		ocispec.MediaTypeImageLayerZstd: ocispec.MediaTypeImageLayerZstd,
	} {
		img := testImage(t, mediaType, "one")
		base, top := img.Layers[0].Blob, img.Layers[1].Blob
		// As docker wrote before 25: a layer that is there already is a symbolic link; legacy files are in between.
		entries := []entry{
			{name: "aaa/", kind: tar.TypeDir}, {name: "aaa/VERSION", data: []byte("1.0")}, {name: "aaa/json", data: []byte("{}")},
			{name: "aaa/layer.tar", kind: tar.TypeSymlink, link: "../bbb/layer.tar"},
			{name: "bbb/VERSION", data: []byte("1.0")}, {name: "bbb/layer.tar", data: base}, {name: "ccc/layer.tar", data: top},
			{name: "config.json", data: img.ConfigData},
			{name: "manifest.json", data: toJSON(t, []item{
				{"config.json", []string{"busybox:latest", "quay.io/a/b:v1"}, []string{"aaa/layer.tar", "ccc/layer.tar"}},
				{"config.json", []string{"busybox:latest", "c"}, []string{"bbb/layer.tar", "./ccc/layer.tar"}}})},
			{name: "repositories", data: []byte(`{"busybox":{"latest":"ccc"}}`)},
		}
		a := read(t, makeTar(t, entries...))
		got := only(t, a)
		if names := []string{busybox, "quay.io/a/b:v1", "docker.io/library/c:latest"}; !slices.Equal(got.Names, names) {
			t.Errorf("got names %v, want %v", got.Names, names)
		}
		m := checkWhole(t, a, got)
		if m.Config.Digest != img.ID() || len(m.Layers) != 2 || m.Layers[0].Digest != digest.FromBytes(base) ||
			m.Layers[1].Digest != digest.FromBytes(top) || m.Layers[0].MediaType != want {
			t.Errorf("%s: made manifest %+v", mediaType, m)
		}
	}
}

func TestReadBoth(t *testing.T) {
	img, other := testImage(t, ocispec.MediaTypeImageLayer, "one"), testImage(t, ocispec.MediaTypeImageLayer, "two")
	of := func(img *registrytest.Image, tags ...string) item {
		return item{blobName(img.ConfigData), tags, []string{blobName(img.Layers[0].Blob), blobName(img.Layers[1].Blob)}}
	}
	both := func(index ocispec.Index, items ...item) []archive.Image {
		entries := layout(t, index, append(blobsOf(img), blobsOf(other)...)...)
		return read(t, makeTar(t, append(entries, entry{name: "manifest.json", data: toJSON(t, items)})...)).Images()
	}
	got := both(indexOf(annotated(img.Descriptor(), "io.containerd.image.name", "index:v1")), of(img, "manifest:v1"))
	if len(got) != 1 || !slices.Equal(got[0].Names, []string{"docker.io/library/index:v1"}) || got[0].Root.Digest != img.Digest() {
		t.Errorf("the names of index.json count; got %+v", got)
	}
	got = both(indexOf(img.Descriptor()), of(img, "manifest:v1"))
	if len(got) != 1 || !slices.Equal(got[0].Names, []string{"docker.io/library/manifest:v1"}) || got[0].Root.Digest != img.Digest() {
		t.Errorf("an index.json without names takes those of manifest.json; got %+v", got)
	}
	// Docker 25 and later, of images without a name.
	if got = both(indexOf(img.Descriptor()), of(img), of(other)); len(got) != 2 || got[0].Root.Digest != img.Digest() {
		t.Errorf("what only manifest.json has is an image too; got %+v", got)
	}
}

// change changes one entry.
func change(entries []entry, name string, to func(*entry)) []entry {
	out := slices.Clone(entries)
	for i := range out {
		if out[i].name == name {
			to(&out[i])
		}
	}
	return out
}

func TestReadInvalid(t *testing.T) {
	img := testImage(t, ocispec.MediaTypeImageLayer, "one")
	good := layout(t, indexOf(img.Descriptor()), blobsOf(img)...)
	layer := blobName(img.Layers[1].Blob)
	index := func(d ocispec.Descriptor) []byte { return makeTar(t, layout(t, indexOf(d), blobsOf(img)...)...) }
	with := func(e ...entry) []byte { return makeTar(t, append(slices.Clone(good), e...)...) }
	twofold := []byte(`{"manifests":[],"layers":[]}`)
	wrong := img.Descriptor()
	wrong.Size++
	docker := func(i item) []byte {
		return makeTar(t, entry{name: "manifest.json", data: toJSON(t, []item{i})}, entry{name: "c", data: img.ConfigData}, entry{name: "l", data: []byte("l")})
	}
	for _, tc := range []struct {
		what string
		data []byte
		want string // in the message
	}{
		{"nothing", nil, "it is empty"},
		{"an empty tar", makeTar(t), "a tar of something else"},
		{"text", []byte(strings.Repeat("this is a text, not a tar\n", 100)), "it is no tar"},
		{"a short text", []byte("short"), "ends too early"},
		{"xz", append([]byte{0xfd, '7', 'z', 'X', 'Z', 0}, make([]byte, 600)...), "form of xz; a tar is read, plain or compressed by gzip or zstd"},
		{"compressed text", gzipped(t, []byte(strings.Repeat("this is a text, not a tar\n", 100))), "it is no tar"},
		{"another tar", makeTar(t, entry{name: "etc/passwd", data: []byte("root")}), "oci-layout and index.json"},
		{"a layout in a directory", makeTar(t, entry{name: "img/oci-layout"}), "tar -C img/ -cf FILE ."},
		{"a docker archive of old", makeTar(t, entry{name: "repositories", data: []byte("{}")}), "docker before 1.10"},
		{"garbage after an entry", append(with()[:1024], bytes.Repeat([]byte("x"), 4096)...), "it is damaged"},
		{"a damaged blob", makeTar(t, change(good, layer, func(e *entry) { e.data = append([]byte("x"), e.data[1:]...) })...), "it is damaged"},
		{"a blob that links to another", makeTar(t, change(good, layer, func(e *entry) {
			*e = entry{name: layer, kind: tar.TypeLink, link: blobName(img.ConfigData)}
		})...), "is a link to a file with digest"},
		{"a name above", with(entry{name: "../escaped", data: []byte("x")}), `"../escaped" leaves the archive`},
		{"an absolute name", with(entry{name: "/escaped", data: []byte("x")}), "leaves the archive"},
		{"a name that climbs", with(entry{name: "a/b/../../../escaped", data: []byte("x")}), "leaves the archive"},
		{"a link out", with(entry{name: "a/link", kind: tar.TypeSymlink, link: "../../escaped"}), "leaves the archive"},
		{"an absolute link", with(entry{name: "link", kind: tar.TypeSymlink, link: "/etc/passwd"}), "leaves the archive"},
		{"a hard link out", with(entry{name: "link", kind: tar.TypeLink, link: "../etc/passwd"}), "leaves the archive"},
		{"a long name", with(entry{name: strings.Repeat("n", 2000)}), "a name in it has 2000 bytes"},
		{"two index.json", with(entry{name: "./index.json", data: []byte("{}")}), "two files index.json"},
		{"two different files", with(entry{name: "a", data: []byte("x")}, entry{name: "a", data: []byte("y")}), "two different files"},
		{"a file and a link", with(entry{name: "a", data: []byte("x")}, entry{name: "a", kind: tar.TypeLink, link: "b"}), "two different files"},
		{"a large index.json", makeTar(t, change(good, "index.json", func(e *entry) { e.data = make([]byte, 5<<20) })...), "at most 4194304 are read"},
		{"no index.json", makeTar(t, slices.DeleteFunc(slices.Clone(good), func(e entry) bool { return e.name == "index.json" })...), "without index.json"},
		{"an index.json of garbage", makeTar(t, change(good, "index.json", func(e *entry) { e.data = []byte("{") })...), "decode index.json"},
		{"a layout to come", makeTar(t, change(good, "oci-layout", func(e *entry) { e.data = []byte(`{"imageLayoutVersion":"2.0.0"}`) })...), `version "2.0.0"`},
		{"no images", makeTar(t, layout(t, indexOf())...), "it names no image"},
		{"no docker images", makeTar(t, entry{name: "manifest.json", data: []byte("[]")}), "it names no image"},
		{"a manifest that is missing", makeTar(t, layout(t, indexOf(img.Descriptor()))...), "which is missing"},
		{"a manifest of another size", index(wrong), "it says"},
		{"a hostile digest", index(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: "sha256:../../../etc/passwd"}), "invalid checksum digest"},
		{"a manifest that is an index", index(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: img.Digest(), Size: int64(len(img.ManifestData))}), "is of media type"},
		{"a manifest that is a layer", index(ocispec.Descriptor{Digest: img.Layers[0].DiffID(), Size: int64(len(img.Layers[0].Plain))}), "decode manifest"},
		{"a manifest that is a configuration", index(ocispec.Descriptor{Digest: img.ID(), Size: int64(len(img.ConfigData))}), "neither the manifest nor the index"},
		{"a manifest and index at once", makeTar(t, layout(t, indexOf(ocispec.Descriptor{Digest: digest.FromBytes(twofold), Size: int64(len(twofold))}),
			blobs(twofold)...)...), "a manifest and an index at once"},
		{"a bad name", index(annotated(img.Descriptor(), "io.containerd.image.name", "UPPER CASE")), `image name "UPPER CASE"`},
		{"a manifest.json of garbage", makeTar(t, entry{name: "manifest.json", data: []byte("{}")}), "decode manifest.json"},
		{"no configuration", docker(item{Config: "nope"}), `the configuration "nope", which is missing`},
		{"no layer", docker(item{Config: "c", Layers: []string{"l", "../l"}}), `the layer "../l" of image "c", which is missing`},
		{"a bad tag", docker(item{Config: "c", RepoTags: []string{"<none>:<none>"}}), `image name "<none>:<none>"`},
		{"many layers", docker(item{Config: "c", Layers: slices.Repeat([]string{"l"}, 501)}), "501 layers"},
		{"links in a circle", makeTar(t, entry{name: "manifest.json", data: toJSON(t, []item{{Config: "c"}})},
			entry{name: "c", kind: tar.TypeSymlink, link: "d"}, entry{name: "d", kind: tar.TypeSymlink, link: "c"}), "which is missing"},
	} {
		t.Run(tc.what, func(t *testing.T) {
			parent := t.TempDir()
			dir := filepath.Join(parent, "dir")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			_, err := archive.Read(t.Context(), bytes.NewReader(tc.data), dir, generous)
			if !errors.Is(err, archive.ErrInvalid) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an ErrInvalid with %q", err, tc.want)
			}
			if files, err := os.ReadDir(parent); err != nil || len(files) != 1 {
				t.Errorf("beside the directory: %v, %v", files, err)
			}
		})
	}
}

// Wherever a stream is cut off, that is seen, and it is the archive's fault.
func TestReadTruncated(t *testing.T) {
	img := testImage(t, ocispec.MediaTypeImageLayerGzip, "one")
	plain := write(t, archive.Docker, source(img, busybox))
	for what, data := range map[string][]byte{"plain": plain, "gzip": gzipped(t, plain), "zstd": zstandard(t, plain)} {
		read(t, data)
		for n := 0; n < len(data); n += 1 + len(data)/300 {
			checkTruncated(t, what, data[:n])
		}
		checkTruncated(t, what, data[:len(data)-1])
	}
	for n := 0; n < len(plain); n += 512 { // between entries too
		checkTruncated(t, "plain", plain[:n])
	}
}

func checkTruncated(t *testing.T, what string, data []byte) {
	t.Helper()
	dir := t.TempDir()
	_, err := archive.Read(t.Context(), bytes.NewReader(data), dir, generous)
	if !errors.Is(err, archive.ErrInvalid) {
		t.Errorf("%s of %d bytes: %v", what, len(data), err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}

func TestReadErrorsOfOthers(t *testing.T) {
	data := write(t, archive.OCI, source(testImage(t, ocispec.MediaTypeImageLayer, "one"), busybox))
	broken := errors.New("the pipe broke")
	for what, data := range map[string][]byte{"plain": data, "gzip": gzipped(t, data), "zstd": zstandard(t, data)} {
		for _, n := range []int{0, 3, len(data) / 2} {
			in := &failing{data: data[:n], err: broken}
			if _, err := archive.Read(t.Context(), in, t.TempDir(), generous); !errors.Is(err, broken) || errors.Is(err, archive.ErrInvalid) {
				t.Errorf("%s, stream that breaks after %d bytes: %v", what, n, err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := archive.Read(ctx, bytes.NewReader(data), t.TempDir(), generous); !errors.Is(err, context.Canceled) || errors.Is(err, archive.ErrInvalid) {
		t.Errorf("canceled: %v", err)
	}
	_, err := archive.Read(t.Context(), bytes.NewReader(data), filepath.Join(t.TempDir(), "nope"), generous)
	if !errors.Is(err, os.ErrNotExist) || errors.Is(err, archive.ErrInvalid) {
		t.Errorf("no directory: %v", err)
	}
}

type failing struct {
	data []byte
	err  error
}

func (f *failing) Read(p []byte) (int, error) {
	if len(f.data) == 0 {
		return 0, f.err
	}
	n := copy(p, f.data)
	f.data = f.data[n:]
	return n, nil
}
