package layertar

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"
)

// Rebuild writes the tar that Capture has seen, with the content of the files in dir. Nothing is opened outside of dir,
// and no symbolic link followed. ErrDamaged, with its name: a file is missing, is no regular file, or has another size
// or checksum; w has got a part of the tar then. ErrMetadata: meta is not what Capture wrote. A checksum finds
// damage, not forgery: who must know compares the digest of what was written with the diffID of the layer.
func Rebuild(meta io.Reader, dir string, w io.Writer) error {
	entries, err := openMeta(meta)
	if err != nil {
		return err
	}
	defer entries.Close()
	root, err := openTree(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	out := bufio.NewWriterSize(w, blockSize)
	buf := make([]byte, blockSize)
	for {
		entry, err := entries.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		switch entry.Type {
		case storage.SegmentType:
			_, err = out.Write(entry.Payload)
		case storage.FileType:
			err = rebuildFile(root, entry, out, buf)
		}
		if err != nil {
			return fmt.Errorf("write tar: %w", err)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write tar: %w", err)
	}
	return nil
}

func rebuildFile(root *tree, entry *storage.Entry, w io.Writer, buf []byte) error {
	if entry.Size == 0 {
		return nil
	}
	name := clean(entry.GetName())
	damaged := func(format string, args ...any) error {
		return fmt.Errorf("%w: file %q %s", ErrDamaged, name, fmt.Sprintf(format, args...))
	}
	node, err := root.lookup(name)
	if isMissing(err) {
		return damaged("is missing")
	}
	if err != nil {
		return err
	}
	defer node.Close()
	if node.Mode&unix.S_IFMT != unix.S_IFREG {
		return damaged("is no regular file")
	}
	if node.Size != entry.Size {
		return damaged("has %d bytes, the tar %d", node.Size, entry.Size)
	}
	file, err := node.open()
	if err != nil {
		return err
	}
	defer file.Close()
	sum := newSum()
	n, err := io.CopyBuffer(io.MultiWriter(w, sum), io.LimitReader(plainReader{file}, entry.Size), buf)
	if err != nil {
		return fmt.Errorf("copy %q: %w", name, err)
	}
	if n != entry.Size || string(sum.Sum(nil)) != string(entry.Payload) {
		return damaged("has other content than the tar")
	}
	return nil
}

// plainReader hides what else a file can do, so that copying uses the buffer at hand.
type plainReader struct{ file *os.File }

func (r plainReader) Read(p []byte) (int, error) { return r.file.Read(p) }

// metaReader reads what Capture wrote.
type metaReader struct {
	zr     *zstd.Decoder
	packed *json.Decoder // of storage.Entry, as storage.NewJSONUnpacker reads it, which remembers all names besides
}

func openMeta(r io.Reader) (*metaReader, error) {
	zr, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(1<<20))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMetadata, err)
	}
	return &metaReader{zr: zr, packed: json.NewDecoder(zr)}, nil
}

// Next returns io.EOF, unwrapped, at the end.
func (m *metaReader) Next() (*storage.Entry, error) {
	entry := new(storage.Entry)
	err := m.packed.Decode(entry)
	if errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	if err == nil && (entry.Size < 0 || entry.Type != storage.FileType && entry.Type != storage.SegmentType) {
		err = errors.New("unknown entry")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMetadata, err)
	}
	return entry, nil
}

func (m *metaReader) Close() { m.zr.Close() }
