package download_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/download"
	"criserver/pkg/imagesvc/verify"
)

const chunk = 1000

// server holds one blob.
type server struct {
	data     []byte
	noRanges bool
	// failAt, if positive, is the offset of the byte that is never sent.
	failAt int64
	// hang is closed to let connections that are at failAt end; nil: they fail at once.
	hang chan struct{}

	name string // "": bad.example

	mu        sync.Mutex
	asked     []string
	sent      int64
	blamed    int // for sure
	suspected int
}

var errCut = errors.New("cut")

type part struct {
	s          *server
	ctx        context.Context
	start, end int64
	pos        int64
}

func (s *server) open(ctx context.Context, offset, length int64) (download.Part, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, fmt.Sprintf("%d+%d", offset, length))
	if s.noRanges {
		offset, length = 0, int64(len(s.data))
	}
	return &part{s: s, ctx: ctx, start: offset, end: offset + length, pos: offset}, nil
}

func (p *part) Read(b []byte) (int, error) {
	if p.pos == p.end {
		return 0, io.EOF
	}
	end := min(p.end, p.pos+int64(len(b)), p.pos+333)
	if f := p.s.failAt; f > 0 && end > f {
		if p.pos >= f || f == p.pos {
			if p.s.hang != nil {
				select {
				case <-p.s.hang:
				case <-p.ctx.Done():
					return 0, context.Cause(p.ctx)
				}
			}
			return 0, errCut
		}
		end = f
	}
	n := copy(b, p.s.data[p.pos:end])
	p.pos += int64(n)
	p.s.mu.Lock()
	p.s.sent += int64(n)
	p.s.mu.Unlock()
	return n, nil
}

