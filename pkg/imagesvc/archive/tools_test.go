package archive_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/archive"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// tool runs one of those that hack/deps.sh installs.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%v: hack/deps.sh installs it", err)
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func skopeo(t *testing.T, from, to string, more ...string) {
	t.Helper()
	tool(t, "skopeo", append(append([]string{"--insecure-policy", "copy"}, more...), from, to)...)
}

func save(t *testing.T, data []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "archive.tar")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func load(t *testing.T, name string) *archive.Archive {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, data)
}

// dirManifest reads the manifest of what skopeo copied to a directory, and checks that the image's configuration is there.
func dirManifest(t *testing.T, dir string, img *registrytest.Image) (ocispec.Manifest, []byte) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(dir, img.ID().Encoded()))
	if err != nil || !bytes.Equal(config, img.ConfigData) {
		t.Errorf("skopeo copied the configuration %s, %v", config, err)
	}
	return m, data
}

// Skopeo reads what is written, in both forms, and layers of all kinds.
func TestSkopeoReadsOCI(t *testing.T) {
	for _, mediaType := range []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd} {
		img := testImage(t, mediaType, "one")
		name := save(t, write(t, archive.OCI, source(img, "quay.io/a/b:v1")))
		for _, ref := range []string{"", ":v1"} {
			dir := filepath.Join(t.TempDir(), "copy")
			skopeo(t, "oci-archive:"+name+ref, "dir:"+dir, "--preserve-digests")
			if _, data := dirManifest(t, dir, img); !bytes.Equal(data, img.ManifestData) {
				t.Errorf("%s %s: skopeo copied the manifest %s", mediaType, ref, data)
			}
		}
	}
}

func TestSkopeoReadsSchema2(t *testing.T) {
	img := testImage(t, registrytest.DockerLayer, "one")
	img.Manifest.MediaType, img.Manifest.Config.MediaType = registrytest.DockerManifest, registrytest.DockerConfig
	img.Seal()
	for _, format := range formats {
		data := write(t, format, source(img, "quay.io/a/b:v1"))
		dir := filepath.Join(t.TempDir(), "copy")
		skopeo(t, "oci-archive:"+save(t, data), "dir:"+dir, "--preserve-digests")
		if _, copied := dirManifest(t, dir, img); !bytes.Equal(copied, img.ManifestData) {
			t.Errorf("%s: skopeo copied the manifest %s", format, copied)
		}
		a := read(t, data)
		if got := only(t, a); got.Root.MediaType != registrytest.DockerManifest || got.Root.Digest != img.Digest() {
			t.Errorf("%s: got %+v", format, got)
		}
		checkWhole(t, a, only(t, a))
	}
}

func TestSkopeoReadsDocker(t *testing.T) {
	for _, mediaType := range []string{ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip} {
		one, two := testImage(t, mediaType, "one"), testImage(t, mediaType, "two")
		name := save(t, write(t, archive.Docker, source(one, busybox), source(two, "quay.io/a/b:v1", "quay.io/a/b:v2")))
		for ref, img := range map[string]*registrytest.Image{"busybox:latest": one, "quay.io/a/b:v2": two, "@1": two} {
			dir := filepath.Join(t.TempDir(), "copy")
			skopeo(t, "docker-archive:"+name+":"+ref, "dir:"+dir)
			m, _ := dirManifest(t, dir, img)
			for i, l := range m.Layers { // which skopeo unpacks, and may compress again
				if data, err := os.ReadFile(filepath.Join(dir, l.Digest.Encoded())); err != nil || int64(len(data)) != l.Size || len(m.Layers) != len(img.Layers) {
					t.Errorf("%s: layer %d: %v", ref, i, err)
				}
			}
		}
	}
}

