package snapshottest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"criserver/pkg/snapshot"
)

func testVolumes(t *testing.T, f *fixture) {
	v, ok := f.Snapshotter.(snapshot.Volumes)
	if !ok {
		t.Skip("the driver has no volumes")
	}
	chain := f.image(func(dir string) error { return os.WriteFile(filepath.Join(dir, "file"), nil, 0o644) })
	root := f.prepare("key", chain)
	before := f.settled("key")
	dir, err := v.Volume(t.Context(), "key", "1")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the volume is %v, %v", info, err)
	}
	const size = 1 << 20
	if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, size), 0o644); err != nil {
		t.Fatal(err)
	}
	if after := f.settled("key"); after.Bytes-before.Bytes < size {
		t.Errorf("usage %+v, then %+v with %d bytes in a volume", before, after, size)
	}
	if names, err := os.ReadDir(root); err != nil || len(names) != 1 {
		t.Errorf("the snapshot shows %v, %v", names, err)
	}
	if _, err := v.Volume(t.Context(), "key", "1"); !errors.Is(err, snapshot.ErrExists) {
		t.Errorf("the same again: %v", err)
	}
	if _, err := v.Volume(t.Context(), "key", "../1"); !errors.Is(err, snapshot.ErrInvalid) {
		t.Errorf("a name that leaves: %v", err)
	}
	f.view("view", chain)
	for _, key := range []string{"view", "none"} {
		if _, err := v.Volume(t.Context(), key, "1"); !errors.Is(err, snapshot.ErrNotFound) {
			t.Errorf("of %s: %v", key, err)
		}
		if all, err := v.Volumes(t.Context(), key); !errors.Is(err, snapshot.ErrNotFound) {
			t.Errorf("volumes of %s: %v, %v", key, all, err)
		}
	}
	f.stop()
	f.start()
	v = f.Snapshotter.(snapshot.Volumes)
	if all, err := v.Volumes(t.Context(), "key"); err != nil || filepath.Join(all, "1") != dir {
		t.Errorf("after a restart: %v, %v", all, err)
	}
	f.unmount(root)
	f.remove("key")
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the volume outlives its snapshot: %v", err)
	}
	f.prepare("key", chain)
	if all, err := v.Volumes(t.Context(), "key"); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("of another snapshot of the same key: %v, %v", all, err)
	}
}
