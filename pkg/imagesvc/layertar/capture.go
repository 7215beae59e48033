package layertar

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// queued is how many blocks of the tar may wait to be taken apart: 512 KiB.
const queued = 4

var blocks = sync.Pool{New: func() any { return new([blockSize]byte) }}

// Capture returns a reader of what r has, the uncompressed tar of a layer, and writes to w, while that is read, what
// Rebuild and Verify need. The work is done in a goroutine beside, which keeps a bounded amount in memory.
//
// The finish function must be called, after the last Read. It waits for the goroutine and returns nil if r was read to
// io.EOF and all is in w. Otherwise w has nothing of use: ErrNotExact, with the reason, if the tar has something that
// unpacking does not keep: a name twice, in whatever forms; a name below one that is no directory, as those behind a
// symbolic link are; sparse files; content of entries that are not unpacked. Reading goes on undisturbed then: whether
// a tar can be rebuilt does not matter to unpacking it.
func Capture(r io.Reader, w io.Writer) (io.Reader, func() error) {
	c := &capture{
		r:     r,
		queue: make(chan block, queued),
		done:  make(chan struct{}),
	}
	go func() {
		defer close(c.done)
		c.err = c.run(w)
	}()
	return c, c.finish
}

type block struct {
	data *[blockSize]byte
	n    int
}

// capture hands blocks from the reader's goroutine to its own, which ends at a closed queue or at an error before.
type capture struct {
	r       io.Reader
	filling block
	end     error // what r ended with

	queue  chan block
	closed bool
	done   chan struct{}
	err    error // valid when done is closed
}

// Read implements io.Reader.
func (c *capture) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		if c.filling.data == nil {
			c.filling.data = blocks.Get().(*[blockSize]byte)
		}
		copied := copy(c.filling.data[c.filling.n:], rest)
		rest = rest[copied:]
		if c.filling.n += copied; c.filling.n == blockSize {
			c.send()
		}
	}
	if err != nil {
		c.end = err
	}
	return n, err
}

func (c *capture) send() {
	if c.filling.data == nil {
		return
	}
	select {
	case c.queue <- c.filling:
	case <-c.done: // nobody needs it any more
		blocks.Put(c.filling.data)
	}
	c.filling = block{}
}

func (c *capture) finish() error {
	if !c.closed {
		c.closed = true
		c.send()
		close(c.queue)
	}
	<-c.done
	switch {
	case c.err != nil && errors.Is(c.end, io.EOF):
		return c.err
	case c.end == nil:
		return errors.New("capture tar: it was not read to its end")
	case !errors.Is(c.end, io.EOF):
		return fmt.Errorf("capture tar: %w", c.end)
	}
	return nil
}

// encoders are used again: each has some MiB.
var encoders sync.Pool

func newEncoder(w io.Writer) (*zstd.Encoder, error) {
	if e, ok := encoders.Get().(*zstd.Encoder); ok {
		e.Reset(w)
		return e, nil
	}
	return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(256<<10), zstd.WithLowerEncoderMem(true))
}

// run takes the tar apart and compresses what is to be kept.
func (c *capture) run(w io.Writer) error {
	compressed, err := newEncoder(w)
	if err != nil {
		return fmt.Errorf("start compressing tar metadata: %w", err)
	}
	defer encoders.Put(compressed)
	source := &queueReader{queue: c.queue}
	err = disassemble(source, compressed)
	source.release()
	return errors.Join(err, compressed.Close())
}

var errLimit = fmt.Errorf("a header of more than %d bytes", maxHeader)

// queueReader reads the blocks of a queue.
type queueReader struct {
	queue chan block
	cur   block
	off   int
	read  int64
	limit int64 // of read, unless it is 0
}

func (q *queueReader) Read(p []byte) (int, error) {
	if q.limit > 0 {
		if q.read >= q.limit {
			return 0, errLimit
		}
		p = p[:min(int64(len(p)), q.limit-q.read)]
	}
	if q.off == q.cur.n {
		q.release()
		next, ok := <-q.queue
		if !ok {
			return 0, io.EOF
		}
		q.cur = next
	}
	n := copy(p, q.cur.data[q.off:q.cur.n])
	q.off += n
	q.read += int64(n)
	return n, nil
}

func (q *queueReader) release() {
	if q.cur.data != nil {
		blocks.Put(q.cur.data)
	}
	q.cur, q.off = block{}, 0
}
