package hostpath

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/spec"
)

func TestCheckPropagation(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		flag          uintptr
		slave, shared bool // are accepted
	}{
		{unix.MS_PRIVATE, false, false}, {unix.MS_SHARED, true, true}, {unix.MS_UNBINDABLE, false, false},
	} {
		if err := unix.Mount("", dir, "", row.flag, ""); err != nil {
			t.Fatal(err)
		}
		for p, accepted := range map[spec.Propagation]bool{
			spec.PropagationPrivate: true, spec.PropagationHostToContainer: row.slave, spec.PropagationBidirectional: row.shared,
		} {
			err := CheckPropagation([]spec.Mount{{Source: filepath.Join(dir, "sub"), Propagation: p}})
			if accepted != (err == nil) {
				t.Errorf("flag %#x, propagation %d: %v", row.flag, p, err)
			}
			if err != nil && (!errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "mount --make-rshared "+dir)) {
				t.Errorf("the error does not tell what to do: %v", err)
			}
		}
	}
}

// What is bound from a shared mount and made a slave gets events and sends none.
func TestCheckPropagationOfSlave(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	dir, slave := t.TempDir(), t.TempDir()
	for _, m := range []struct {
		source, target string
		flag           uintptr
	}{{"tmpfs", dir, 0}, {"", dir, unix.MS_SHARED}, {dir, slave, unix.MS_BIND}, {"", slave, unix.MS_SLAVE}} {
		if err := unix.Mount(m.source, m.target, "tmpfs", m.flag, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(m.target, unix.MNT_DETACH) })
	}
	if err := CheckPropagation([]spec.Mount{{Source: slave, Propagation: spec.PropagationHostToContainer}}); err != nil {
		t.Error(err)
	}
	if err := CheckPropagation([]spec.Mount{{Source: slave, Propagation: spec.PropagationBidirectional}}); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("into a slave: %v", err)
	}
}
