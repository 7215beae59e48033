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
	"time"
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

	mu   sync.Mutex
	file *os.File
	// tails hold the beginning of a line whose end has not come yet, without its time: less than MaxLine bytes.
	tails [len(names)][]byte

	// lost is told without the lock, which a write to a disk that hangs holds.
	lost atomic.Int64
}

// Open opens or creates the log file at path and appends to it. With an empty path all output is discarded.
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
	// 0640: log shippers run with the file's group.
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return file, nil
}

// Reopen goes on in a new file at the log's path, after the old one was renamed. When it fails, the old file stays
// in use and no new one exists (CRI, ReopenContainerLog).
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
// container must not block: the bytes are counted as lost.
func (l *Log) Write(s Stream, at time.Time, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return
	}
	out := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(out)
	out.Reset()
	stamp := append(at.UTC().AppendFormat(nil, time.RFC3339Nano), ' ')
	stamp = append(append(stamp, names[s]...), ' ')
	content := 0
	for len(data) > 0 {
		tail := l.tails[s]
		room := MaxLine - len(tail)
		end := bytes.IndexByte(data[:min(len(data), room+1)], '\n')
		switch {
		case end >= 0:
			content += line(out, stamp, 'F', tail, data[:end])
			data = data[end+1:]
			l.tails[s] = nil
		case len(data) > room:
			content += line(out, stamp, 'P', tail, data[:room])
			data = data[room:]
			l.tails[s] = nil
		default:
			l.tails[s] = append(tail, data...)
			data = nil
		}
	}
	l.flush(out, content)
}

// Flush writes the unfinished line of a stream that has ended. Its tag is P: no newline was printed.
func (l *Log) Flush(s Stream, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil || len(l.tails[s]) == 0 {
		return
	}
	var out bytes.Buffer
	stamp := append(at.UTC().AppendFormat(nil, time.RFC3339Nano), ' ')
	stamp = append(append(stamp, names[s]...), ' ')
	content := line(&out, stamp, 'P', l.tails[s], nil)
	l.tails[s] = nil
	l.flush(&out, content)
}

// line appends one entry and returns its number of content bytes.
func line(out *bytes.Buffer, stamp []byte, tag byte, head, rest []byte) int {
	out.Write(stamp)
	out.WriteByte(tag)
	out.WriteByte(' ')
	out.Write(head)
	out.Write(rest)
	out.WriteByte('\n')
	return len(head) + len(rest)
}

func (l *Log) flush(out *bytes.Buffer, content int) {
	if out.Len() == 0 {
		return
	}
	n, err := l.file.Write(out.Bytes())
	if err != nil {
		l.lost.Add(int64(content))
		// A half-written entry would run into the next one and spoil it too.
		if n > 0 && out.Bytes()[n-1] != '\n' {
			_, _ = l.file.Write([]byte{'\n'})
		}
	}
}

// Lost is the number of content bytes in writes that failed.
func (l *Log) Lost() int64 { return l.lost.Load() }

// Close flushes both streams and closes the file; later writes are discarded.
func (l *Log) Close() error {
	now := time.Now()
	l.Flush(Stdout, now)
	l.Flush(Stderr, now)
	l.mu.Lock()
	file := l.file
	l.file = nil
	l.mu.Unlock()
	if file == nil {
		return nil
	}
	if err := file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close log: %w", err)
	}
	return nil
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}
