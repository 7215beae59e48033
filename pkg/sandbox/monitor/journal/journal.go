// Package journal copies container output to systemd's journal, by its native protocol
// (https://systemd.io/JOURNAL_NATIVE_PROTOCOL). A journal that is slow or gone holds nobody up: what it does not take at once is
// dropped, counted, and told of in the journal.
package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// Socket is where the journal takes messages.
const Socket = "/run/systemd/journal/socket"

// Priorities of messages, as of syslog(3).
const (
	info    = 6
	err     = 3
	warning = 4
)

// Writer copies the output of one container. It is for one caller at a time.
type Writer struct {
	fd      int
	to      unix.SockaddrUnix
	fields  []byte // of each message
	buf     []byte
	dropped int
}

// Open returns a writer whose messages have the fields beside their own, such as CONTAINER_ID. The journal need not be there.
func Open(socket string, fields map[string]string) (*Writer, error) {
	w := &Writer{to: unix.SockaddrUnix{Name: socket}}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		w.fields = appendField(w.fields, name, []byte(fields[name]))
	}
	var e error
	if w.fd, e = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); e != nil {
		return nil, fmt.Errorf("open journal: %w", e)
	}
	return w, nil
}

// Close closes the writer.
func (w *Writer) Close() error { return unix.Close(w.fd) }

// Write copies a line of standard output or, with stderr, of standard error. One that is partial goes on in the next.
func (w *Writer) Write(line []byte, stderr, partial bool) {
	if w.dropped > 0 {
		notice := fmt.Appendf(nil, "criserver: %d lines before this one were not copied to the journal", w.dropped)
		if !w.send(notice, warning, false) {
			w.dropped++
			return
		}
		w.dropped = 0
	}
	priority := info
	if stderr {
		priority = err
	}
	if !w.send(line, priority, partial) {
		w.dropped++
	}
}

func (w *Writer) send(line []byte, priority int, partial bool) bool {
	b := fmt.Appendf(append(w.buf[:0], w.fields...), "PRIORITY=%d\n", priority)
	if partial {
		b = append(b, "CONTAINER_PARTIAL_MESSAGE=true\n"...)
	}
	w.buf = appendField(b, "MESSAGE", line)
	for {
		e := unix.Sendto(w.fd, w.buf, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, &w.to)
		if !errors.Is(e, unix.EINTR) {
			return e == nil
		}
	}
}

// appendField appends a field in the form for any bytes: a name, the length, the value.
func appendField(b []byte, name string, value []byte) []byte {
	b = binary.LittleEndian.AppendUint64(append(append(b, name...), '\n'), uint64(len(value)))
	return append(append(b, value...), '\n')
}
