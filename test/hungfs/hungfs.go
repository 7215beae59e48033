// Package hungfs is a file system for tests that stops answering, as a network file system whose server is gone does.
package hungfs

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// FS is a mounted directory that can hang. Who asks it then is in uninterruptible sleep, and no signal ends that.
type FS struct {
	fuse.RawFileSystem
	// Dir is where it is mounted.
	Dir string

	mu   sync.Mutex
	gate chan struct{} // closed while it answers
}

// Mount mounts a file system, which answers until Hang is called, for the time of the test.
func Mount(t testing.TB) *FS {
	t.Helper()
	dir := t.TempDir()
	backing, mountpoint := filepath.Join(dir, "backing"), filepath.Join(dir, "hung")
	for _, d := range []string{backing, mountpoint} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := fs.NewLoopbackRoot(backing)
	if err != nil {
		t.Fatal(err)
	}
	var none time.Duration // the kernel asks each time
	f := &FS{
		RawFileSystem: fs.NewNodeFS(root, &fs.Options{EntryTimeout: &none, AttrTimeout: &none}),
		Dir:           mountpoint, gate: make(chan struct{}),
	}
	close(f.gate)
	server, err := fuse.NewServer(f, mountpoint, &fuse.MountOptions{DirectMountStrict: true, AllowOther: true, FsName: "hungfs", Name: "hungfs"})
	if err != nil {
		t.Fatalf("mount a FUSE file system: %v", err)
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Answer()
		// Not by the server, which waits until the last mount namespace that has a copy is gone. It ends with the process.
		if err := unix.Unmount(mountpoint, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", mountpoint, err)
		}
	})
	return f
}

// Hang keeps back every answer until Answer is called.
func (f *FS) Hang() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gate = make(chan struct{})
}

// Answer lets all go on. It is idempotent.
func (f *FS) Answer() {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.gate:
	default:
		close(f.gate)
	}
}

func (f *FS) wait() {
	f.mu.Lock()
	gate := f.gate
	f.mu.Unlock()
	<-gate
}

// Lookup and the rest are what can hang.
func (f *FS) Lookup(c <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	f.wait()
	return f.RawFileSystem.Lookup(c, h, name, out)
}

// GetAttr is stat(2).
func (f *FS) GetAttr(c <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.wait()
	return f.RawFileSystem.GetAttr(c, in, out)
}

// Open is open(2).
func (f *FS) Open(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.wait()
	return f.RawFileSystem.Open(c, in, out)
}

// Read is read(2).
func (f *FS) Read(c <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f.wait()
	return f.RawFileSystem.Read(c, in, buf)
}

// Write is write(2).
func (f *FS) Write(c <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f.wait()
	return f.RawFileSystem.Write(c, in, data)
}

// OpenDir is opendir(3).
func (f *FS) OpenDir(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.wait()
	return f.RawFileSystem.OpenDir(c, in, out)
}

// StatFs is statfs(2).
func (f *FS) StatFs(c <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	f.wait()
	return f.RawFileSystem.StatFs(c, in, out)
}
