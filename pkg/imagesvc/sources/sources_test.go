package sources_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/download"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/sources"
)

const size = 1 << 20

var (
	data     = bytes.Repeat([]byte("0123456789abcdef"), size/16)
	desc     = ocispec.Descriptor{Digest: "sha256:x", Size: size}
	patience = 50 * time.Millisecond
	errDown  = errors.New("down")
)

// fake is a source. It sends so many bytes every millisecond, all at once if that is 0, and ends with err behind an offset.
type fake struct {
	site      string
	pace      int
	noRanges  bool
	cut       int64
	err       error
	refuses   error
	endpoints int // left to try, after errors that say that what came is damaged

	mu    sync.Mutex
	asked []string
}

func (f *fake) Site() string { return f.site }

func (f *fake) CanTryElsewhere() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.endpoints >= 0
}

func (f *fake) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

func (f *fake) Part(ctx context.Context, _ ocispec.Descriptor, offset, length int64) (download.Part, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, fmt.Sprintf("%d+%d", offset, length))
	if f.refuses != nil {
		return nil, f.refuses
	}
	if f.noRanges {
		offset, length = 0, size
	}
	return &fakePart{f, ctx, offset, offset, offset + length}, nil
}

type fakePart struct {
	*fake
	ctx             context.Context
	start, pos, end int64
}

func (p *fakePart) Read(b []byte) (int, error) {
	if p.pace > 0 {
		select {
		case <-p.ctx.Done():
			return 0, context.Cause(p.ctx)
		case <-time.After(time.Millisecond):
		}
		b = b[:min(p.pace, len(b))]
	}
	if p.pos == p.end {
		return 0, io.EOF
	}
	if p.err != nil && p.pos >= p.cut {
		p.mu.Lock()
		p.endpoints--
		p.mu.Unlock()
		return 0, p.err
	}
	end := p.end
	if p.err != nil {
		end = min(end, p.cut)
	}
	n := copy(b, data[p.pos:end])
	p.pos += int64(n)
	return n, nil
}

func (p *fakePart) Close() error         { return nil }
func (p *fakePart) Span() (int64, int64) { return p.start, p.end }
func (p *fakePart) Senders() []string    { return []string{p.site} }
func (p *fakePart) Blame(bool)           {}

func (f *fake) Alone() []sources.Server { return []sources.Server{{Source: f, Name: f.site}} }

// read reads a part of the blob from sources in their order. senders are those that it is of.
func read(t *testing.T, offset, length int64, list ...*fake) (got []byte, senders string, err error) {
	t.Helper()
	table := &sources.Table{Patience: patience}
	var all *sources.Sources
	for _, f := range list {
		var leave func()
		all, leave = table.Join(desc.Digest, f)
		defer leave()
	}
	p, err := all.Part(t.Context(), desc, offset, length)
	if err != nil {
		return nil, "", err
	}
	defer p.Close()
	if start, end := p.Span(); start != offset || end != offset+length {
		t.Errorf("span %d to %d", start, end)
	}
	got, err = io.ReadAll(p)
	return got, strings.Join(p.Senders(), ", "), err
}

func TestParts(t *testing.T) {
	stalled := fmt.Errorf("nothing came: %w", registry.ErrStalled)
	for name, test := range map[string]struct {
		offset, length int64
		list           []*fake
		senders        string
		err            error
		asked          []int // how often each
	}{
		"one":                          {0, size, []*fake{{site: "a"}, {site: "b"}}, "a", nil, []int{1, 0}},
		"a range":                      {1000, 5000, []*fake{{site: "a"}, {site: "b"}}, "a", nil, []int{1, 0}},
		"first refuses":                {1000, 5000, []*fake{{site: "a", refuses: errDown}, {site: "b"}}, "b", nil, []int{1, 1}},
		"first fails":                  {1000, 5000, []*fake{{site: "a", err: errDown, cut: 2000}, {site: "b"}}, "a, b", nil, []int{1, 1}},
		"second knows no ranges":       {1000, 5000, []*fake{{site: "a", err: errDown, cut: 2000}, {site: "b", noRanges: true}}, "a, b", nil, []int{1, 1}},
		"first has another endpoint":   {0, size, []*fake{{site: "a", err: stalled, cut: 2000, endpoints: 1}, {site: "b"}}, "a, b", nil, []int{2, 1}},
		"first is slow":                {0, size, []*fake{{site: "a", pace: 1}, {site: "b"}}, "a, b", nil, []int{1, 1}},
		"slow, of the same registry":   {0, 200, []*fake{{site: "a", pace: 1}, {site: "a"}}, "a", nil, []int{1, 0}},
		"slow, alone":                  {0, 200, []*fake{{site: "a", pace: 1}}, "a", nil, []int{1}},
		"the other one is slower":      {0, 40_000, []*fake{{site: "a", pace: 400}, {site: "b", pace: 1}}, "a, b, a", nil, []int{2, 1}},
		"as slow":                      {0, 2000, []*fake{{site: "a", pace: 10}, {site: "b", pace: 10}}, "a, b", nil, []int{1, 1}},
		"the faster one fails at once": {0, 200, []*fake{{site: "a", pace: 1}, {site: "b", refuses: errDown}}, "a, a", nil, []int{2, 1}},
		"all fail":                     {0, size, []*fake{{site: "a", err: errDown, cut: 9}, {site: "b", err: stalled, cut: 99}}, "", errDown, []int{1, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, senders, err := read(t, test.offset, test.length, test.list...)
			if !errors.Is(err, test.err) {
				t.Fatalf("err = %v, want %v", err, test.err)
			}
			if err == nil && (!bytes.Equal(got, data[test.offset:test.offset+test.length]) || senders != test.senders) {
				t.Errorf("%d bytes of %q, want %q", len(got), senders, test.senders)
			}
			for i, f := range test.list {
				if n := len(f.requests()); n != test.asked[i] {
					t.Errorf("source %d was asked for %q, want %d requests", i, f.requests(), test.asked[i])
				}
			}
		})
	}
}

