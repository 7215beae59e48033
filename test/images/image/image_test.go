package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var files = []File{
	Dir("etc", 0o755),
	{Path: "etc/motd", Mode: 0o4644, UID: 7, GID: 8, Body: []byte("hello\n"), Xattrs: map[string]string{"user.k": "v\x00"}},
	Hardlink("etc/same", "etc/motd"),
	Symlink("etc/link", "motd"),
	Whiteout("etc", "gone"),
	Opaque("etc"),
	{Path: "dev/null", Type: tar.TypeChar, Mode: 0o666, Major: 1, Minor: 3},
}

func unpack(t *testing.T, mediaType string, data []byte) []byte {
	t.Helper()
	var r io.Reader = bytes.NewReader(data)
	var err error
	switch mediaType {
	case v1.MediaTypeImageLayerGzip, dockerLayer:
		r, err = gzip.NewReader(r)
	case v1.MediaTypeImageLayerZstd:
		r, err = zstd.NewReader(r)
	}
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

func TestImageIsConsistent(t *testing.T) {
	for name, s := range map[string]struct {
		compression Compression
		docker      bool
		layerType   string
	}{
		"gzip":   {Gzip, false, v1.MediaTypeImageLayerGzip},
		"zstd":   {Zstd, false, v1.MediaTypeImageLayerZstd},
		"none":   {None, false, v1.MediaTypeImageLayer},
		"docker": {Gzip, true, dockerLayer},
	} {
		t.Run(name, func(t *testing.T) {
			build := func() *Image {
				l, err := NewLayer(s.compression, files...)
				if err != nil {
					t.Fatal(err)
				}
				img, err := New(Spec{Layers: []*Layer{l}, Docker: s.docker, Config: v1.ImageConfig{User: "7"}})
				if err != nil {
					t.Fatal(err)
				}
				return img
			}
			img := build()
			if again := build(); again.Root.Digest != img.Root.Digest {
				t.Errorf("digest %s, and %s when built again", img.Root.Digest, again.Root.Digest)
			}
			var m v1.Manifest
			if err := json.Unmarshal(img.Root.Data, &m); err != nil {
				t.Fatal(err)
			}
			byDigest := map[digest.Digest][]byte{}
			for _, b := range img.Blobs {
				if digest.FromBytes(b.Data) != b.Digest || int64(len(b.Data)) != b.Size {
					t.Errorf("blob %s is not what its descriptor says", b.Digest)
				}
				byDigest[b.Digest] = b.Data
			}
			var config v1.Image
			if err := json.Unmarshal(byDigest[m.Config.Digest], &config); err != nil {
				t.Fatal(err)
			}
			if config.Config.User != "7" || config.OS != "linux" || config.Architecture == "" {
				t.Errorf("config is %+v", config)
			}
			layer := m.Layers[0]
			if layer.MediaType != s.layerType {
				t.Errorf("layer has media type %s, want %s", layer.MediaType, s.layerType)
			}
			plain := unpack(t, layer.MediaType, byDigest[layer.Digest])
			if got := digest.FromBytes(plain); got != config.RootFS.DiffIDs[0] {
				t.Errorf("layer unpacks to %s, the config says %s", got, config.RootFS.DiffIDs[0])
			}
			checkTar(t, plain)
		})
	}
}

func checkTar(t *testing.T, plain []byte) {
	t.Helper()
	got := map[string]*tar.Header{}
	for r := tar.NewReader(bytes.NewReader(plain)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(epoch) {
			t.Errorf("%s is of %s, want %s", h.Name, h.ModTime, epoch)
		}
		got[h.Name] = h
	}
	for name, ok := range map[string]func(*tar.Header) bool{
		"etc/": func(h *tar.Header) bool { return h.Typeflag == tar.TypeDir && h.Mode == 0o755 },
		"etc/motd": func(h *tar.Header) bool {
			return h.Typeflag == tar.TypeReg && h.Mode == 0o4644 && h.Uid == 7 && h.Gid == 8 && h.PAXRecords["SCHILY.xattr.user.k"] == "v\x00"
		},
		"etc/same":         func(h *tar.Header) bool { return h.Typeflag == tar.TypeLink && h.Linkname == "etc/motd" },
		"etc/link":         func(h *tar.Header) bool { return h.Typeflag == tar.TypeSymlink && h.Linkname == "motd" },
		"etc/.wh.gone":     func(h *tar.Header) bool { return h.Typeflag == tar.TypeReg && h.Size == 0 },
		"etc/.wh..wh..opq": func(h *tar.Header) bool { return h.Typeflag == tar.TypeReg && h.Size == 0 },
		"dev/null":         func(h *tar.Header) bool { return h.Typeflag == tar.TypeChar && h.Devmajor == 1 && h.Devminor == 3 },
	} {
		if h := got[name]; h == nil || !ok(h) {
			t.Errorf("entry %s is %+v", name, h)
		}
	}
}

func TestDockerRefusesOtherCompression(t *testing.T) {
	l, err := NewLayer(Zstd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(Spec{Layers: []*Layer{l}, Docker: true}); err == nil {
		t.Error("made a schema 2 image with a zstd layer, which no client could name")
	}
}
