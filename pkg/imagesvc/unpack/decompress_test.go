package unpack

import (
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	blob, err := gzipStream(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

func gzipStream(r io.Reader) ([]byte, error) {
	var buf bytes.Buffer
	w := stdgzip.NewWriter(&buf)
	_, err := io.Copy(w, r)
	err = errors.Join(err, w.Close())
	return buf.Bytes(), err
}

func zstded(t testing.TB, data []byte, options ...zstd.EOption) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf, options...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func decompress(mediaType string, data []byte) ([]byte, error) {
	r, err := Decompress(context.Background(), mediaType, bytes.NewReader(data), Limits{})
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(r)
	return out, errors.Join(err, r.Close())
}

func TestDecompress(t *testing.T) {
	const oci = "application/vnd.oci.image.layer.v1.tar"
	plain := makeTar(t, file("f", strings.Repeat("content ", 10_000)))
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'}, zstded(t, plain)...)
	twice := append(gzipped(t, plain[:1000]), gzipped(t, plain[1000:])...)
	for name, test := range map[string]struct {
		mediaType string
		blob      []byte
	}{
		"plain":                 {oci, plain},
		"gzip":                  {oci + "+gzip", gzipped(t, plain)},
		"zstd":                  {oci + "+zstd", zstded(t, plain)},
		"docker":                {"application/vnd.docker.image.rootfs.diff.tar.gzip", gzipped(t, plain)},
		"no media type":         {"", zstded(t, plain)},
		"gzip members":          {oci + "+gzip", twice},
		"zstd skippable frame":  {oci + "+zstd", skippable},
		"gzip called plain":     {oci, gzipped(t, plain)},
		"plain called gzip":     {oci + "+gzip", plain},
		"zstd called gzip":      {oci + "+gzip", zstded(t, plain)},
		"window of 128 MiB":     {oci + "+zstd", zstded(t, plain, zstd.WithWindowSize(128<<20))},
		"media type parameters": {oci + "; charset=utf-8", plain},
	} {
		got, err := decompress(test.mediaType, test.blob)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(plain))
		}
	}
	if got, err := decompress(oci, nil); err != nil || len(got) != 0 {
		t.Errorf("empty blob: %d bytes, %v", len(got), err)
	}
}

func TestDecompressRefuses(t *testing.T) {
	for _, mediaType := range []string{
		"application/vnd.oci.image.config.v1+json",
		"application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
		"application/vnd.in-toto+json",
		"text/plain",
	} {
		if _, err := Decompress(context.Background(), mediaType, strings.NewReader(""), Limits{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want %v", mediaType, err, ErrInvalid)
		}
	}
	plain := makeTar(t, file("f", strings.Repeat("content ", 10_000)))
	for name, blob := range map[string][]byte{"gzip": gzipped(t, plain), "zstd": zstded(t, plain)} {
		if _, err := decompress("", blob[:len(blob)-10]); err == nil {
			t.Errorf("%s cut short is read without error", name)
		}
		broken := bytes.Clone(blob)
		broken[len(broken)/2] ^= 0xff
		if _, err := decompress("", broken); err == nil {
			t.Errorf("%s with a flipped byte is read without error", name)
		}
	}
	// Frame header: single segment off, window descriptor for 1 GiB (RFC 8878, 3.1.1.1.2), one raw block.
	huge := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3, 0x09, 0x00, 0x00, 'x'}
	if _, err := decompress("", huge); err == nil {
		t.Error("zstd with a window of 1 GiB is accepted")
	}
	huge[5] = 10 << 3 // 1 MiB: the frame is otherwise sound
	if got, err := decompress("", huge); err != nil || string(got) != "x" {
		t.Errorf("zstd with a window of 1 MiB: %q, %v", got, err)
	}
}

func TestDecompressPassesReadErrors(t *testing.T) {
	broken := errors.New("connection reset")
	_, err := Decompress(context.Background(), "", io.MultiReader(strings.NewReader("x"), readerFunc(func([]byte) (int, error) { return 0, broken })), Limits{})
	if !errors.Is(err, broken) {
		t.Errorf("error %v, want %v", err, broken)
	}
}
