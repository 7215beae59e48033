package download

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/verify"
)

// ErrKept says that content is wrong, and some of it was kept of an earlier download. It is thrown away: trying again may help.
var ErrKept = errors.New("kept of an earlier download, which is thrown away")

// errEnded ends the connections of a download that has been closed.
var errEnded = errors.New("download has ended")

// Blob is a blob that is being downloaded. Read begins at its first byte, whatever was there before, and ends with io.EOF only
// after content of the right size and digest. It is for one goroutine; Fetched and Unread may be called by others.
type Blob struct {
	*verify.Reader
	desc    ocispec.Descriptor
	dir     string
	chunk   int64 // bytes of each chunk but the last
	reused  bool
	release func()
	closed  bool // released
	cancel  context.CancelCauseFunc
	work    sync.WaitGroup
	fetched atomic.Int64
	follow  follower
	part    Part  // of a blob that is read as it comes; then there is nothing on the disk
	verdict error // on content that is wrong

	mu      sync.Mutex // never held across a call to the disk or the network
	have    []int64    // how much of each chunk is in its file
	next    int        // the first chunk that no connection has taken
	whole   bool       // the server knows no ranges: one connection gets everything
	err     error      // why the connections ended early, or that of the part
	changed chan struct{}
	parts   []Part // all that there were
}

// newBlob finds what is there of a blob.
func (s *Store) newBlob(d ocispec.Descriptor, dir string, release func()) (*Blob, error) {
	b := &Blob{desc: d, dir: dir, chunk: s.chunkSize(d.Size), release: release, changed: make(chan struct{})}
	chunks := d.Size / b.chunk
	if d.Size%b.chunk > 0 {
		chunks++
	}
	b.have = make([]int64, chunks)
	b.follow.blob = b
	b.Reader = verify.NewReader(&b.follow, d.Digest, d.Size)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := b.findKept(); err != nil {
		return nil, err
	}
	now := time.Now()
	return b, os.Chtimes(dir, now, now) // for Purge
}

// findKept finds what is there of the blob. What is of a blob of another size is removed: only a manifest that lies about
// the size leaves that, and the next one must not suffer.
func (b *Blob) findKept() error {
	files, err := os.ReadDir(b.dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(f.Name())
		if err != nil || n < 0 || n >= len(b.have) || info.Size() > b.length(n) {
			clear(b.have)
			b.fetched.Store(0)
			b.reused = false
			return errors.Join(os.RemoveAll(b.dir), os.MkdirAll(b.dir, 0o700))
		}
		b.have[n] = info.Size()
		b.fetched.Add(info.Size())
		b.reused = b.reused || info.Size() > 0
	}
	return nil
}

// length is how many bytes a chunk has.
func (b *Blob) length(n int) int64 { return min(b.chunk, b.desc.Size-int64(n)*b.chunk) }

func (b *Blob) file(n int) string { return filepath.Join(b.dir, strconv.Itoa(n)) }

// Fetched is how many bytes are here.
func (b *Blob) Fetched() int64 {
	if b.part != nil {
		return b.Count()
	}
	return b.fetched.Load()
}

// Consumed is how many bytes have been read from the blob.
func (b *Blob) Consumed() int64 { return b.Count() }

// Err is nil before the first error of Read, io.EOF after verified content, and otherwise what was wrong. Content that is wrong
// is not kept, and who sent it is blamed, unless it may have been what was kept before, of which nobody knows who sent it.
func (b *Blob) Err() error {
	if b.verdict == nil && b.wrong() {
		b.verdict = b.judge(b.Reader.Err())
	}
	if b.verdict != nil {
		return b.verdict
	}
	return b.Reader.Err()
}

// wrong tells that all that there is has been read, and is not what was promised.
func (b *Blob) wrong() bool {
	err := b.Reader.Err()
	return b.verdict != nil || (errors.Is(err, verify.ErrDigest) || errors.Is(err, verify.ErrTruncated)) && b.stopped() == nil
}

