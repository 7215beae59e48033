package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"criserver/pkg/sandbox/monitor"
	"criserver/pkg/sandbox/monitor/crilog"
	"criserver/pkg/sandbox/monitor/pump"
	"criserver/pkg/sandbox/runtime"
)

// stream copies a pipe into a log, as for a container, until the returned function has closed both.
func stream(t testing.TB, path string) (*os.File, *crilog.Log, func()) {
	t.Helper()
	r, w, err := runtime.NewPipe("output", runtime.ReadEnd)
	if err != nil {
		t.Fatal(err)
	}
	log, err := crilog.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		pump.Run(r, func(at time.Time, data []byte) { log.Write(crilog.Stdout, at, data) })
	}()
	return w, log, func() {
		_ = w.Close()
		<-ended
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Each line is numbered; some are longer than an entry. They come in pieces that end anywhere, at far more than
// 100,000 lines a second, while the file is replaced again and again.
func TestRotationKeepsEveryLine(t *testing.T) {
	const lines, reopenings = 500_000, 50
	path := filepath.Join(t.TempDir(), "log")
	w, log, end := stream(t, path)
	var text bytes.Buffer
	for i := range lines {
		fmt.Fprintf(&text, "%d", i)
		if i%5000 == 4999 {
			text.WriteString(strings.Repeat(" ", 50_000))
		}
		text.WriteByte('\n')
	}
	start := time.Now()
	written := make(chan error, 1)
	turn := make(chan struct{}, 1) // the writer goes on while the file is replaced
	go func() {
		defer close(turn)
		rest := text.Bytes()
		for i := 0; len(rest) > 0; i++ {
			n := min(len(rest), 4001)
			if _, err := w.Write(rest[:n]); err != nil {
				written <- err
				return
			}
			if rest = rest[n:]; i%20 == 0 {
				turn <- struct{}{}
			}
		}
		written <- nil
	}()
	rotated := 0
	for range turn {
		if err := os.Rename(path, fmt.Sprintf("%s.%d", path, rotated)); err != nil {
			t.Fatal(err)
		}
		if err := log.Reopen(); err != nil {
			t.Fatal(err)
		}
		rotated++
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	end()
	if rate := lines / time.Since(start).Seconds(); rate < 100_000 || rotated < reopenings {
		t.Errorf("%.0f lines a second and %d reopenings prove too little", rate, rotated)
	}
	var got strings.Builder
	for i := range rotated {
		got.WriteString(content(t, fmt.Sprintf("%s.%d", path, i)))
	}
	got.WriteString(content(t, path))
	next := 0
	for line := range strings.Lines(got.String()) {
		if n, err := strconv.Atoi(strings.TrimRight(line, " \n")); err != nil || n != next {
			t.Fatalf("line %d is %.80q", next, line)
		}
		next++
	}
	if next != lines {
		t.Errorf("%d lines, want %d", next, lines)
	}
}

// A line of 10 MB with every byte but the newline, which does not end, comes back as it was.
func TestLongBinaryLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, _, end := stream(t, path)
	text := make([]byte, 10_000_000)
	for i := range text {
		if text[i] = byte(i * 7); text[i] == '\n' {
			text[i] = 0
		}
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	end()
	if got := content(t, path); got != string(text) {
		t.Errorf("%d bytes came back, or others", len(got))
	}
}

// A log that cannot be written holds up nobody, and who watches the container learns of it while it runs.
func TestLossIsReported(t *testing.T) {
	f := newFixture(t, nil)
	bundle := f.bundle("a", "echo 12345; sleep 100")
	if _, err := f.Create(t.Context(), monitor.CreateRequest{ID: "a", Bundle: bundle, LogPath: "/dev/full"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Delete(context.Background(), "a", bundle); err != nil {
			t.Error(err)
		}
	})
	if _, err := f.Start(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var lost int64
	err := f.Watch(ctx, func(e monitor.Event) {
		if e.State != nil && e.State.LogBytesLost > 0 {
			lost = e.State.LogBytesLost
			cancel()
		}
	})
	if lost != 5 {
		t.Errorf("%d bytes lost, want 5: %v", lost, err)
	}
}

// BenchmarkPump is the way from a container's write to the log file.
func BenchmarkPump(b *testing.B) {
	line := strings.Repeat("x", 99) + "\n"
	for name, lines := range map[string]int{"blocks": 640, "unbuffered": 1} {
		b.Run(name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "log")
			w, log, end := stream(b, path)
			data := []byte(strings.Repeat(line, lines))
			b.SetBytes(int64(len(data)))
			written := 0
			for b.Loop() {
				if _, err := w.Write(data); err != nil {
					b.Fatal(err)
				}
				if written += len(data); written > 256<<20 { // as the kubelet rotates
					written = 0
					if err := errors.Join(os.Remove(path), log.Reopen()); err != nil {
						b.Fatal(err)
					}
				}
			}
			end()
		})
	}
}
