// Package crilog writes container output in the CRI log format, which the kubelet reads:
//
//	2016-10-06T00:17:09.669794202Z stdout F The content of the log entry 1
//	2016-10-06T00:17:09.669794202Z stdout P First part of a line that goes on
//
// (design proposal "CRI: Log management for container stdout/stderr streams" of Kubernetes; the reader is
// k8s.io/cri-client/pkg/logs).
package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// MaxLine is the number of content bytes after which a line is split; a part that more follows has the tag P.
const MaxLine = 16 << 10

// Stream names the origin of a line.
type Stream int

// The streams.
const (
	Stdout Stream = iota
	Stderr
)

var names = [...]string{Stdout: "stdout", Stderr: "stderr"}

// Log is the log file of one container. Its methods may be called at the same time.
type Log struct {
	path string
	// lost is not guarded by mu, which is held across writes: a slow disk must not hold up those who ask.
	lost, dropped atomic.Int64

	mu   sync.Mutex
	file *os.File
	// tails hold the beginning of a line whose end has not come yet, without its time: less than MaxLine bytes.
	tails [len(names)][]byte
	// untold is how much of lost no notice in the log has told yet, cause the last error.
	untold   int64
	cause    error
	noticeAt time.Time
	limit    limit
	copy     Copy
}

// Copy takes what goes to the log, line by line, at once. One that is partial goes on in the next.
type Copy interface {
	Write(line []byte, stderr, partial bool)
	Close() error
}

// CopyTo has what is logged from then on copied, until Close, which closes the copy too. It is called before the first Write.
func (l *Log) CopyTo(c Copy) { l.copy = c }

// ErrFile tells that something is at the log's path that is no file to append to.
var ErrFile = errors.New("no regular file")

// Open opens or creates the log file at path and appends to it. With an empty path all output is discarded. ErrFile: a FIFO, a symbolic
// link or the like is there; /dev/null is allowed, and /dev/full, which stands for a full disk in tests.
func Open(path string) (*Log, error) {
	l := &Log{path: path}
	if path == "" {
		return l, nil
	}
	file, err := open(path)
	if err != nil {
		return nil, err
	}
	l.file = file
	return l, nil
}

func open(path string) (*os.File, error) {
	// O_NONBLOCK: a FIFO without a reader would be waited for; it means nothing to a regular file. 0640: log shippers run with the
	// file's group.
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o640)
	switch {
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EISDIR): // a FIFO or socket, a link, a directory
		return nil, fmt.Errorf("open log: %w: %w", ErrFile, err)
	case err != nil:
		return nil, fmt.Errorf("open log: %w", err)
	}
	if err := checkFile(file); err != nil {
		return nil, errors.Join(fmt.Errorf("open log %s: %w", path, err), file.Close())
	}
	return file, nil
}

// checkFile refuses what may hold up a write: a FIFO that has a reader opens without waiting, too.
func checkFile(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Mode&unix.S_IFMT == unix.S_IFCHR {
		if st.Rdev == unix.Mkdev(1, 3) || st.Rdev == unix.Mkdev(1, 7) { // null and full (Documentation/admin-guide/devices.txt)
			return nil
		}
	}
	if !info.Mode().IsRegular() {
		return ErrFile
	}
	return nil
}

// Reopen goes on in a new file at the log's path, after the old one was renamed. When it fails, the old file stays
// in use and no new one exists (CRI, ReopenContainerLog). ErrFile.
func (l *Log) Reopen() error {
	if l.path == "" {
		return nil
	}
	file, err := open(l.path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	old := l.file
	l.file = file
	l.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
	return nil
}

// Write logs data that a stream produced at the given time. It keeps what follows the last newline until the line
// ends, is MaxLine long, or Flush. An error of the file does not come back, since nobody could act on it and the
// container must not block: the entries are counted as lost, and a notice in the log tells of them once it can be
// written again.
func (l *Log) Write(s Stream, at time.Time, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return
	}
	buf := buffers.Get().(*[]byte)
	out, head := (*buf)[:0], header(s, at)
	l.limit.refill(at)
	for len(data) > 0 {
		tail := l.tails[s]
		room := MaxLine - len(tail)
		end := bytes.IndexByte(data[:min(len(data), room+1)], '\n')
		switch {
		case end >= 0:
			out = l.admit(out, head, 'F', tail, data[:end])
			data = data[end+1:]
			l.tails[s] = nil
		case len(data) > room:
			out = l.admit(out, head, 'P', tail, data[:room])
			data = data[room:]
			l.tails[s] = nil
		default:
			l.tails[s] = append(tail, data...)
			data = nil
		}
		if len(out) >= maxWrite {
			l.put(out, len(head), at)
			out = out[:0]
		}
	}
	l.put(out, len(head), at)
	*buf = out
	buffers.Put(buf)
}

