package layertar

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/verify"
)

// The file that is kept with a layer is fileMagic, the size of the layer's tar in bytes (big endian), and what Capture writes.
const fileMagic = "criltar1"

const fileHeader = len(fileMagic) + 8

// treeMagic begins the file of a layer that Describe has described: what it has of a tar is not the layer's own.
const treeMagic = "crilyrd1"

// ErrNone says that nothing is kept to write a layer's tar from.
var ErrNone = errors.New("its tar cannot be written again: pull or import the image again")

// Recorder is Capture into a file.
type Recorder struct {
	io.Reader
	file   *os.File
	size   int64
	finish func() error
}

// Record reads through r, as Capture does, and makes the file at path. Finish must be called, after the last Read.
func Record(r io.Reader, path string) (*Recorder, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("keep tar metadata: %w", err)
	}
	c := &Recorder{file: f}
	if _, err := f.Write(make([]byte, fileHeader)); err != nil {
		return nil, errors.Join(fmt.Errorf("keep tar metadata: %w", err), f.Close())
	}
	c.Reader, c.finish = Capture(io.TeeReader(r, (*counter)(&c.size)), f)
	return c, nil
}

// Finish completes the file. For a tar that cannot be written again, exact is false and there is no file.
func (c *Recorder) Finish() (exact bool, err error) {
	defer func() { err = errors.Join(err, c.file.Close()) }()
	err = c.finish()
	if errors.Is(err, ErrNotExact) {
		return false, os.Remove(c.file.Name())
	}
	if err != nil {
		return false, fmt.Errorf("keep tar metadata: %w", err)
	}
	header := binary.BigEndian.AppendUint64([]byte(fileMagic), uint64(c.size))
	if _, err := c.file.WriteAt(header, 0); err != nil {
		return false, fmt.Errorf("keep tar metadata: %w", err)
	}
	return true, nil
}

// Describe makes the file at path for a layer that has none from Record: the directory can be verified by it, though its tar
// cannot be written again. It reads all that is in the directory. There is no file for one that has what no tar can express.
func Describe(ctx context.Context, dir, path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("describe layer: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(append([]byte(treeMagic), make([]byte, fileHeader-len(treeMagic))...)); err != nil {
		return fmt.Errorf("describe layer: %w", err)
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(Changes(ctx, dir, w)) }() // it ends with the reader
	defer r.Close()
	captured, finish := Capture(r, f)
	_, err = io.Copy(io.Discard, captured)
	err = errors.Join(err, finish())
	if errors.Is(err, ErrNotExact) || errors.Is(err, ErrUnsupported) {
		return os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("describe layer: %w", err)
	}
	return nil
}

type counter int64

func (n *counter) Write(p []byte) (int, error) {
	*n += counter(len(p))
	return len(p), nil
}

// Layer is a layer that has been unpacked, with what Record has kept of it.
type Layer struct {
	// ID is the digest of its tar.
	ID digest.Digest
	// Dir is where it was unpacked, File what Record or Describe made.
	Dir, File string
}

// open opens the file behind its header, and tells the size of the tar. ErrNone: there is none of the layer's own tar.
// ErrMetadata.
func (l Layer) open() (*os.File, int64, error) {
	f, size, own, err := l.openAny()
	if err == nil && !own {
		return nil, 0, errors.Join(fmt.Errorf("layer %s: %w", l.ID, ErrNone), f.Close())
	}
	return f, size, err
}

// openAny is open, and tells whether it is of the layer's own tar, or from Describe.
func (l Layer) openAny() (file *os.File, size int64, own bool, err error) {
	f, err := os.Open(l.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, false, fmt.Errorf("layer %s: %w", l.ID, ErrNone)
	}
	if err != nil {
		return nil, 0, false, fmt.Errorf("open tar metadata: %w", err)
	}
	header := make([]byte, fileHeader)
	_, err = io.ReadFull(f, header)
	magic := string(header[:len(fileMagic)])
	if err != nil || magic != fileMagic && magic != treeMagic {
		return nil, 0, false, errors.Join(fmt.Errorf("layer %s: %w", l.ID, ErrMetadata), f.Close())
	}
	return f, int64(binary.BigEndian.Uint64(header[len(fileMagic):])), magic == fileMagic, nil
}

// Size is the size of the layer's tar in bytes. ErrNone, ErrMetadata.
func (l Layer) Size() (int64, error) {
	f, size, err := l.open()
	if err != nil {
		return 0, err
	}
	return size, f.Close()
}

// Open returns the layer's tar, see Rebuild. It is verified while it is read.
func (l Layer) Open() (io.ReadCloser, error) {
	meta, size, err := l.open()
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() { // it ends with the layer's end, or with the reader's Close
		err := Rebuild(meta, l.Dir, w)
		w.CloseWithError(errors.Join(err, meta.Close()))
	}()
	return struct {
		io.Reader
		io.Closer
	}{verify.NewReader(r, l.ID, size), r}, nil
}

// Verify is the function of that name. ErrNone too: there is nothing to compare with.
func (l Layer) Verify(ctx context.Context) ([]Problem, error) {
	meta, _, _, err := l.openAny()
	if err != nil {
		return nil, err
	}
	defer meta.Close()
	return Verify(ctx, meta, l.Dir)
}
