package e2e

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/imagesvc/registry/registrytest"
)

// bombSize is what the bombs have uncompressed.
const bombSize = 10 << 30

// gzipped is a member of a gzip stream. Any number of them is a stream (RFC 1952, 2.2), so that a bomb is made of a fuse and
// many times the same charge.
func gzipped(t *testing.T, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(plain)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// bomb is a layer of a tar's beginning and 10 GiB of zeros. Nobody shall get as far as its diffID.
func bomb(t *testing.T, begin []byte) registrytest.Layer {
	t.Helper()
	const charge = 32 << 20
	blob := gzipped(t, begin)
	blob = append(blob, bytes.Repeat(gzipped(t, make([]byte, charge)), bombSize/charge)...)
	return registrytest.Layer{MediaType: ocispec.MediaTypeImageLayerGzip, Plain: []byte("never read to its end"), Blob: blob}
}

// tarHead is the header of a file of which the content is still to come.
func tarHead(t *testing.T, name string, size int64) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := tar.NewWriter(&out).WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Format: tar.FormatGNU}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// sparseLayer is a file of nothing but a hole, as GNU tar writes it.
func sparseLayer(t *testing.T, format string, size int64) registrytest.Layer {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hole"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "hole"), size); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "layer.tar")
	run(t, "tar", "-C", dir, "--sparse", "--format="+format, "-cf", file, "hole")
	plain := readAll(t, file)
	if len(plain) > 1<<20 {
		t.Fatalf("tar has written %d bytes: it found no hole", len(plain))
	}
	return registrytest.Layer{MediaType: ocispec.MediaTypeImageLayerGzip, Plain: plain, Blob: gzipped(t, plain)}
}

// TestBombs pulls layers that are small until they are unpacked, onto a small disk: under the limits of a node that nobody has
// configured, and under such as an operator sets. The store is as before, and what runs goes on.
func TestBombs(t *testing.T) {
	r := registrytest.Start(t, registrytest.Options{})
	zeros := bomb(t, tarHead(t, "zeros", bombSize))
	images := map[string]registrytest.Layer{
		"zeros":      zeros,
		"trailing":   bomb(t, tarLayer(t, tarFile("small")).Plain), // behind the tar's end
		"sparse":     sparseLayer(t, "gnu", bombSize),
		"sparse-pax": sparseLayer(t, "posix", bombSize),
		"sparse-3g":  sparseLayer(t, "posix", 3<<30),
	}
	whole := registrytest.NewLayer(t, ocispec.MediaTypeImageLayerGzip, map[string][]byte{"whole": []byte("a layer that is in order")})
	for name, layer := range images {
		r.Push(t, "bomb/"+name, "v1", registrytest.NewImage(runtime.GOARCH, whole, layer))
	}
	archive := filepath.Join(t.TempDir(), "bomb.tar.gz")
	layout := bomb(t, tarHead(t, "blobs/sha256/"+digest.FromString("zeros").Encoded(), bombSize))
	if err := os.WriteFile(archive, layout.Blob, 0o600); err != nil {
		t.Fatal(err)
	}
	small := checkedImage(t, "small", 1, 64)
	full := outcome{[]codes.Code{codes.ResourceExhausted, codes.Unknown}, []string{"no space left on device"}}
	invalid := []codes.Code{codes.InvalidArgument}
	for _, of := range []struct {
		name, config string
		rows         map[string]outcome
	}{
		{"defaults", "", map[string]outcome{
			"zeros":      full,
			"sparse":     {invalid, []string{"sparse"}},
			"sparse-pax": {invalid, []string{"sparse"}},
			"sparse-3g":  full,
		}},
		{"limit", "max_layer_size = \"1GiB\"\n", map[string]outcome{
			"zeros":      {invalid, []string{"image.max_layer_size"}},
			"trailing":   {invalid, []string{"image.max_layer_size"}},
			"sparse":     {invalid, nil},
			"sparse-pax": {invalid, nil},
			"sparse-3g":  {invalid, []string{"image.max_layer_size"}},
		}},
	} {
		t.Run(of.name, func(t *testing.T) {
			n := newStoppedNode(t, "[image]\nkeep_downloads = \"0s\"\n"+of.config)
			root := mountRoot(t, n, 256)
			n.serve()
			n.pull(small)
			check := newChecker(n)
			lives := n.run(check.podID, check.pod, shell("lives", "", func(c *runtimeapi.ContainerConfig) {
				c.Image.Image, c.Command = small, []string{"/bin/busybox", "sleep", "1000"}
				c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
			}))
			n.collect()
			files, visible := n.stored(), n.visible()
			free, inodes := freeOf(t, root)
			for name, want := range of.rows {
				t.Run(name, func(t *testing.T) {
					n.try(t, files, r.Host+"/bomb/"+name+":v1", nil, want)
					if now := n.visible(); !slices.Equal(now, visible) {
						t.Errorf("images are %v, were %v", now, visible)
					}
					if st := n.status(lives); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
						t.Errorf("a container that ran is %s", st.State)
					}
				})
				n.wantFree(root, free, inodes)
			}
			t.Run("import", func(t *testing.T) {
				out, err := n.tryImage(archive, "import", "-")
				if err == nil || !strings.Contains(err.Error(), "no space left on device") {
					t.Errorf("import of a bomb: %v %s", err, out)
				}
				n.wantStored(files)
			})
			n.wantFree(root, free, inodes)
			check.whole(small)
			if out := n.image("check"); !strings.Contains(out, "nothing is wrong") {
				t.Errorf("check: %s", out)
			}
		})
	}
}
