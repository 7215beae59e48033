package quota_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot/quota"
	"criserver/pkg/snapshot/quota/quotatest"
)

func open(t testing.TB, dir string) *quota.FS {
	t.Helper()
	fs, err := quota.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
	})
	return fs
}

// eachCall runs a test on every file system with each way to ask the kernel.
func eachCall(t *testing.T, run func(t *testing.T, dir string, fs *quota.FS)) {
	for _, kind := range quotatest.Kinds {
		for _, way := range []string{"descriptor", "device", "node"} {
			t.Run(kind.Name+"/"+way, func(t *testing.T) {
				dir := quotatest.Mount(t, kind)
				t.Cleanup(quota.Restrict(way))
				run(t, dir, open(t, dir))
			})
		}
	}
}

func project(t testing.TB, root, name string, id uint32) string {
	t.Helper()
	dir := filepath.Join(root, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := quota.Assign(dir, id); err != nil {
		t.Fatal(err)
	}
	return dir
}

func usage(t testing.TB, fs *quota.FS, id uint32) quota.Usage {
	t.Helper()
	u, _, err := fs.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// write writes without CAP_SYS_RESOURCE, as a container does: with it, ext4 has no limits.
func write(t testing.TB, path string, size int) error {
	t.Helper()
	return withoutCapability(t, unix.CAP_SYS_RESOURCE, func() error {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, bytes.NewReader(make([]byte, size)))
		return errors.Join(err, f.Close())
	})
}

func TestStateIsOn(t *testing.T) {
	eachCall(t, func(t *testing.T, _ string, fs *quota.FS) {
		if s := fs.State(); s.Counts != quota.Yes || s.Limits != quota.Yes || s.Reason != nil {
			t.Errorf("state %+v", s)
		}
	})
}

func TestStateIsOff(t *testing.T) {
	for _, kind := range quotatest.Kinds {
		t.Run(kind.Name, func(t *testing.T) {
			dir := quotatest.Mount(t, kind.Off())
			fs := open(t, dir)
			if s := fs.State(); s.Counts != quota.No || s.Limits != quota.No || s.Reason == nil {
				t.Errorf("state %+v", s)
			}
			if _, _, err := fs.Get(7); err == nil {
				t.Error("quota of a project can be read")
			}
			if err := fs.Limit(7, quota.Limits{Bytes: 1 << 20}); err == nil {
				t.Error("a limit can be set")
			}
		})
	}
}

func TestStateWithoutLimits(t *testing.T) {
	for _, kind := range quotatest.Kinds {
		t.Run(kind.Name, func(t *testing.T) {
			fs := open(t, quotatest.Mount(t, kind.Unlimited()))
			if s := fs.State(); s.Counts != quota.Yes || s.Limits != quota.No || s.Reason == nil {
				t.Errorf("state %+v", s)
			}
		})
	}
}

// A file system without quotas, or whose device is none, has an answer too.
func TestStateElsewhere(t *testing.T) {
	for _, dir := range []string{"/proc", "/sys"} {
		for _, way := range []string{"descriptor", "device"} {
			t.Run(way+dir, func(t *testing.T) {
				t.Cleanup(quota.Restrict(way))
				fs, err := quota.Open(dir)
				if err != nil {
					return // no device node can be made there
				}
				if s := fs.State(); s.Counts == quota.Yes || s.Reason == nil {
					t.Errorf("state %+v", s)
				}
				if err := fs.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
	if _, err := quota.Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("missing directory: %v", err)
	}
}

func TestUsageCountsAtOnce(t *testing.T) {
	eachCall(t, func(t *testing.T, root string, fs *quota.FS) {
		dir := project(t, root, "a", 4711)
		other := project(t, root, "b", 4712)
		if id, err := quota.Project(dir); err != nil || id != 4711 {
			t.Errorf("project %d, %v; want 4711", id, err)
		}
		before := usage(t, fs, 4711)
		if before.Inodes != 1 {
			t.Errorf("empty directory: %+v, want one inode", before)
		}
		const size = 5 << 20
		if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := write(t, filepath.Join(dir, "sub/file"), size); err != nil {
			t.Fatal(err)
		}
		// xfs allocates ahead of a file that grows, until it is closed.
		after := usage(t, fs, 4711)
		if grown := after.Bytes - before.Bytes; grown < size || grown > size+64<<10 || after.Inodes != 3 {
			t.Errorf("usage %+v after %+v and %d bytes in one file", after, before, size)
		}
		if u := usage(t, fs, 4712); u.Inodes != 1 || u.Bytes > 64<<10 {
			t.Errorf("the other project has %+v", u)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		u := usage(t, fs, 4711)
		for range 1000 { // xfs frees inodes in the background (fs/xfs/xfs_icache.c, xfs_inodegc_worker)
			if u == (quota.Usage{}) {
				break
			}
			time.Sleep(10 * time.Millisecond)
			u = usage(t, fs, 4711)
		}
		if u != (quota.Usage{}) {
			t.Errorf("after removal: %+v", u)
		}
		if err := os.RemoveAll(other); err != nil {
			t.Fatal(err)
		}
	})
}

func TestLimits(t *testing.T) {
	eachCall(t, func(t *testing.T, root string, fs *quota.FS) {
		dir := project(t, root, "a", 5000)
		other := project(t, root, "b", 5001)
		limits := quota.Limits{Bytes: 10 << 20, Inodes: 5}
		if err := fs.Limit(5000, limits); err != nil {
			t.Fatal(err)
		}
		if _, got, err := fs.Get(5000); err != nil || got != limits {
			t.Errorf("limits %+v, %v; want %+v", got, err, limits)
		}
		wantFull(t, write(t, filepath.Join(dir, "big"), 20<<20))
		if u := usage(t, fs, 5000); u.Bytes > limits.Bytes {
			t.Errorf("usage %+v beyond %+v", u, limits)
		}
		if err := write(t, filepath.Join(other, "big"), 20<<20); err != nil {
			t.Errorf("another project: %v", err)
		}
		if err := os.Remove(filepath.Join(dir, "big")); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"1", "2", "3", "4"} {
			if err := write(t, filepath.Join(dir, name), 1); err != nil {
				t.Errorf("file %s of 4: %v", name, err)
			}
		}
		wantFull(t, write(t, filepath.Join(dir, "5"), 1))
		if err := fs.Limit(5000, quota.Limits{}); err != nil {
			t.Fatal(err)
		}
		if err := write(t, filepath.Join(dir, "big"), 20<<20); err != nil {
			t.Errorf("after the limit is gone: %v", err)
		}
		if err := fs.Limit(5000, quota.Limits{Bytes: -1}); !errors.Is(err, unix.EINVAL) {
			t.Errorf("negative limit: %v", err)
		}
		if err := fs.Limit(5000, quota.Limits{Bytes: 1025}); err != nil {
			t.Fatal(err)
		}
		if _, got, err := fs.Get(5000); err != nil || got.Bytes < 1025 || got.Bytes > 64<<10 {
			t.Errorf("limit of 1025 bytes is kept as %+v, %v", got, err)
		}
	})
}

func wantFull(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, unix.EDQUOT) && !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write beyond the limit: %v, want EDQUOT or ENOSPC", err)
	}
}

func TestUnusedProject(t *testing.T) {
	eachCall(t, func(t *testing.T, _ string, fs *quota.FS) {
		u, l, err := fs.Get(99)
		if u != (quota.Usage{}) || l != (quota.Limits{}) || err != nil {
			t.Errorf("usage %+v, limits %+v, %v", u, l, err)
		}
	})
}

func TestAssignErrors(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink("/", link)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{filepath.Join(dir, "none"): unix.ENOENT, file: unix.ENOTDIR, link: unix.ENOTDIR} {
		if err := quota.Assign(path, 1); !errors.Is(err, want) {
			t.Errorf("assign %s: %v, want %v", filepath.Base(path), err, want)
		}
		if _, err := quota.Project(path); !errors.Is(err, want) {
			t.Errorf("project of %s: %v, want %v", filepath.Base(path), err, want)
		}
	}
	if err := quota.Assign("/proc", 1); err == nil {
		t.Error("/proc takes a project")
	}
}

func BenchmarkGet(b *testing.B) {
	for _, kind := range quotatest.Kinds {
		b.Run(kind.Name, func(b *testing.B) {
			root := quotatest.Mount(b, kind)
			fs := open(b, root)
			project(b, root, "a", 6000)
			for b.Loop() {
				if _, _, err := fs.Get(6000); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
