package hostpath

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/hostpath/probe"
	"criserver/pkg/sandbox/spec"
	"criserver/test/hungfs"
)

// The test binary is the probe.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "file" {
		err := probe.Copy(os.Stdout, os.Args[2])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(probe.Code(err))
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "look" {
		probe.Look(os.Args[2])
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "probe" {
		path, err := probe.Resolve(os.Args[2])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(probe.Code(err))
		}
		fmt.Print(path)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func newResolver() *Resolver { return &Resolver{Probe: []string{"/proc/self/exe", "probe"}} }

func nothing(string) {}

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(dir, "real"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := newResolver().Resolve(t.Context(), []spec.Mount{
		{Source: filepath.Join(dir, "link"), Destination: "/a", ReadOnly: true}, {Source: filepath.Join(dir, "new/dir"), Destination: "/b"},
	}, nothing)
	if err != nil || got[0].Source != filepath.Join(dir, "real") || !got[0].ReadOnly || got[1].Source != filepath.Join(dir, "new/dir") {
		t.Errorf("got %+v, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "new/dir")); err != nil || !info.IsDir() {
		t.Errorf("a missing source was not made: %v", err)
	}
}

// What no file system is to blame for is the caller's fault, of a mount and of a directory for logs.
func TestUnusablePaths(t *testing.T) {
	dir := t.TempDir()
	file, circle, dangling := filepath.Join(dir, "file"), filepath.Join(dir, "circle"), filepath.Join(dir, "dangling")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink(circle, circle), os.Symlink(dir+"/none", dangling)); err != nil {
		t.Fatal(err)
	}
	r := newResolver()
	for _, path := range []string{file + "/x", circle, dangling, "/proc/none", filepath.Join(dir, strings.Repeat("x", 300))} {
		_, err := r.Resolve(t.Context(), []spec.Mount{{Source: path, Destination: "/c"}}, nothing)
		if !errors.Is(err, spec.ErrInvalid) || !strings.HasPrefix(err.Error(), "mounts.host_path: for /c: ") || !strings.Contains(err.Error(), path) {
			t.Errorf("mount of %s: %v", path, err)
		}
		if err := r.MakeDir(t.Context(), path, func() {}); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), dir) && path != "/proc/none" {
			t.Errorf("directory %s: %v", path, err)
		}
	}
	err := r.MakeDir(t.Context(), file, func() {})
	if _, known := IsDir(file); known && (!errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), file)) {
		t.Errorf("a file as a directory: %v", err)
	}
	if _, err := r.Resolve(t.Context(), []spec.Mount{{Source: file, Destination: "/c"}}, nothing); err != nil {
		t.Errorf("mount of a file: %v", err)
	}
}

// What the kernel has in its caches, of a file system of this machine, needs no process.
func TestQuick(t *testing.T) {
	if _, err := unix.Openat2(unix.AT_FDCWD, os.TempDir(), &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolveCached}); errors.Is(err, unix.EAGAIN) {
		t.Skip("the kernel does not find " + os.TempDir() + " in its caches: an overlay over a network file system asks that each time")
	}
	dir := t.TempDir()
	var table mountTable
	if got, ok := quick(dir, &table); !ok || got != dir {
		t.Errorf("%s: %q, %t", dir, got, ok)
	}
	if _, ok := quick(filepath.Join(dir, "none"), &table); ok {
		t.Error("a path that is not there")
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, ok := quick(dir, &table); ok {
		t.Error("a directory that was removed")
	}
}

func TestHungFileSystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	hung := hungfs.Mount(t)
	inside, link := filepath.Join(hung.Dir, "a/b"), filepath.Join(t.TempDir(), "link")
	if err := os.MkdirAll(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(inside, link); err != nil {
		t.Fatal(err)
	}
	r := newResolver()
	all := []spec.Mount{{Source: hung.Dir, Destination: "/root"}, {Source: inside, Destination: "/in"}, {Source: link, Destination: "/link"}}
	if got, err := r.Resolve(t.Context(), all, nothing); err != nil || got[2].Source != inside {
		t.Errorf("while it answers: %+v, %v", got, err)
	}
	hung.Hang()
	var wg sync.WaitGroup
	for _, m := range all {
		for range 5 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
				waited := ""
				_, err := r.Resolve(ctx, []spec.Mount{m}, func(s string) { waited = s })
				if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), m.Source+" does not answer") || waited != m.Source {
					t.Errorf("%s: %v; waited for %q", m.Source, err, waited)
				}
			})
		}
	}
	wg.Wait()
	if n := threadsInSleep(t); n > 0 {
		t.Errorf("%d threads of this process are in uninterruptible sleep", n)
	}
	if n := probesRunning(t); n != len(all) {
		t.Errorf("%d processes ask for %d paths", n, len(all))
	}
	if got, err := r.Resolve(t.Context(), []spec.Mount{{Source: "/proc", Destination: "/p"}}, nothing); err != nil || got[0].Source != "/proc" {
		t.Errorf("another path: %+v, %v", got, err)
	}
	hung.Answer()
	for deadline := time.Now().Add(10 * time.Second); probesRunning(t) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("processes are left")
		}
	}
	if _, err := r.Resolve(t.Context(), all, nothing); err != nil {
		t.Errorf("after it answers again: %v", err)
	}
}

// threadsInSleep counts the threads of this process in state D (proc_pid_stat(5)).
func threadsInSleep(t *testing.T) (n int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/self/task/*/stat")
	if err != nil || len(stats) == 0 {
		t.Fatal(err)
	}
	for _, s := range stats {
		if data, _ := os.ReadFile(s); strings.Contains(string(data), ") D ") {
			n++
		}
	}
	return n
}

func probesRunning(t *testing.T) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, _ := os.ReadFile(f)
		n += len(strings.Fields(string(data)))
	}
	return n
}

func BenchmarkResolve(b *testing.B) {
	mounts := []spec.Mount{{Source: b.TempDir()}, {Source: "/etc/hosts"}, {Source: "/dev/shm"}, {Source: "/proc"}}
	r := newResolver()
	for b.Loop() {
		if _, err := r.Resolve(b.Context(), mounts, nothing); err != nil {
			b.Fatal(err)
		}
	}
}

func TestCrosses(t *testing.T) {
	table := newMountTable([]byte("1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / /mnt/nfs\\040x rw shared:1 - nfs4 a:/ rw\n" +
		"3 2 0:6 / /mnt/nfs\\040x/tmp rw - tmpfs t rw\n4 1 0:7 / /dev/shm rw - tmpfs t rw\n"))
	for path, want := range map[string]bool{
		"/": false, "/etc": false, "/mnt": false, "/mnt/nfs x": true, "/mnt/nfs x/tmp/f": true, "/mnt/nfs xy": false, "/dev/shm/f": false,
	} {
		if got := table.crosses(path); got != want {
			t.Errorf("%s: %t, want %t", path, got, want)
		}
	}
	if newMountTable([]byte("1 0 0:1 / / rw - 9p root rw\n")).crosses("/etc") != true {
		t.Error("below a root that could hang")
	}
}
