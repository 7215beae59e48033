package crilog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var at = time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)

func newLog(t *testing.T) (*Log, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, path
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

const stamp = "2026-01-02T03:04:05.000000678Z "

func TestFormat(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	for name, c := range map[string]struct {
		writes []string
		want   string
	}{
		"one line":         {[]string{"hello\n"}, stamp + "stdout F hello\n"},
		"empty line":       {[]string{"\n"}, stamp + "stdout F \n"},
		"two in one write": {[]string{"a\nb\n"}, stamp + "stdout F a\n" + stamp + "stdout F b\n"},
		"one in two":       {[]string{"he", "llo\n"}, stamp + "stdout F hello\n"},
		"no newline":       {[]string{"tail"}, stamp + "stdout P tail\n"},
		"just the limit":   {[]string{long + "\n"}, stamp + "stdout F " + long + "\n"},
		"over the limit":   {[]string{long + "y\n"}, stamp + "stdout P " + long + "\n" + stamp + "stdout F y\n"},
		"limit in pieces":  {[]string{long[1:], "xy", "\n"}, stamp + "stdout P " + long + "\n" + stamp + "stdout F y\n"},
		"not text":         {[]string{"\xff\x00\r\n"}, stamp + "stdout F \xff\x00\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			l, path := newLog(t)
			for _, w := range c.writes {
				l.Write(Stdout, at, []byte(w))
			}
			l.Flush(Stdout, at)
			if got := read(t, path); got != c.want {
				t.Errorf("log:\n%.200q\nwant:\n%.200q", got, c.want)
			}
		})
	}
}

func TestStreamsKeepTheirOwnTails(t *testing.T) {
	l, path := newLog(t)
	l.Write(Stdout, at, []byte("out "))
	l.Write(Stderr, at, []byte("err\n"))
	l.Write(Stdout, at, []byte("more\n"))
	if got, want := read(t, path), stamp+"stderr F err\n"+stamp+"stdout F out more\n"; got != want {
		t.Errorf("log = %q, want %q", got, want)
	}
}

// Whatever pieces the output comes in, the lines are the same.
func TestPiecesDoNotMatter(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	for range 300 {
		b.WriteString(strings.Repeat("z", rng.IntN(3*MaxLine)*rng.IntN(2)))
		b.WriteByte('\n')
	}
	text := b.String()
	whole, wholePath := newLog(t)
	whole.Write(Stdout, at, []byte(text))
	pieces, piecesPath := newLog(t)
	for rest := text; rest != ""; {
		n := min(len(rest), 1+rng.IntN(2*MaxLine))
		pieces.Write(Stdout, at, []byte(rest[:n]))
		rest = rest[n:]
	}
	if read(t, wholePath) != read(t, piecesPath) {
		t.Error("the log depends on how the output was cut")
	}
}

func TestReopen(t *testing.T) {
	l, path := newLog(t)
	l.Write(Stdout, at, []byte("one\ntw"))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	l.Write(Stdout, at, []byte("o\n"))
	if got := read(t, path+".1"); got != stamp+"stdout F one\n" {
		t.Errorf("old log = %q", got)
	}
	if got := read(t, path); got != stamp+"stdout F two\n" {
		t.Errorf("new log = %q", got)
	}
	// When it fails, the old file stays in use and no new one exists.
	dir := filepath.Dir(path)
	if err := os.Rename(dir, dir+".gone"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Rename(dir+".gone", dir) })
	if err := l.Reopen(); err == nil {
		t.Fatal("reopen in a missing directory succeeded")
	}
	l.Write(Stdout, at, []byte("three\n"))
	if got := read(t, filepath.Join(dir+".gone", "0.log")); !strings.HasSuffix(got, "three\n") {
		t.Errorf("log = %q", got)
	}
}

// TestOnlyFiles has other things at the log's path: they are refused at once, also when the log is reopened, which then goes on in the
// old file.
func TestOnlyFiles(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"FIFO": func(path string) error { return unix.Mkfifo(path, 0o600) },
		"FIFO with a reader": func(path string) error {
			err := unix.Mkfifo(path, 0o600)
			if err == nil {
				var reader *os.File
				if reader, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
					t.Cleanup(func() { _ = reader.Close() })
				}
			}
			return err
		},
		"link to a file":  func(path string) error { return os.Symlink("/etc/hostname", path) },
		"link to nowhere": func(path string) error { return os.Symlink("made", path) },
		"directory":       func(path string) error { return os.Mkdir(path, 0o700) },
		"socket":          func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o600, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			l, path := newLog(t)
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
			if err := put(path); err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				if _, err := Open(path); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), path) {
					t.Errorf("open: %v", err)
				}
				if err := l.Reopen(); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), path) {
					t.Errorf("reopen: %v", err)
				}
			}()
			select {
			case <-done:
			case <-time.After(10 * time.Second):
				t.Fatal("it is waited for")
			}
			l.Write(Stdout, at, []byte("one\n"))
			if got := read(t, path+".1"); got != stamp+"stdout F one\n" {
				t.Errorf("old log = %q", got)
			}
			if _, err := os.Lstat(filepath.Join(filepath.Dir(path), "made")); err == nil {
				t.Error("a link was followed")
			}
		})
	}
	if _, err := Open("/dev/zero"); !errors.Is(err, ErrFile) {
		t.Errorf("another device than null and full: %v", err)
	}
}

func TestLostBytesAreCounted(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("no /dev/full")
	}
	l, err := Open("/dev/full")
	if err != nil {
		t.Fatal(err)
	}
	l.Write(Stdout, at, []byte("12345\n"))
	if got := l.Lost(); got != 5 {
		t.Errorf("lost = %d, want 5", got)
	}
}

func BenchmarkWrite(b *testing.B) {
	l, err := Open(os.DevNull)
	if err != nil {
		b.Fatal(err)
	}
	data := []byte(strings.Repeat(strings.Repeat("x", 99)+"\n", 640))
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		l.Write(Stdout, at, data)
	}
}

// copied is a copy that remembers.
type copied struct {
	lines  []string
	closed bool
}

func (c *copied) Write(line []byte, stderr, partial bool) {
	c.lines = append(c.lines, fmt.Sprintf("%s stderr=%t partial=%t", line, stderr, partial))
}

func (c *copied) Close() error { c.closed = true; return nil }

func TestCopyTo(t *testing.T) {
	l, _ := newLog(t)
	c := &copied{}
	l.CopyTo(c)
	l.Write(Stdout, at, []byte("stdout stderr\n\n"))
	l.Write(Stderr, at, []byte("bad\nunfinished"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"stdout stderr stderr=false partial=false", " stderr=false partial=false", "bad stderr=true partial=false",
		"unfinished stderr=true partial=true",
	}
	if !slices.Equal(c.lines, want) || !c.closed {
		t.Errorf("copied %q, closed %t, want %q", c.lines, c.closed, want)
	}
}
