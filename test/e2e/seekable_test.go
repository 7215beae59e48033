package e2e

import (
	"archive/tar"
	"bytes"
	endian "encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/imagesvc/registry/registrytest"
)

// TestSeekableLayers runs images whose layers are made for lazy pulling: they are gzip and zstd all the same.
func TestSeekableLayers(t *testing.T) {
	plain := busyboxTar(t)
	server := registrytest.Start(t, registrytest.Options{})
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	for name, made := range map[string]struct {
		layer registrytest.Layer
		files string
	}{
		"estargz":      {estargz(t, plain), "/.no.prefetch.landmark /stargz.index.json"},
		"zstd-chunked": {zstdChunked(t, plain), ""},
	} {
		n.sub(name, func(t *testing.T) {
			img := registrytest.NewImage(runtime.GOARCH, made.layer)
			server.Push(t, "team/"+name, "v1", img)
			c := shell(name, "id -un; ls /.no* /stargz* 2>/dev/null | xargs; cat /etc/passwd", func(c *runtimeapi.ContainerConfig) {
				c.Image.Image = server.Host + "/team/" + name + ":v1"
			})
			out, code := n.output(podID, pod, c)
			first, rest, _ := strings.Cut(out, "\n")
			files, passwd, _ := strings.Cut(rest, "\n")
			if code != 0 || first != "root" || files != made.files || !strings.HasPrefix(passwd, "root:x:0:0:") {
				t.Errorf("exit code %d, out %q", code, out)
			}
			// The layer as it came is not kept, and can be made again.
			if out := n.image("check"); !strings.Contains(out, "nothing is wrong") {
				t.Errorf("check: %s", out)
			}
			n.image("push", c.Image.Image, server.Host+"/again/"+name+":v1")
			if got := manifestOf(t, server.Host, "again/"+name, "v1"); got.Layers[0].Digest != made.layer.DiffID() && got.Layers[0].Digest != img.Manifest.Layers[0].Digest {
				t.Errorf("pushed on as %+v", got.Layers[0])
			}
		})
	}
}

// fetchFrom asks a registry over plain HTTP.
func fetchFrom(t *testing.T, host, path string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+host+"/v2/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", ocispec.MediaTypeImageManifest)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", path, resp.Status, err)
	}
	return data
}

