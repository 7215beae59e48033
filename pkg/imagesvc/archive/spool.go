package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/verify"
)

const (
	// manifestFile is docker's table of contents.
	manifestFile = "manifest.json"
	// maxName is far above the names that tools give; PAX headers could have megabytes.
	maxName = 1024
	// maxLinks is how many links are followed from one name: what Linux follows.
	maxLinks = 40
)

// spool takes the files of a tar in as they come.
type spool struct {
	dir    string
	limits Limits
	buf    []byte

	entries int
	bytes   int64
	// docs are the tables of contents.
	docs map[string][]byte
	// files and links are all others, by cleaned names; links name what they point to.
	files map[string]file
	links map[string]string
	blobs map[digest.Digest]int64
}

// file is one that is kept.
type file struct {
	digest digest.Digest
	size   int64
}

func newSpool(dir string, limits Limits) *spool {
	return &spool{
		dir: dir, limits: limits, buf: make([]byte, 256<<10), docs: map[string][]byte{}, files: map[string]file{},
		links: map[string]string{}, blobs: map[digest.Digest]int64{},
	}
}

// readAll takes in a whole tar.
func (s *spool) readAll(in *stream) error {
	tr := tar.NewReader(in)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return in.failed(err)
		}
		if s.entries++; s.entries > s.limits.Entries {
			return fmt.Errorf("%w: it has more than the %d entries that are allowed", ErrInvalid, s.limits.Entries)
		}
		if err := s.entry(hdr, tr, in); err != nil {
			return err
		}
	}
	if err := in.finish(); err != nil {
		return err
	}
	return s.linkBlobs()
}

func (s *spool) entry(hdr *tar.Header, r io.Reader, in *stream) error {
	name, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
	case tar.TypeLink:
		return s.link(name, hdr.Linkname)
	case tar.TypeSymlink:
		if path.IsAbs(hdr.Linkname) {
			return leaves(hdr.Name + " -> " + hdr.Linkname)
		}
		return s.link(name, path.Dir(name)+"/"+hdr.Linkname)
	default:
		return nil // directories, and nothing that an image is made of
	}
	// The limit of the stream does not hold for sparse files, which are read longer than they are.
	if s.bytes += hdr.Size; hdr.Size > s.limits.Bytes || s.bytes > s.limits.Bytes {
		return in.failed(errTooLarge)
	}
	switch name {
	case ocispec.ImageLayoutFile, ocispec.ImageIndexFile, manifestFile:
		return s.document(name, hdr.Size, r, in)
	}
	return s.file(name, r, in)
}

func (s *spool) document(name string, size int64, r io.Reader, in *stream) error {
	if _, ok := s.docs[name]; ok {
		return fmt.Errorf("%w: it has two files %s", ErrInvalid, name)
	}
	if size > maxDocument {
		return fmt.Errorf("%w: %s has %d bytes, at most %d are read", ErrInvalid, name, size, maxDocument)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return in.failed(err)
	}
	s.docs[name] = data
	return nil
}

// file keeps one under its digest, which that of a blob must be.
func (s *spool) file(name string, r io.Reader, in *stream) error {
	want, isBlob := blobName(name)
	alg := digest.Canonical
	if isBlob {
		alg = want.Algorithm()
	}
	h := alg.Hash()
	tmp := filepath.Join(s.dir, "spool")
	size, err := s.write(tmp, h, r)
	var ours *fs.PathError
	switch {
	case err != nil && in.input.err == nil && errors.As(err, &ours):
		return fmt.Errorf("keep %s of the archive: %w", name, err)
	case err != nil:
		return in.failed(err)
	}
	f := file{digest: digest.NewDigest(alg, h), size: size}
	if isBlob && f.digest != want {
		return fmt.Errorf("%w: %s has digest %s: it is damaged", ErrInvalid, name, f.digest)
	}
	old, twice := s.files[name]
	if _, isLink := s.links[name]; isLink || twice && old != f {
		return twoFiles(name)
	}
	if err := os.Rename(tmp, blobPath(s.dir, f.digest)); err != nil {
		return fmt.Errorf("keep %s of the archive: %w", name, err)
	}
	s.files[name] = f
	s.blobs[f.digest] = size
	return nil
}

func (s *spool) write(name string, h hash.Hash, r io.Reader) (int64, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.CopyBuffer(io.MultiWriter(f, h), r, s.buf)
	return n, errors.Join(err, f.Close())
}

// link notes that a name stands for another, which comes before a hard link and anywhere for a symbolic one.
func (s *spool) link(name, to string) error {
	target, err := cleanName(to)
	if err != nil {
		return leaves(name + " -> " + to)
	}
	old, twice := s.links[name]
	if _, isFile := s.files[name]; isFile || twice && old != target {
		return twoFiles(name)
	}
	s.links[name] = target
	return nil
}

// find returns the file of a name, through links.
func (s *spool) find(name string) (file, bool) {
	for range maxLinks {
		if f, ok := s.files[name]; ok {
			return f, true
		}
		target, ok := s.links[name]
		if !ok {
			break
		}
		name = target
	}
	return file{}, false
}

// linkBlobs checks that blobs that are links have their digests too. Links to nothing are blobs that the archive lacks.
func (s *spool) linkBlobs() error {
	for name := range s.links {
		want, isBlob := blobName(name)
		if f, ok := s.find(name); isBlob && ok && f.digest != want {
			return fmt.Errorf("%w: %s is a link to a file with digest %s: it is damaged", ErrInvalid, name, f.digest)
		}
	}
	return nil
}

// blobName is the digest in a name "blobs/sha256/…".
func blobName(name string) (digest.Digest, bool) {
	parts := strings.Split(name, "/")
	if len(parts) != 3 || parts[0] != ocispec.ImageBlobsDir {
		return "", false
	}
	d := digest.NewDigestFromEncoded(digest.Algorithm(parts[1]), parts[2])
	return d, verify.CheckDigest(d) == nil
}

// cleanName is a name without "./" and the like. Names are never used as paths; one that leaves the archive is hostile all
// the same, and says so.
func cleanName(name string) (string, error) {
	if len(name) > maxName {
		return "", fmt.Errorf("%w: a name in it has %d bytes, at most %d are allowed", ErrInvalid, len(name), maxName)
	}
	cleaned := path.Clean(name)
	if path.IsAbs(cleaned) || cleaned == ".." || strings.HasPrefix(cleaned, "../") {
		return "", leaves(name)
	}
	return cleaned, nil
}

func leaves(name string) error {
	return fmt.Errorf("%w: the name %q leaves the archive", ErrInvalid, name)
}

func twoFiles(name string) error {
	return fmt.Errorf("%w: it has two different files %q", ErrInvalid, name)
}