// maxWrite is about how much is written at once: entries of short lines are many times as long as the lines.
const maxWrite = 256 << 10

var buffers = sync.Pool{New: func() any { return new([]byte) }}

// Flush writes the unfinished line of a stream that has ended. Its tag is P: no newline was printed.
func (l *Log) Flush(s Stream, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil || len(l.tails[s]) == 0 {
		return
	}
	head := header(s, at)
	out := entry(nil, head, 'P', l.tails[s], nil)
	l.tails[s] = nil
	l.put(out, len(head), at)
}

// header is the beginning of the entries of one moment, with room for the tag.
func header(s Stream, at time.Time) []byte {
	head := at.UTC().AppendFormat(make([]byte, 0, 48), time.RFC3339Nano)
	head = append(append(head, ' '), names[s]...)
	return append(head, " ? "...)
}

// entry appends one entry, whose content is tail and rest.
func entry(out, head []byte, tag byte, tail, rest []byte) []byte {
	head[len(head)-2] = tag
	out = append(out, head...)
	out = append(out, tail...)
	out = append(out, rest...)
	return append(out, '\n')
}

// put writes entries whose headers are head bytes long.
func (l *Log) put(out []byte, head int, at time.Time) {
	if len(out) == 0 {
		return
	}
	l.copyOut(out, head)
	n := 0
	err := l.notice(at)
	if err == nil {
		n, err = l.write(out)
	}
	if err != nil {
		content := lostContent(out[n:], head)
		l.lost.Add(content)
		l.untold += content
		l.cause = err
	}
}

// copyOut hands entries to the copy, whether or not they get into the file.
func (l *Log) copyOut(entries []byte, head int) {
	if l.copy == nil {
		return
	}
	for len(entries) > 0 {
		end := head + bytes.IndexByte(entries[head:], '\n')
		stderr := bytes.HasSuffix(entries[:head-len("? ")], []byte(names[Stderr]+" "))
		l.copy.Write(entries[head:end], stderr, entries[head-2] == 'P')
		entries = entries[end+1:]
	}
}

// write returns how many bytes of whole entries are in the file.
func (l *Log) write(out []byte) (int, error) {
	n, err := l.file.Write(out)
	if err == nil {
		return n, nil
	}
	whole := bytes.LastIndexByte(out[:n], '\n') + 1
	// A torn entry would run into the next one and spoil it too. Nobody else writes to the file.
	if whole < n {
		if st, statErr := l.file.Stat(); statErr == nil {
			_ = l.file.Truncate(st.Size() - int64(n-whole))
		}
	}
	return whole, err
}

// lostContent counts the bytes of entries without their headers and newlines.
func lostContent(entries []byte, head int) (n int64) {
	for len(entries) > 0 {
		end := head + bytes.IndexByte(entries[head:], '\n')
		n += int64(end - head)
		entries = entries[end+1:]
	}
	return n
}

// noticeEvery keeps notices few while a disk is full by turns.
const noticeEvery = time.Second

// notice tells of lost output in the log itself, as a line of stderr.
func (l *Log) notice(at time.Time) error {
	if l.untold+l.limit.untold == 0 || at.Sub(l.noticeAt) < noticeEvery && at.After(l.noticeAt) {
		return nil
	}
	var out []byte
	head := header(Stderr, at)
	if l.untold > 0 {
		var errno syscall.Errno
		reason := "the log could not be written"
		if errors.As(l.cause, &errno) {
			reason = errno.Error()
		}
		out = entry(out, head, 'F', nil, fmt.Appendf(nil, "criserver: %d bytes of output were lost before this line: %s", l.untold, reason))
	}
	if l.limit.untold > 0 {
		out = entry(out, head, 'F', nil, fmt.Appendf(nil, "criserver: %d bytes of output were dropped before this line: more than %d bytes a second",
			l.limit.untold, l.limit.rate))
	}
	if _, err := l.write(out); err != nil {
		return err
	}
	l.untold, l.limit.untold, l.noticeAt = 0, 0, at
	return nil
}

// Lost is the number of bytes that the container printed and that could not be written, newlines not counted.
func (l *Log) Lost() int64 { return l.lost.Load() }

// Dropped is the number of bytes that were above the limit, newlines not counted.
func (l *Log) Dropped() int64 { return l.dropped.Load() }

// Close flushes both streams and closes the file; later writes are discarded.
func (l *Log) Close() error {
	now := time.Now()
	l.Flush(Stdout, now)
	l.Flush(Stderr, now)
	l.mu.Lock()
	file := l.file
	if file != nil {
		l.noticeAt = time.Time{}
		_ = l.notice(now) // what stays untold is still in Lost
	}
	l.file = nil
	if l.copy != nil {
		_ = l.copy.Close()
		l.copy = nil
	}
	l.mu.Unlock()
	if file == nil {
		return nil
	}
	if err := file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close log: %w", err)
	}
	return nil
}
