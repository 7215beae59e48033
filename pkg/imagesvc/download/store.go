// Package download fetches blobs by way of the disk: several connections write what they get, one reader follows them from
// the first byte on, and what is there when a download ends early serves the next one.
//
// On disk a blob is a directory <algorithm>-<hex> with a file for each chunk, named by its number. A chunk is written from its
// start on, so that the length of the file is how much of it is there, whenever the process dies. Nothing is synced: a power
// cut may leave a file with other bytes than were written, which the digest of the whole tells.
package download

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/claim"
	"criserver/pkg/imagesvc/verify"
)

// Part is some of a blob's bytes, as servers send them; see registry.Part. Senders and Blame are asked when nobody reads it any
// more.
type Part interface {
	Read(p []byte) (int, error)
	Close() error
	Span() (start, end int64)
	// Senders are the names of those that sent what has been read.
	Senders() []string
	// Blame has them asked less, because the blob turned out wrong. sure: all of the blob is from the same server.
	Blame(sure bool)
}

// Origin asks for length bytes of a blob from the offset on. It may give the whole blob instead.
type Origin func(ctx context.Context, offset, length int64) (Part, error)

// Config is what a store needs to know.
type Config struct {
	// Dir holds the downloads. It is made if need be, and is the store's own.
	Dir string
	// Connections is how many fetch a large blob at the same time; 0 is 1.
	Connections int
	// Small is the size up to which a blob is not written to the disk but read as it comes: what is half there of it is not
	// worth keeping.
	Small int64
	// ChunkSize is the least number of bytes that a connection fetches of a blob which is larger; 0 is 8 MiB.
	ChunkSize int64
}

const (
	defaultChunk = 8 << 20
	// maxChunks bounds the number of files of a blob.
	maxChunks = 4096
)

// Store is a directory of downloads. Its methods may be called at the same time.
type Store struct {
	config Config
	busy   claim.Claims // directories
}

// New opens or makes a store.
func New(c Config) (*Store, error) {
	c.Connections = max(c.Connections, 1)
	if c.ChunkSize <= 0 {
		c.ChunkSize = defaultChunk
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make download directory: %w", err)
	}
	return &Store{config: c}, nil
}

// Open begins or goes on with the download of a blob. The caller ends it with Close or Discard. One download of a blob is
// under way at a time; others wait for it, no longer than ctx, and find what it left.
func (s *Store) Open(ctx context.Context, d ocispec.Descriptor, origin Origin) (*Blob, error) {
	if err := verify.CheckDigest(d.Digest); err != nil {
		return nil, fmt.Errorf("download: %w", err)
	}
	if d.Size < 0 {
		return nil, fmt.Errorf("download %s: size %d", d.Digest, d.Size)
	}
	if s.config.Small > 0 && d.Size <= s.config.Small {
		return direct(ctx, d, origin)
	}
	name := dirName(d.Digest)
	release, err := s.busy.Acquire(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("download %s: %w", d.Digest, err)
	}
	b, err := s.newBlob(d, filepath.Join(s.config.Dir, name), release)
	if err != nil {
		release()
		return nil, fmt.Errorf("download %s: %w", d.Digest, err)
	}
	b.start(ctx, origin, s.config.Connections)
	return b, nil
}

func dirName(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// chunkSize grows with the blob, so that it has no more than maxChunks.
func (s *Store) chunkSize(size int64) int64 {
	c := s.config.ChunkSize
	for size/c >= maxChunks {
		c *= 2
	}
	return c
}

// Purge removes the downloads that nobody is at and nobody has been at since the given time.
func (s *Store) Purge(ctx context.Context, since time.Time) error {
	entries, err := os.ReadDir(s.config.Dir)
	if err != nil {
		return fmt.Errorf("list downloads: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.ModTime().After(since) {
			continue
		}
		errs = append(errs, err, s.purge(entry.Name()))
	}
	return errors.Join(errs...)
}

func (s *Store) purge(name string) error {
	release, free := s.busy.Try(name)
	if !free {
		return nil
	}
	defer release()
	if err := os.RemoveAll(filepath.Join(s.config.Dir, name)); err != nil {
		return fmt.Errorf("remove download: %w", err)
	}
	return nil
}

// Partial is what is kept of a blob whose download has not ended.
type Partial struct {
	Digest digest.Digest
	Bytes  int64
}

// Partials lists what is kept. It reads directories, not content.
func (s *Store) Partials() ([]Partial, error) {
	entries, err := os.ReadDir(s.config.Dir)
	if err != nil {
		return nil, fmt.Errorf("list downloads: %w", err)
	}
	var out []Partial
	for _, entry := range entries {
		algorithm, hex, _ := strings.Cut(entry.Name(), "-")
		p := Partial{Digest: digest.NewDigestFromEncoded(digest.Algorithm(algorithm), hex)}
		files, err := os.ReadDir(filepath.Join(s.config.Dir, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list downloads: %w", err)
		}
		for _, f := range files {
			if info, err := f.Info(); err == nil {
				p.Bytes += info.Size()
			}
		}
		out = append(out, p)
	}
	return out, nil
}