// A source that comes while a part waits for a slow one takes over at once.
func TestLateSource(t *testing.T) {
	table := &sources.Table{Patience: patience}
	slow, quick := &fake{site: "a", pace: 1}, &fake{site: "b"}
	all, leave := table.Join(desc.Digest, slow)
	p, err := all.Part(t.Context(), desc, 0, size)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for began := time.Now(); time.Since(began) < 2*patience; {
		if _, err := p.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	again, leaveToo := table.Join(desc.Digest, quick)
	if again != all {
		t.Error("other sources")
	}
	leave()
	if _, err := io.Copy(io.Discard, p); err != nil || len(quick.requests()) != 1 {
		t.Errorf("%v, asked for %q", err, quick.requests())
	}
	// What is opened now is asked of those that still wait.
	if q, err := all.Part(t.Context(), desc, 0, size); err != nil || len(quick.requests()) != 2 {
		t.Errorf("%v, asked for %q", err, quick.requests())
	} else {
		q.Close()
	}
	leaveToo()
	if anew, leave := table.Join(desc.Digest, quick); anew == all {
		t.Error("sources that everybody has left are used again")
	} else {
		leave()
	}
}

func TestCancelledPart(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	table := &sources.Table{Patience: patience}
	all, leave := table.Join(desc.Digest, &fake{site: "a", pace: 1})
	defer leave()
	other := &fake{site: "b"}
	p, err := all.Part(ctx, desc, 0, size)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, leave = table.Join(desc.Digest, other)
	defer leave()
	cancel(errDown)
	if _, err := p.Read(make([]byte, 9)); !errors.Is(err, errDown) || len(other.requests()) != 0 {
		t.Errorf("%v, the other one was asked for %q", err, other.requests())
	}
}

// A blob that was wrong is fetched from one server at a time, however slow; who sent all of a wrong one is out, as long as there are
// others, and each of these has its turn, whatever it did before.
func TestDistrust(t *testing.T) {
	table := &sources.Table{Patience: patience}
	a, b := &fake{site: "a", endpoints: -1}, &fake{site: "b", err: errDown, cut: size / 2}
	all, leave := table.Join(desc.Digest, b)
	defer leave()
	_, leave = table.Join(desc.Digest, a)
	defer leave()
	fetch := func(sure bool, want string) {
		t.Helper()
		p, err := all.Part(t.Context(), desc, 0, size)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if _, err := io.Copy(io.Discard, p); err != nil || strings.Join(p.Senders(), " ") != want {
			t.Errorf("sent by %q, %v, want %q", p.Senders(), err, want)
		}
		p.Blame(sure)
	}
	fetch(false, "b a")
	if !all.CanTryElsewhere() {
		t.Error("two of which one may be right, and none to try")
	}
	b.err = nil // each has another chance
	fetch(true, "b")
	a.pace = 16 << 10
	fetch(true, "a") // b would be faster
	if all.CanTryElsewhere() {
		t.Error("both are wrong, and are to be tried")
	}
	again := &fake{site: "b"}
	_, leave = table.Join(desc.Digest, again)
	defer leave()
	if all.CanTryElsewhere() {
		t.Error("who is wrong is to be tried for another pull")
	}
	c := &fake{site: "c", err: errDown, cut: 9}
	_, leave = table.Join(desc.Digest, c)
	defer leave()
	p, err := all.Part(t.Context(), desc, 0, size)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := io.Copy(io.Discard, p); !errors.Is(err, errDown) {
		t.Errorf("the rest is from who is wrong: %q, %v", p.Senders(), err)
	}
}