func (p *part) Close() error         { return nil }
func (p *part) Span() (int64, int64) { return p.start, p.end }
func (p *part) Senders() []string    { return []string{cmp.Or(p.s.name, "bad.example")} }
func (p *part) Blame(sure bool) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if sure {
		p.s.blamed++
	} else {
		p.s.suspected++
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func describe(data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func newStore(t *testing.T, connections int) (*download.Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "downloads")
	s, err := download.New(download.Config{Dir: dir, Connections: connections, ChunkSize: chunk})
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func open(t *testing.T, s *download.Store, d ocispec.Descriptor, srv *server) *download.Blob {
	t.Helper()
	b, err := s.Open(t.Context(), d, srv.open)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestDownload(t *testing.T) {
	for _, size := range []int{0, 1, chunk - 1, chunk, chunk + 1, 10*chunk + 17} {
		for _, connections := range []int{1, 4} {
			for _, noRanges := range []bool{false, true} {
				t.Run(fmt.Sprint(size, connections, noRanges), func(t *testing.T) {
					s, dir := newStore(t, connections)
					srv := &server{data: random(size), noRanges: noRanges}
					b := open(t, s, describe(srv.data), srv)
					got, err := io.ReadAll(b)
					if err != nil || !bytes.Equal(got, srv.data) || !errors.Is(b.Err(), io.EOF) {
						t.Errorf("got %d bytes, %v, %v", len(got), err, b.Err())
					}
					var again bytes.Buffer
					if n, err := b.CopyTo(&again); err != nil || n != int64(size) || !bytes.Equal(again.Bytes(), srv.data) {
						t.Errorf("copy: %d, %v", n, err)
					}
					if b.Fetched() != int64(size) || b.Consumed() != int64(size) {
						t.Errorf("fetched %d, consumed %d", b.Fetched(), b.Consumed())
					}
					if err := b.Discard(); err != nil {
						t.Error(err)
					}
					wantEmpty(t, dir)
					if connections == 1 && size > 0 && len(srv.asked) != 1 {
						t.Errorf("one connection asked %q", srv.asked)
					}
				})
			}
		}
	}
}

// What is there is not asked for again, also by a store that is new.
func TestResume(t *testing.T) {
	for _, connections := range []int{1, 3} {
		t.Run(fmt.Sprint(connections), func(t *testing.T) {
			s, dir := newStore(t, connections)
			srv := &server{data: random(10 * chunk), failAt: 7*chunk + 500}
			b := open(t, s, describe(srv.data), srv)
			if _, err := io.ReadAll(b); !errors.Is(err, errCut) {
				t.Fatalf("got %v", err)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			kept, err := s.Partials()
			if err != nil || len(kept) != 1 || kept[0].Digest != describe(srv.data).Digest || kept[0].Bytes != b.Fetched() {
				t.Fatalf("kept %v, %v; fetched %d", kept, err, b.Fetched())
			}
			if connections == 1 && b.Fetched() != 7*chunk+500 {
				t.Errorf("fetched %d", b.Fetched())
			}
			s, err = download.New(download.Config{Dir: dir, Connections: connections, ChunkSize: chunk})
			if err != nil {
				t.Fatal(err)
			}
			srv.failAt = 0
			b = open(t, s, describe(srv.data), srv)
			got, err := io.ReadAll(b)
			if err != nil || !bytes.Equal(got, srv.data) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if srv.sent != int64(len(srv.data)) {
				t.Errorf("%d bytes were sent for %d", srv.sent, len(srv.data))
			}
			if err := b.Discard(); err != nil {
				t.Error(err)
			}
		})
	}
}

// What a manifest that lied about the size has left does not keep others from the blob.
func TestKeptOfAnotherSize(t *testing.T) {
	s, _ := newStore(t, 1)
	data := random(3 * chunk)
	right := describe(data)
	lie := right
	lie.Size *= 4
	b := open(t, s, lie, &server{data: random(12 * chunk), failAt: 7 * chunk})
	if _, err := io.ReadAll(b); !errors.Is(err, errCut) {
		t.Fatalf("got %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = open(t, s, right, &server{data: data})
	if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, data) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if err := b.Discard(); err != nil {
		t.Error(err)
	}
	other := open(t, s, right, &server{data: data})
	if err := errors.Join(b.Discard(), b.Close()); err != nil { // again, when it is another's
		t.Error(err)
	}
	if got, err := io.ReadAll(other); err != nil || !bytes.Equal(got, data) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if err := other.Discard(); err != nil {
		t.Error(err)
	}
}

func TestWrongContent(t *testing.T) {
	s, dir := newStore(t, 2)
	srv := &server{data: random(5 * chunk)}
	d := describe(srv.data)
	srv.data[4321] ^= 1
	b := open(t, s, d, srv)
	_, err := io.ReadAll(b)
	if !errors.Is(err, verify.ErrDigest) || srv.blamed != 0 {
		t.Errorf("got %v, blamed %d times before anybody asked", err, srv.blamed)
	}
	if err := b.Err(); !errors.Is(err, verify.ErrDigest) || !bytes.Contains([]byte(err.Error()), []byte("bad.example")) {
		t.Errorf("got %v", err)
	}
	if err := b.Close(); err != nil || srv.blamed == 0 {
		t.Errorf("%v, blamed %d times", err, srv.blamed)
	}
	wantEmpty(t, dir)
}

// Of several that sent parts of wrong content none is to blame for sure.
func TestWrongContentOfSeveral(t *testing.T) {
	s, dir := newStore(t, 2)
	good, bad := &server{data: random(5 * chunk), name: "good.example"}, &server{data: make([]byte, 5*chunk)}
	b, err := s.Open(t.Context(), describe(good.data), func(ctx context.Context, offset, length int64) (download.Part, error) {
		if offset >= 3*chunk {
			return bad.open(ctx, offset, length)
		}
		return good.open(ctx, offset, length)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, b); !errors.Is(err, verify.ErrDigest) {
		t.Errorf("got %v", err)
	}
	for range 2 { // it is said again, and done once
		if err := b.Err(); !errors.Is(err, verify.ErrDigest) || !strings.Contains(err.Error(), "bad.example and good.example") {
			t.Errorf("got %v", err)
		}
	}
	if good.blamed+bad.blamed != 0 || good.suspected != 3 || bad.suspected != 2 {
		t.Errorf("blamed %d and %d times, suspected %d and %d times", good.blamed, bad.blamed, good.suspected, bad.suspected)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	wantEmpty(t, dir)
}

// What was kept may have been damaged by a power cut. That is nobody's fault.
func TestKeptContentIsWrong(t *testing.T) {
	s, dir := newStore(t, 1)
	srv := &server{data: random(3 * chunk), failAt: 2 * chunk}
	b := open(t, s, describe(srv.data), srv)
	if _, err := io.ReadAll(b); err == nil {
		t.Fatal("no error")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*", "0"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.WriteFile(files[0], make([]byte, chunk), 0o600); err != nil {
		t.Fatal(err)
	}
	srv.failAt = 0
	b = open(t, s, describe(srv.data), srv)
	if _, err := io.ReadAll(b); !errors.Is(err, verify.ErrDigest) || !errors.Is(b.Err(), download.ErrKept) || srv.blamed != 0 {
		t.Errorf("got %v, %v, blamed %d times", err, b.Err(), srv.blamed)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, dir)
}

func TestSecondWaits(t *testing.T) {
	s, _ := newStore(t, 2)
	srv := &server{data: random(2 * chunk), failAt: 1, hang: make(chan struct{})}
	first := open(t, s, describe(srv.data), srv)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Open(ctx, describe(srv.data), srv.open); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	got := make(chan error)
	go func() {
		b, err := s.Open(context.Background(), describe(srv.data), srv.open)
		if err == nil {
			err = b.Discard()
		}
		got <- err
	}()
	if err := s.Purge(t.Context(), time.Now().Add(time.Hour)); err != nil { // not what is under way
		t.Error(err)
	}
	if kept, err := s.Partials(); err != nil || len(kept) != 1 {
		t.Errorf("purged: %v, %v", kept, err)
	}
	if err := first.Close(); err != nil { // ends connections that hang
		t.Error(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestPurge(t *testing.T) {
	s, dir := newStore(t, 1)
	srv := &server{data: random(2 * chunk), failAt: 1500}
	b := open(t, s, describe(srv.data), srv)
	if _, err := io.ReadAll(b); err == nil {
		t.Fatal("no error")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context(), time.Now().Add(-time.Hour)); err != nil {
		t.Error(err)
	}
	if kept, err := s.Partials(); err != nil || len(kept) != 1 || kept[0].Bytes != 1500 {
		t.Errorf("kept %v, %v", kept, err)
	}
	if err := s.Purge(t.Context(), time.Now().Add(time.Second)); err != nil {
		t.Error(err)
	}
	wantEmpty(t, dir)
}

func TestCancelled(t *testing.T) {
	s, _ := newStore(t, 3)
	srv := &server{data: random(5 * chunk), failAt: 2500, hang: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(t.Context())
	b, err := s.Open(ctx, describe(srv.data), srv.open)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, b, 2500); err != nil {
		t.Fatal(err)
	}
	why := errors.New("enough")
	cancel(why)
	if _, err := io.Copy(io.Discard, b); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

// A small blob is read as it comes and leaves nothing.
func TestSmall(t *testing.T) {
	dir := t.TempDir()
	s, err := download.New(download.Config{Dir: dir, Small: 2 * chunk, ChunkSize: chunk})
	if err != nil {
		t.Fatal(err)
	}
	srv := &server{data: random(2 * chunk)}
	b := open(t, s, describe(srv.data), srv)
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, srv.data) || b.Fetched() != 2*chunk || b.Consumed() != 2*chunk {
		t.Errorf("got %d bytes, %v; fetched %d", len(got), err, b.Fetched())
	}
	if _, err := b.CopyTo(io.Discard); !errors.Is(err, download.ErrNotWritten) {
		t.Errorf("copy: %v", err)
	}
	if err := errors.Join(b.Discard(), b.Close()); err != nil {
		t.Error(err)
	}
	d := describe(srv.data)
	srv.data[0] ^= 1
	b = open(t, s, d, srv)
	if _, err := io.ReadAll(b); !errors.Is(err, verify.ErrDigest) || !errors.Is(b.Err(), verify.ErrDigest) || srv.blamed == 0 {
		t.Errorf("wrong content: %v, blamed %d times", err, srv.blamed)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	srv.failAt = 10
	b = open(t, s, d, srv)
	if _, err := io.ReadAll(b); !errors.Is(err, errCut) {
		t.Errorf("got %v", err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	wantEmpty(t, dir)
}
