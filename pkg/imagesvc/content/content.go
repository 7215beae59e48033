// Package content keeps small blobs on disk by digest: manifests, indexes and configurations. What is written is whole
// and synced before it has its name; what is read is verified. Layers are not kept here, see pkg/snapshot.
package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/verify"
)

// ErrNotFound: there is no blob of that digest.
var ErrNotFound = errors.New("no such blob")

// Store is a directory of blobs, as blobs/<algorithm>/<hex>; tmp holds what is being written. Its methods may be called
// at the same time, by one process.
type Store struct{ root string }

// Open opens or creates the store at root and deletes what an earlier process left half written.
func Open(root string) (*Store, error) {
	s := &Store{root: root}
	if err := os.RemoveAll(s.tmp()); err != nil {
		return nil, fmt.Errorf("clear content store: %w", err)
	}
	for _, dir := range []string{s.tmp(), s.blobs()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make content store: %w", err)
		}
	}
	return s, nil
}

func (s *Store) tmp() string   { return filepath.Join(s.root, "tmp") }
func (s *Store) blobs() string { return filepath.Join(s.root, "blobs") }

func (s *Store) path(d digest.Digest) (string, error) {
	if err := verify.CheckDigest(d); err != nil {
		return "", err
	}
	return filepath.Join(s.blobs(), d.Algorithm().String(), d.Encoded()), nil
}

// Put writes a blob, which then survives a power cut. It replaces one of the same digest, which may have been damaged.
// verify.ErrDigest: data is something else.
func (s *Store) Put(ctx context.Context, want digest.Digest, data []byte) error {
	return s.Write(ctx, want, int64(len(data)), bytes.NewReader(data))
}

// Write is Put for a stream, of a size or verify.Unknown.
func (s *Store) Write(ctx context.Context, want digest.Digest, size int64, r io.Reader) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("write blob %s: %w", want, err)
	}
	path, err := s.path(want)
	if err == nil {
		err = s.write(path, verify.NewReader(r, want, size))
	}
	if err != nil {
		return fmt.Errorf("write blob %s: %w", want, err)
	}
	return nil
}

func (s *Store) write(path string, r *verify.Reader) (err error) {
	f, err := os.CreateTemp(s.tmp(), "blob-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := makeDir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// makeDir makes the directory of an algorithm, durably.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

type blob struct {
	*verify.Reader
	io.Closer
}

// Open reads a blob. Its reader ends with verify.ErrDigest instead of io.EOF if the blob was damaged. ErrNotFound.
func (s *Store) Open(d digest.Digest) (io.ReadCloser, error) {
	path, err := s.path(d)
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open blob %s: %w", d, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", d, err)
	}
	return blob{verify.NewReader(f, d, verify.Unknown), f}, nil
}

// Get returns a whole blob, verified. ErrNotFound; verify.ErrDigest: it is damaged.
func (s *Store) Get(d digest.Digest) ([]byte, error) {
	b, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	data, err := io.ReadAll(b)
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	return data, nil
}

// Delete removes a blob; one that is not there is no error.
func (s *Store) Delete(d digest.Digest) error {
	path, err := s.path(d)
	if err != nil {
		return fmt.Errorf("delete blob: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete blob %s: %w", d, err)
	}
	return nil
}

// List returns the digests of all blobs, in no order.
func (s *Store) List() ([]digest.Digest, error) {
	algorithms, err := os.ReadDir(s.blobs())
	if err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	var all []digest.Digest
	for _, algorithm := range algorithms {
		files, err := os.ReadDir(filepath.Join(s.blobs(), algorithm.Name()))
		if err != nil {
			return nil, fmt.Errorf("list blobs: %w", err)
		}
		for _, file := range files {
			d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm.Name()), file.Name())
			if d.Validate() == nil {
				all = append(all, d)
			}
		}
	}
	return all, nil
}