func TestReadSkopeo(t *testing.T) {
	img := testImage(t, ocispec.MediaTypeImageLayerGzip, "one")
	from := "oci-archive:" + save(t, write(t, archive.OCI, source(img, busybox)))
	for _, tc := range []struct {
		to   string
		want archive.Image
	}{
		{"oci-archive:FILE", archive.Image{}},
		{"oci-archive:FILE:v1", archive.Image{Tag: "v1"}},
		{"oci-archive:FILE:quay.io/a/b:v1", archive.Image{Names: []string{"quay.io/a/b:v1"}}},
		{"docker-archive:FILE", archive.Image{}},
		{"docker-archive:FILE:busybox:latest", archive.Image{Names: []string{busybox}}},
	} {
		file := filepath.Join(t.TempDir(), "archive.tar")
		skopeo(t, from, strings.ReplaceAll(tc.to, "FILE", file))
		a := load(t, file)
		got := only(t, a)
		if !slices.Equal(got.Names, tc.want.Names) || got.Tag != tc.want.Tag {
			t.Errorf("%s: got %+v, want %+v", tc.to, got, tc.want)
		}
		m := checkWhole(t, a, got)
		if m.Config.Digest != img.ID() || len(m.Layers) != 2 {
			t.Errorf("%s: got manifest %+v", tc.to, m)
		}
		if strings.HasPrefix(tc.to, "docker") && m.Layers[1].Digest != img.Layers[1].DiffID() {
			t.Errorf("%s: layer %+v is not %s", tc.to, m.Layers[1], img.Layers[1].DiffID())
		}
		// And back.
		dir := filepath.Join(t.TempDir(), "copy")
		skopeo(t, strings.ReplaceAll(tc.to, "FILE", file), "dir:"+dir)
		dirManifest(t, dir, img)
	}
}

// What GNU tar makes of a layout that umoci wrote, and what umoci sees of one that is written here.
func TestUmoci(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	tool(t, "umoci", "init", "--layout", dir)
	tool(t, "umoci", "new", "--image", dir+":v1")
	tool(t, "umoci", "tag", "--image", dir+":v1", "v2")
	for _, how := range [][]string{{"-cf"}, {"-czf"}, {"--format=posix", "-cf"}, {"--format=v7", "-cf"}} {
		file := filepath.Join(t.TempDir(), "archive.tar")
		tool(t, "tar", append(append([]string{"-C", dir}, how...), file, ".")...)
		a := load(t, file)
		if got := only(t, a); got.Tag == "" || len(got.Names) > 0 {
			t.Errorf("%v: got %+v", how, got)
		}
		checkWhole(t, a, only(t, a))
	}
	img := testImage(t, ocispec.MediaTypeImageLayerGzip, "one")
	unpacked := t.TempDir()
	tool(t, "tar", "-C", unpacked, "-xf", save(t, write(t, archive.OCI, source(img, "quay.io/a/b:v1"))))
	if out := tool(t, "umoci", "list", "--layout", unpacked); strings.TrimSpace(out) != "v1" {
		t.Errorf("umoci lists %q", out)
	}
	tool(t, "umoci", "raw", "unpack", "--rootless", "--image", unpacked+":v1", filepath.Join(t.TempDir(), "rootfs"))
}

// GNU tar finds holes in blobs, and writes them as such in forms of its own.
func TestReadSparse(t *testing.T) {
	img := registrytest.NewImage("amd64", registrytest.NewLayer(t, ocispec.MediaTypeImageLayer, map[string][]byte{
		"a": []byte("a"), "hole": make([]byte, 2<<20), "z": []byte("z")}))
	dir, holes := t.TempDir(), filepath.Join(t.TempDir(), "holes")
	tool(t, "tar", "-C", dir, "-xf", save(t, write(t, archive.OCI, source(img, busybox))))
	tool(t, "cp", "-r", "--sparse=always", dir, holes)
	for _, format := range []string{"gnu", "posix"} {
		file := filepath.Join(t.TempDir(), "archive.tar")
		tool(t, "tar", "-C", holes, "--sparse", "--hole-detection=raw", "--format="+format, "-cf", file, ".")
		if info, err := os.Stat(file); err != nil || info.Size() > 1<<20 {
			t.Fatalf("tar wrote no holes: %d bytes, %v", info.Size(), err)
		}
		a := load(t, file)
		checkWhole(t, a, only(t, a))
	}
}