func manifestOf(t *testing.T, host, repository, tag string) (m ocispec.Manifest) {
	t.Helper()
	if err := json.Unmarshal(fetchFrom(t, host, repository+"/manifests/"+tag), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// busyboxTar is the first layer of the busybox image.
func busyboxTar(t *testing.T) []byte {
	t.Helper()
	m := manifestOf(t, registryAddr, "library/busybox", "latest")
	r, err := gzip.NewReader(bytes.NewReader(fetchFrom(t, registryAddr, "library/busybox/blobs/"+m.Layers[0].Digest.String())))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

// tocEntry is an entry of the table of contents that both forms have.
type tocEntry struct {
	Name        string    `json:"name"`
	Type        string    `json:"type"`
	Size        int64     `json:"size,omitempty"`
	LinkName    string    `json:"linkName,omitempty"`
	Mode        int64     `json:"mode"`
	UID         int       `json:"uid"`
	GID         int       `json:"gid"`
	ModTime     time.Time `json:"modtime"`
	Digest      string    `json:"digest,omitempty"`
	Offset      int64     `json:"offset,omitempty"`
	EndOffset   int64     `json:"endOffset,omitempty"`
	ChunkDigest string    `json:"chunkDigest,omitempty"`
}

// piece is a part of a tar that is compressed by itself, and the file that it has, if any.
type piece struct {
	data []byte
	file *tocEntry
}

// pieces cuts a tar before and behind the content of each file that is not empty, and leaves out its end.
func pieces(t *testing.T, plain []byte) (out []piece, toc []*tocEntry, end []byte) {
	t.Helper()
	r := bytes.NewReader(plain)
	archive := tar.NewReader(r)
	done := 0
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		begin := len(plain) - r.Len()
		kind := map[byte]string{tar.TypeReg: "reg", tar.TypeDir: "dir", tar.TypeLink: "hardlink", tar.TypeSymlink: "symlink"}[h.Typeflag]
		if kind == "" {
			t.Fatalf("%s: type %q", h.Name, h.Typeflag)
		}
		entry := &tocEntry{Name: h.Name, Type: kind, Size: h.Size, LinkName: h.Linkname, Mode: h.Mode, UID: h.Uid, GID: h.Gid, ModTime: h.ModTime}
		toc = append(toc, entry)
		if h.Size == 0 {
			continue
		}
		content := plain[begin : begin+int(h.Size)]
		entry.Digest = digest.FromBytes(content).String()
		entry.ChunkDigest = entry.Digest
		out = append(out, piece{plain[done:begin], nil}, piece{content, entry})
		done = begin + int(h.Size)
	}
	// The end is two blocks of zeros at least (POSIX, pax, "ustar Interchange Format").
	trimmed := len(bytes.TrimRight(plain, "\x00"))
	cut := max(done+(512-done%512)%512, trimmed+(512-trimmed%512)%512)
	return append(out, piece{plain[done:cut], nil}), toc, plain[cut:]
}

// estargz makes a layer of a tar (stargz-snapshotter, docs/estargz.md): a gzip member for each file, one for the table of contents,
// which is a file of the tar, and a footer that tells where that is.
func estargz(t *testing.T, plain []byte) registrytest.Layer {
	t.Helper()
	var landmark bytes.Buffer
	w := tar.NewWriter(&landmark)
	if err := w.WriteHeader(&tar.Header{Name: ".no.prefetch.landmark", Mode: 0o644, Size: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte{0xf}); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	plain = append(landmark.Bytes(), plain...)
	parts, toc, _ := pieces(t, plain)
	var blob, whole bytes.Buffer
	for _, p := range parts {
		if p.file != nil {
			p.file.Offset = int64(blob.Len())
		}
		member(t, &blob, p.data)
		whole.Write(p.data)
	}
	index, err := json.Marshal(map[string]any{"version": 1, "entries": toc})
	if err != nil {
		t.Fatal(err)
	}
	var last bytes.Buffer
	w = tar.NewWriter(&last)
	if err := w.WriteHeader(&tar.Header{Name: "stargz.index.json", Typeflag: tar.TypeReg, Size: int64(len(index))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(index); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	offset := blob.Len()
	member(t, &blob, last.Bytes())
	whole.Write(last.Bytes())
	// An empty member with an extra field (RFC 1952, 2.3.1.1), 51 bytes: the content is one stored block.
	blob.WriteString("\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x1a\x00SG\x16\x00")
	fmt.Fprintf(&blob, "%016xSTARGZ", offset)
	blob.WriteString("\x01\x00\x00\xff\xff")
	_ = endian.Write(&blob, endian.LittleEndian, [2]uint32{crc32.ChecksumIEEE(nil), 0})
	return registrytest.Layer{
		MediaType: ocispec.MediaTypeImageLayerGzip, Plain: whole.Bytes(), Blob: blob.Bytes(),
		Annotations: map[string]string{"containerd.io/snapshot/stargz/toc.digest": digest.FromBytes(index).String()},
	}
}

func member(t *testing.T, w io.Writer, data []byte) {
	t.Helper()
	gz := gzip.NewWriter(w)
	if _, err := gz.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
}

// zstdChunked makes a layer of a tar as containers/storage has it: a zstd frame for each file, and in skippable frames (RFC 8878, 3.1.2)
// the table of contents, the parts of the tar that are no files, and a footer that tells where those are.
func zstdChunked(t *testing.T, plain []byte) registrytest.Layer {
	t.Helper()
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer encoder.Close()
	parts, toc, end := pieces(t, plain)
	var blob []byte
	var split []map[string]any // tar-split's form, which nobody here reads
	for _, p := range append(parts, piece{end, nil}) {
		if p.file == nil {
			split = append(split, map[string]any{"type": 2, "payload": p.data})
			blob = encoder.EncodeAll(p.data, blob)
			continue
		}
		split = append(split, map[string]any{"type": 1, "name": p.file.Name, "size": p.file.Size})
		p.file.Offset = int64(len(blob))
		blob = encoder.EncodeAll(p.data, blob)
		p.file.EndOffset = int64(len(blob))
	}
	skippable := func(data []byte) (offset uint64) {
		blob = endian.LittleEndian.AppendUint32(blob, 0x184D2A50)
		blob = endian.LittleEndian.AppendUint32(blob, uint32(len(data)))
		offset = uint64(len(blob))
		blob = append(blob, data...)
		return offset
	}
	var footer []byte
	annotations := map[string]string{}
	for name, v := range map[string]any{"manifest": map[string]any{"version": 1, "entries": toc}, "tarsplit": split} {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		packed := encoder.EncodeAll(data, nil)
		position := []uint64{skippable(packed), uint64(len(packed)), uint64(len(data))}
		text := fmt.Sprintf("%d:%d:%d", position[0], position[1], position[2])
		var fields []byte
		for _, n := range position {
			fields = endian.LittleEndian.AppendUint64(fields, n)
		}
		if name == "manifest" {
			fields = endian.LittleEndian.AppendUint64(fields, 1) // the type
			text += ":1"
			footer = append(fields, footer...)
			annotations["io.github.containers.zstd-chunked.manifest-checksum"] = digest.FromBytes(packed).String()
		} else {
			footer = append(footer, fields...)
		}
		annotations["io.github.containers.zstd-chunked."+name+"-position"] = text
	}
	skippable(append(footer, "GNUlInUx"...))
	return registrytest.Layer{MediaType: ocispec.MediaTypeImageLayerZstd, Plain: plain, Blob: blob, Annotations: annotations}
}
