// Package content keeps blobs on disk by their digests: manifests, configurations, and compressed layers where those are
// kept. What is read is verified.
package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"criserver/pkg/ctxreader"
	"criserver/pkg/imagesvc/verify"
)

// Errors of Read, wrapped.
var (
	// ErrNotFound: no blob of that digest is kept.
	ErrNotFound = errors.New("blob not found")
	// ErrDamaged: the file does not have its digest.
	ErrDamaged = errors.New("blob is damaged")
)

// Store is a directory of blobs. Its methods may be called at the same time.
type Store struct {
	root string

	mu    sync.Mutex
	bytes map[digest.Digest]int64 // what the files take of the disk
	total int64
}

// New opens or makes the store in the directory root, and removes what an interrupted Write left.
func New(root string) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(root, "sha256"), 0o700); err != nil {
		return nil, fmt.Errorf("make blob store: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(root, "tmp-*"))
	if err != nil {
		return nil, err
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil {
			return nil, fmt.Errorf("clean blob store: %w", err)
		}
	}
	s := &Store{root: root, bytes: map[digest.Digest]int64{}}
	all, err := s.List()
	if err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	for _, d := range all {
		s.count(d)
	}
	return s, nil
}

// Usage tells how much of the disk all blobs take, in bytes, and how many there are. It is counted, not looked for.
func (s *Store) Usage() (bytes, files int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total, int64(len(s.bytes))
}

// Small returns the digests of the blobs that take at most so many bytes of the disk, in no order.
func (s *Store) Small(bytes int64) []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []digest.Digest
	for d, n := range s.bytes {
		if n <= bytes {
			out = append(out, d)
		}
	}
	return out
}

// count takes in what a blob takes of the disk now, nothing if it is gone. Who deletes a blob sees to it that nobody writes it.
func (s *Store) count(d digest.Digest) {
	var st unix.Stat_t
	err := unix.Lstat(s.path(d), &st)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total -= s.bytes[d]
	delete(s.bytes, d)
	if err == nil {
		s.bytes[d] = st.Blocks * 512
		s.total += s.bytes[d]
	}
}

func (s *Store) path(d digest.Digest) string {
	return filepath.Join(s.root, d.Algorithm().String(), d.Encoded())
}

// Write keeps a blob; it is on the disk when Write returns. The data must have the digest.
func (s *Store) Write(d digest.Digest, data []byte) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("write blob %q: %w", d, err)
	}
	if d.Algorithm().FromBytes(data) != d {
		return fmt.Errorf("write blob %s: %w", d, ErrDamaged)
	}
	if have, err := s.Read(d); err == nil && len(have) == len(data) {
		return nil
	}
	defer s.count(d)
	if err := s.write(s.path(d), data); err != nil {
		return fmt.Errorf("write blob %s: %w", d, err)
	}
	return nil
}

// WriteFrom keeps a large blob, which copy writes out; it is on the disk when WriteFrom returns. ErrDamaged: what is written
// does not have the digest.
func (s *Store) WriteFrom(d digest.Digest, copy func(io.Writer) (int64, error)) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("write blob %q: %w", d, err)
	}
	defer s.count(d)
	err := s.fill(s.path(d), func(w io.Writer) error {
		hash := d.Algorithm().Hash()
		if _, err := copy(io.MultiWriter(w, hash)); err != nil {
			return err
		}
		if digest.NewDigest(d.Algorithm(), hash) != d {
			return ErrDamaged
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write blob %s: %w", d, err)
	}
	return nil
}

// Has tells whether a blob is there, whole or not.
func (s *Store) Has(d digest.Digest) bool {
	if d.Validate() != nil {
		return false
	}
	_, err := os.Stat(s.path(d))
	return err == nil
}

// Open opens a large blob and tells its size in bytes. The caller verifies what it reads. ErrNotFound.
func (s *Store) Open(d digest.Digest) (*os.File, int64, error) {
	if err := d.Validate(); err != nil {
		return nil, 0, fmt.Errorf("open blob %q: %w", d, err)
	}
	f, err := os.Open(s.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("%s: %w", d, ErrNotFound)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("open blob: %w", err), f.Close())
	}
	return f, info.Size(), nil
}

func (s *Store) write(path string, data []byte) error {
	return s.fill(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// fill makes a file whole or not at all, also when the power goes.
func (s *Store) fill(path string, write func(io.Writer) error) error {
	tmp, err := os.CreateTemp(s.root, "tmp-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	err = write(tmp)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Verify reads a blob, of any size, to check it. ErrNotFound, ErrDamaged.
func (s *Store) Verify(ctx context.Context, d digest.Digest) error {
	f, _, err := s.Open(d)
	if err != nil {
		return err
	}
	defer f.Close()
	err = verify.NewReader(ctxreader.New(ctx, f), d, verify.Unknown).Drain()
	if errors.Is(err, verify.ErrDigest) {
		return ErrDamaged
	}
	return err
}

// Read returns a blob. ErrNotFound, ErrDamaged.
func (s *Store) Read(d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("read blob %q: %w", d, err)
	}
	data, err := os.ReadFile(s.path(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", d, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	if d.Algorithm().FromBytes(data) != d {
		return nil, fmt.Errorf("%s: %w", d, ErrDamaged)
	}
	return data, nil
}

// Delete removes a blob; an unknown one is no error.
func (s *Store) Delete(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("delete blob %q: %w", d, err)
	}
	defer s.count(d)
	if err := os.Remove(s.path(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete blob %s: %w", d, err)
	}
	return nil
}

// List returns the digests of all blobs, in no order.
func (s *Store) List() ([]digest.Digest, error) {
	files, err := filepath.Glob(filepath.Join(s.root, "*", "*"))
	if err != nil {
		return nil, err
	}
	var out []digest.Digest
	for _, f := range files {
		d := digest.NewDigestFromEncoded(digest.Algorithm(filepath.Base(filepath.Dir(f))), filepath.Base(f))
		if d.Validate() == nil {
			out = append(out, d)
		}
	}
	return out, nil
}
