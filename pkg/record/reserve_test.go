package record

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk is a file system of its own of so many MiB, of the kind that mkfs makes.
func smallDisk(t *testing.T, mib int64, mkfs ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if loops, _ := filepath.Glob("/dev/loop*"); len(loops) == 0 {
		t.Skip("the machine has no loop devices")
	}
	dir := t.TempDir()
	file, disk := filepath.Join(dir, "disk"), filepath.Join(dir, "mounted")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(mib<<20), f.Close(), os.Mkdir(disk, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{append(mkfs, file), {"mount", "-o", "loop", file, disk}} {
		if program, err := exec.LookPath("/usr/sbin/" + args[0]); err == nil {
			args[0] = program
		}
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() {
		flags := 0
		if t.Failed() { // the database may still be open
			flags = unix.MNT_DETACH
		}
		if err := unix.Unmount(disk, flags); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return disk
}

// fill takes all that is free, to the last block.
func fill(t *testing.T, disk, name string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(disk, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size >= 512; {
		if _, err := f.Write(make([]byte, size)); err == nil {
			continue
		} else if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		size /= 2
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func wantFree(t *testing.T, disk string, want uint64) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(disk, &st); err != nil || st.Bavail*uint64(st.Bsize) > want {
		t.Fatalf("the disk has %d bytes free, want %d at most; %v", st.Bavail*uint64(st.Bsize), want, err)
	}
}

var ext4 = []string{"mkfs.ext4", "-q", "-F", "-m", "0"}

// TestFullDiskChanges writes many times what the log has room for, and deletes, on a disk with nothing free, also after the
// process was killed and after it was closed.
func TestFullDiskChanges(t *testing.T) {
	const records, round = 500, 5000 // a round is 20 MiB of log
	path := os.Getenv("RECORD_TEST_FULL")
	if path != "" {
		_, things := openThings(t, path, Options{})
		for i := range round {
			if err := things.Put(t.Context(), strconv.Itoa(i%records), thing{i}); err != nil {
				t.Fatal(err)
			}
		}
		fmt.Println("wrote all")
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	for name, test := range map[string]struct {
		o    Options
		mib  int64
		mkfs []string
	}{
		"kernel": {Options{}, 48, ext4},
		"disk":   {Options{Sync: true}, 48, ext4},
		"xfs":    {Options{}, 320, []string{"mkfs.xfs", "-q"}}, // it makes none that is smaller
	} {
		t.Run(name, func(t *testing.T) {
			o, disk := test.o, smallDisk(t, test.mib, test.mkfs...)
			path := filepath.Join(disk, "x.db")
			db, things := openThings(t, path, o)
			for i := range records {
				if err := things.Put(t.Context(), strconv.Itoa(i), thing{i}); err != nil {
					t.Fatal(err)
				}
			}
			fill(t, disk, "filler")
			wantFree(t, disk, 64<<10) // of XFS some is for metadata
			check := func(when string) {
				got, err := things.Load(t.Context())
				if err != nil || len(got) != records || db.Salvaged() != "" {
					t.Fatalf("%s: %d records, %v, salvaged %q", when, len(got), err, db.Salvaged())
				}
			}
			for i := range round {
				if err := things.Put(t.Context(), strconv.Itoa(i%records), thing{i}); err != nil {
					t.Fatalf("write %d: %v", i, err)
				}
			}
			for range 2 {
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				db, things = openThings(t, path, o)
				check("closed")
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestFullDiskChanges$")
			cmd.Env = append(os.Environ(), "RECORD_TEST_FULL="+path)
			if out, _ := cmd.CombinedOutput(); !strings.Contains(string(out), "wrote all") {
				t.Fatalf("the process to kill: %s", out)
			}
			fill(t, disk, "filler2")
			db, things = openThings(t, path, o)
			defer db.Close()
			check("killed")
			for i := range records {
				if err := things.Delete(t.Context(), strconv.Itoa(i)); err != nil {
					t.Fatalf("delete %d: %v", i, err)
				}
			}
			// What the reserve has is not given back.
			wantFree(t, disk, 64<<10)
		})
	}
}

// TestFullDiskNewRecords adds records to a full disk until there is no more room: the error says so, what is there stays, all
// can be deleted, and with room again there is no limit any more.
func TestFullDiskNewRecords(t *testing.T) {
	disk := smallDisk(t, 32, ext4...)
	db, things := openThings(t, filepath.Join(disk, "x.db"), Options{})
	defer db.Close()
	large, err := NewTable[string](t.Context(), db, "large")
	if err != nil {
		t.Fatal(err)
	}
	filler := fill(t, disk, "filler")
	content := strings.Repeat("x", 10<<10)
	n := 0
	for err = nil; err == nil && n < 10000; n++ {
		err = large.Put(t.Context(), strconv.Itoa(n), content)
	}
	if !errors.Is(err, ErrFull) || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "x.db has ") {
		t.Fatalf("after %d records: %v", n, err)
	}
	t.Logf("%d records of 10 KiB; %v", n-1, err)
	if n < fileReserve/(16<<10) {
		t.Errorf("only %d new records had room", n)
	}
	if got, err := large.Load(t.Context()); err != nil || len(got) != n-1 {
		t.Errorf("%d records, %v, want %d", len(got), err, n-1)
	}
	for i := range n - 1 {
		if err := large.Delete(t.Context(), strconv.Itoa(i)); err != nil {
			t.Fatalf("delete %d of %d: %v", i, n, err)
		}
	}
	if err := things.Put(t.Context(), "k", thing{1}); err != nil {
		t.Errorf("write where others were: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	unix.Sync()
	if err := db.keepRoom(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 1000 { // more than was there before
		if err := large.Put(t.Context(), strconv.Itoa(i), content); err != nil {
			t.Fatalf("write %d with room: %v", i, err)
		}
	}
}

// TestFullDiskWithoutRoom opens a database for which no room was kept, as a version that knew of none left it.
func TestFullDiskWithoutRoom(t *testing.T) {
	disk := smallDisk(t, 16, ext4...)
	path := filepath.Join(disk, "x.db")
	fill(t, disk, "filler")
	if _, err := Open(t.Context(), filepath.Join(disk, "new.db"), Options{}); !errors.Is(err, ErrFull) {
		t.Errorf("a new database: %v", err)
	} else {
		t.Log(err)
	}
	if err := os.Remove(filepath.Join(disk, "filler")); err != nil {
		t.Fatal(err)
	}
	db, things := openThings(t, path, Options{})
	if err := things.Put(t.Context(), "k", thing{1}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err == nil {
		err = errors.Join(os.Truncate(path, info.Size()), os.Remove(path+"-wal"))
	}
	if err != nil {
		t.Fatal(err)
	}
	filler := fill(t, disk, "filler")
	db, things = openThings(t, path, Options{})
	defer db.Close()
	if got, err := things.Load(t.Context()); err != nil || got["k"].N != 1 {
		t.Errorf("loaded %v, %v", got, err)
	}
	if err := things.Put(t.Context(), "k", thing{2}); !errors.Is(err, ErrFull) {
		t.Errorf("write: %v", err)
	}
	if err := os.Truncate(filler, 0); err != nil {
		t.Fatal(err)
	}
	unix.Sync()
	if err := things.Put(t.Context(), "k", thing{3}); err != nil {
		t.Errorf("write with room: %v", err)
	}
}

// A database that is replaced by hand must not get back what was in the log of the one before.
func TestClosedLogIsEmpty(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.db")
	write := func(n int) {
		db, things := openThings(t, path, Options{})
		for i := range 100 {
			if err := things.Put(t.Context(), strconv.Itoa(i), thing{n}); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write(1)
	backup, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write(2)
	if err := os.WriteFile(path, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	db, things := openThings(t, path, Options{})
	defer db.Close()
	got, err := things.Load(t.Context())
	if err != nil || got["7"].N != 1 {
		t.Errorf("record 7 is %v, %v", got["7"], err)
	}
	if _, err := os.Stat(path + "-shm"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the log's index is a file: %v", err)
	}
}
