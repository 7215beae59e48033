package hostpath

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/hostpath/probe"
	"criserver/test/hungfs"
)

func testFiles(program ...string) Files {
	return Files{Program: program, Asker: &Asker{Program: []string{"/proc/self/exe", "look"}}}
}

func brief(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// settle waits until the processes of a test have ended.
func settle(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); probesRunning(t) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("processes are left")
		}
	}
}

func TestMakeDir(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "real"), 0o755), os.Symlink("real", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	r := newResolver()
	for path, is := range map[string]string{
		"new/a/b": "new/a/b", "link/c": "real/c", "real/../new/../real/d/": "real/d", "link": "real",
	} {
		if err := r.MakeDir(t.Context(), filepath.Join(dir, path), func() {}); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if info, err := os.Lstat(filepath.Join(dir, is)); err != nil || !info.IsDir() {
			t.Errorf("%s was not made: %v", path, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.MakeDir(t.Context(), filepath.Join(dir, "file/x"), func() {}); err == nil || !strings.Contains(err.Error(), "file/x") {
		t.Errorf("below a file: %v", err)
	}
}

// What the kernel knows to be on a file system of this machine takes no process.
func TestMakeDirHere(t *testing.T) {
	var table mountTable
	dir := t.TempDir()
	if _, ok := quick(dir, &table); !ok {
		t.Skip("the kernel does not find " + dir + " in its caches: an overlay over a network file system asks that each time")
	}
	nobody := &Resolver{Probe: []string{"/no/such/program"}}
	for _, path := range []string{"a/b/c", "a/b/c", "a/b/d"} {
		if err := nobody.MakeDir(t.Context(), filepath.Join(dir, path), func() { t.Error("it waits") }); err != nil {
			t.Error(err)
		}
	}
}

func TestMakeDirHung(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	hung := hungfs.Mount(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(hung.Dir, link); err != nil {
		t.Fatal(err)
	}
	r := newResolver()
	if err := r.MakeDir(t.Context(), filepath.Join(hung.Dir, "a/b"), func() {}); err != nil {
		t.Errorf("while it answers: %v", err)
	}
	hung.Hang()
	for _, path := range []string{filepath.Join(hung.Dir, "x/y"), filepath.Join(link, "z"), filepath.Join(hung.Dir, "a/b")} {
		waited := 0
		err := r.MakeDir(brief(t), path, func() { waited++ })
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), path+" does not answer") || waited != 1 {
			t.Errorf("%s: %v; it waited %d times", path, err, waited)
		}
	}
	if n := threadsInSleep(t); n > 0 {
		t.Errorf("%d threads of this process are in uninterruptible sleep", n)
	}
	hung.Answer()
	settle(t)
}

// Who asks, for a file or otherwise, is told in time, and no thread of this process waits.
func TestAskHung(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	hung := hungfs.Mount(t)
	link, file := filepath.Join(t.TempDir(), "link"), filepath.Join(hung.Dir, "file")
	if err := errors.Join(os.Symlink(file, link), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	asker := &Asker{Program: []string{"/proc/self/exe", "look"}}
	called := 0
	ask := func(ctx context.Context, path string) error {
		_, err := Ask(ctx, asker, path, func() (struct{}, error) { called++; return struct{}{}, nil })
		return err
	}
	paths := []string{file, link, filepath.Join(hung.Dir, "none/below"), hung.Dir}
	for _, path := range paths {
		if err := ask(t.Context(), path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := Below(t.Context(), asker, filepath.Dir(hung.Dir)); err != nil {
		t.Error(err)
	}
	hung.Hang()
	if err := Below(brief(t), asker, filepath.Dir(hung.Dir)); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), hung.Dir+" does not answer") {
		t.Errorf("a directory with a mount that hangs: %v", err)
	}
	for range 2 {
		for _, path := range paths {
			if err := ask(brief(t), path); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), path+" does not answer") {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	if n := threadsInSleep(t); n > 0 || called != len(paths) {
		t.Errorf("%d threads of this process are in uninterruptible sleep; called %d times, want %d", n, called, len(paths))
	}
	if n := probesRunning(t); n > len(paths) {
		t.Errorf("%d processes ask for %d paths", n, len(paths))
	}
	hung.Answer()
	settle(t)
}

// What is of this machine takes no process, in the kernel's caches or not, there or not.
func TestAskHere(t *testing.T) {
	dir := t.TempDir()
	var table mountTable
	if _, ok := quick(dir, &table); !ok {
		t.Skip("the kernel does not find " + dir + " in its caches: an overlay over a network file system asks that each time")
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "a/b"), 0o755), os.WriteFile(filepath.Join(dir, "a/b/f"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0o600); err != nil {
		t.Logf("the kernel's caches are as they are: %v", err)
	}
	nobody := &Asker{Program: []string{"/no/such/program"}}
	for _, path := range []string{"a/b/f", "a/b", "none", "a/none/below", "a/b/f/below"} {
		if _, err := Ask(t.Context(), nobody, filepath.Join(dir, path), func() (struct{}, error) { return struct{}{}, nil }); err != nil {
			t.Error(err)
		}
	}
}

func TestOpen(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	hung := hungfs.Mount(t)
	files := testFiles("/proc/self/exe", "file")
	content := bytes.Repeat([]byte("content "), 1<<17)
	for _, dir := range []string{t.TempDir(), hung.Dir} {
		in := func(name string) string { return filepath.Join(dir, name) }
		if err := errors.Join(os.WriteFile(in("file"), content, 0o600), os.WriteFile(in("empty"), nil, 0o600), unix.Mkfifo(in("fifo"), 0o600)); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string][]byte{"file": content, "empty": nil} {
			f, err := files.Open(t.Context(), in(name))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(f)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, %v, want %d", in(name), len(got), err, len(want))
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
		for name, want := range map[string]error{"none": os.ErrNotExist, "fifo": probe.ErrIrregular, ".": probe.ErrIrregular} {
			if _, err := files.Open(t.Context(), in(name)); !errors.Is(err, want) || !strings.Contains(err.Error(), filepath.Clean(in(name))) {
				t.Errorf("%s: %v, want %v", in(name), err, want)
			}
		}
	}
	settle(t)
}

func TestOpenHung(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	hung := hungfs.Mount(t)
	path := filepath.Join(hung.Dir, "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The kernel has read ahead what there is: one that stops in the middle must be made.
	files := testFiles("/bin/sh", "-c", `cat "$0"; exec sleep 1000`)
	ctx, giveUp := context.WithCancelCause(t.Context())
	f, err := files.Open(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() { giveUp(context.DeadlineExceeded) })
	if n, err := io.Copy(io.Discard, f); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), path+" does not answer") {
		t.Errorf("after %d bytes: %v", n, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	files = testFiles("/proc/self/exe", "file")
	hung.Hang()
	if _, err := files.Open(brief(t), path); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), path+" does not answer") {
		t.Errorf("when it hangs already: %v", err)
	}
	if n := threadsInSleep(t); n > 0 {
		t.Errorf("%d threads of this process are in uninterruptible sleep", n)
	}
	hung.Answer()
	settle(t)
}