// judge blames who sent the blob. One is to blame for sure only if nobody else sent any of it.
func (b *Blob) judge(err error) error {
	if b.reused {
		return fmt.Errorf("blob %s, %w: %w", b.desc.Digest, ErrKept, err)
	}
	b.end()
	var servers []string
	for _, p := range b.parts {
		servers = append(servers, p.Senders()...)
	}
	slices.Sort(servers)
	servers = slices.Compact(servers)
	sure := len(servers) == 1
	for _, p := range b.parts {
		p.Blame(sure)
	}
	if sure {
		return fmt.Errorf("blob %s, sent by %s: %w", b.desc.Digest, servers[0], err)
	}
	return fmt.Errorf("blob %s, put together of what %s sent: %w", b.desc.Digest, strings.Join(servers, " and "), err)
}

// Close ends the download and keeps what is there, unless it is known to be wrong.
func (b *Blob) Close() error {
	if b.closed {
		return nil
	}
	if b.wrong() {
		return b.Discard()
	}
	if b.end(); b.Fetched() == 0 || b.part != nil {
		return b.Discard()
	}
	b.closed = true
	b.release()
	return nil
}

// Discard is Close for what is not needed any more: it deletes what is there. After either it does nothing: what is there
// then is another download's.
func (b *Blob) Discard() error {
	b.end()
	if b.closed {
		return nil
	}
	b.closed = true
	defer b.release()
	if b.part != nil {
		return nil
	}
	if err := os.RemoveAll(b.dir); err != nil {
		return fmt.Errorf("remove download: %w", err)
	}
	return nil
}

// CopyTo writes the whole blob, which must have been verified, to w. ErrNotWritten.
// (It is not WriteTo, by which io.Copy would bypass Read.)
func (b *Blob) CopyTo(w io.Writer) (int64, error) {
	if !errors.Is(b.Reader.Err(), io.EOF) {
		return 0, fmt.Errorf("copy blob %s: it has not been verified", b.desc.Digest)
	}
	if b.part != nil {
		return 0, fmt.Errorf("copy blob %s: %w", b.desc.Digest, ErrNotWritten)
	}
	var total int64
	for n := range b.have {
		f, err := os.Open(b.file(n))
		if err != nil {
			return total, fmt.Errorf("copy blob %s: %w", b.desc.Digest, err)
		}
		written, err := io.Copy(w, f)
		total += written
		if err = errors.Join(err, f.Close()); err != nil {
			return total, fmt.Errorf("copy blob %s: %w", b.desc.Digest, err)
		}
	}
	return total, nil
}

// end stops the connections and waits for them.
func (b *Blob) end() {
	b.cancel(errEnded)
	if b.part != nil {
		b.part.Close()
		return
	}
	b.work.Wait()
	b.follow.close()
}

// stopped is why the connections ended early.
func (b *Blob) stopped() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// announce wakes the reader. It needs the lock.
func (b *Blob) announce() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// follower reads the chunks in order while they grow.
type follower struct {
	blob *Blob
	pos  int64
	at   int // the chunk that file is of
	file *os.File
}

func (f *follower) close() {
	if f.file != nil {
		f.file.Close()
		f.file = nil
	}
}

// Read implements io.Reader.
func (f *follower) Read(p []byte) (int, error) {
	b := f.blob
	if f.pos == b.desc.Size {
		return 0, io.EOF
	}
	n := int(f.pos / b.chunk)
	within := f.pos % b.chunk
	have, err := b.await(n, within)
	if err != nil {
		return 0, err
	}
	if f.file == nil || f.at != n {
		f.close()
		if f.file, err = os.Open(b.file(n)); err != nil {
			return 0, fmt.Errorf("read download: %w", err)
		}
		f.at = n
	}
	read, err := f.file.ReadAt(p[:min(int64(len(p)), have-within)], within)
	f.pos += int64(read)
	if err != nil && (read == 0 || !errors.Is(err, io.EOF)) {
		if errors.Is(err, io.EOF) {
			err = fs.ErrInvalid // somebody has cut the file
		}
		return read, fmt.Errorf("read download: %w", err)
	}
	return read, nil
}

// await waits until a chunk has more than so many bytes, and returns how many.
func (b *Blob) await(n int, more int64) (int64, error) {
	for {
		b.mu.Lock()
		have, err, changed := b.have[n], b.err, b.changed
		b.mu.Unlock()
		if have > more {
			return have, nil
		}
		if err != nil {
			return 0, err
		}
		<-changed
	}
}
