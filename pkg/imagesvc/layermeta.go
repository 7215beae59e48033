package imagesvc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/layertar"
	"criserver/pkg/imagesvc/verify"
	"criserver/pkg/snapshot"
)

// What is kept with a layer (snapshot.Stage.Meta) is metaMagic, the size of its tar in bytes (big endian), and what layertar
// needs to write that tar again.
const metaMagic = "criltar1"

const metaHeader = len(metaMagic) + 8

// errNoTar: the driver, or an earlier version of this program, has kept nothing to write a layer's tar from.
var errNoTar = errors.New("its tar cannot be written again: pull the image again")

// captured writes what is kept with a layer while its tar is read.
type captured struct {
	io.Reader
	file   *os.File
	size   int64
	finish func() error
}

// capture reads through r.
func capture(r io.Reader, path string) (*captured, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("keep tar metadata: %w", err)
	}
	c := &captured{file: f}
	if _, err := f.Write(make([]byte, metaHeader)); err != nil {
		return nil, errors.Join(fmt.Errorf("keep tar metadata: %w", err), f.Close())
	}
	counted := io.TeeReader(r, (*byteCounter)(&c.size))
	c.Reader, c.finish = layertar.Capture(counted, f)
	return c, nil
}

// close ends the capture. exact is false for a tar that cannot be written again.
func (c *captured) close() (exact bool, err error) {
	defer func() { err = errors.Join(err, c.file.Close()) }()
	err = c.finish()
	if errors.Is(err, layertar.ErrNotExact) {
		return false, os.Remove(c.file.Name())
	}
	if err != nil {
		return false, fmt.Errorf("keep tar metadata: %w", err)
	}
	header := binary.BigEndian.AppendUint64([]byte(metaMagic), uint64(c.size))
	if _, err := c.file.WriteAt(header, 0); err != nil {
		return false, fmt.Errorf("keep tar metadata: %w", err)
	}
	return true, nil
}

type byteCounter int64

func (n *byteCounter) Write(p []byte) (int, error) {
	*n += byteCounter(len(p))
	return len(p), nil
}

// layerTree is a committed layer on disk.
type layerTree struct {
	id        digest.Digest
	dir, meta string
}

// tree finds a layer on disk. The caller has it leased, or else it may go.
func (s *Service) tree(ctx context.Context, id digest.Digest) (layerTree, error) {
	trees, ok := s.layers.(snapshot.Trees)
	if !ok {
		return layerTree{}, fmt.Errorf("layer %s: %w", id, errNoTar)
	}
	dir, meta, err := trees.Tree(ctx, id)
	if err != nil {
		return layerTree{}, err
	}
	return layerTree{id, dir, meta}, nil
}

// openMeta opens what is kept with the layer and tells the size of its tar. errNoTar.
func (t layerTree) openMeta() (*os.File, int64, error) {
	f, err := os.Open(t.meta)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("layer %s: %w", t.id, errNoTar)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open tar metadata: %w", err)
	}
	header := make([]byte, metaHeader)
	if _, err := io.ReadFull(f, header); err != nil || string(header[:len(metaMagic)]) != metaMagic {
		return nil, 0, errors.Join(fmt.Errorf("layer %s: %w", t.id, layertar.ErrMetadata), f.Close())
	}
	return f, int64(binary.BigEndian.Uint64(header[len(metaMagic):])), nil
}

// tarSize is the size of the layer's tar.
func (t layerTree) tarSize() (int64, error) {
	f, size, err := t.openMeta()
	if err != nil {
		return 0, err
	}
	return size, f.Close()
}

// openTar returns the layer's tar; it is verified while it is read.
func (t layerTree) openTar() (io.ReadCloser, error) {
	meta, size, err := t.openMeta()
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() { // it ends with the layer's end, or with the reader's Close
		err := layertar.Rebuild(meta, t.dir, w)
		w.CloseWithError(errors.Join(err, meta.Close()))
	}()
	return struct {
		io.Reader
		io.Closer
	}{verify.NewReader(r, t.id, size), r}, nil
}
