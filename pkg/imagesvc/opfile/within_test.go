package opfile

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hungDir is a FUSE file system of which nobody reads the requests, until the returned function ends it.
func hungDir(t *testing.T) (dir string, end func()) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("the machine has no FUSE, or this is not root: %v", err)
	}
	dir = t.TempDir()
	options := "fd=" + strconv.Itoa(fd) + ",rootmode=40000,user_id=0,group_id=0"
	if err := unix.Mount("hung", dir, "fuse", 0, options); err != nil {
		unix.Close(fd)
		t.Skipf("FUSE cannot be mounted: %v", err)
	}
	ended := false
	end = func() {
		if !ended {
			ended = true
			unix.Close(fd) // now all that hangs fails
		}
	}
	t.Cleanup(func() {
		end()
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir, end
}

func TestHungFileSystem(t *testing.T) {
	dir, end := hungDir(t)
	l := &limiter{patience: 200 * time.Millisecond, slots: map[string]*slot{}}
	file := filepath.Join(dir, "config.json")
	const callers = 20
	calls := make(chan struct{}, 2*callers)
	get := func() error {
		_, err := within(l, file, func() ([]byte, error) {
			calls <- struct{}{}
			return read(file, 100)
		})
		return err
	}
	errs := make(chan error, callers)
	for range callers {
		go func() { errs <- get() }()
	}
	for range callers {
		if err := <-errs; !errors.Is(err, ErrHangs) || !strings.Contains(err.Error(), file) {
			t.Errorf("err = %v", err)
		}
	}
	before := time.Now()
	if err := get(); !errors.Is(err, ErrHangs) || time.Since(before) > l.patience {
		t.Errorf("while it hangs: %v after %s", err, time.Since(before))
	}
	if n := len(calls); n != 1 {
		t.Errorf("%d system calls hang, want one", n)
	}
	good := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(good, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := within(l, good, func() ([]byte, error) { return read(good, 1) }); err != nil || string(data) != "x" {
		t.Errorf("another file: %q, %v", data, err)
	}
	end()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		err := get()
		if !errors.Is(err, ErrHangs) && err != nil {
			break // the connection is gone
		}
		if time.Now().After(deadline) {
			t.Fatalf("it answers again, but the error is %v", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.slots) != 0 {
		t.Errorf("slots are left: %v", l.slots)
	}
}

func TestHungFileSystemOfOperator(t *testing.T) {
	dir, _ := hungDir(t)
	before := time.Now()
	for _, fn := range []func(string) error{
		func(p string) error { _, err := Read(p, 100); return err },
		func(p string) error { _, err := StampOf(p); return err },
		func(p string) error { _, err := ReadDir(p); return err },
		func(p string) error { _, err := Stat(p); return err },
	} {
		if err := fn(filepath.Join(dir, "x")); !errors.Is(err, ErrHangs) {
			t.Errorf("err = %v", err)
		}
	}
	if took := time.Since(before); took > Patience+time.Second {
		t.Errorf("four calls took %s", took)
	}
}
