package layertar

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// damages are changes to the directory of everything, with what Verify says of them, and whether Rebuild can tell.
var damages = map[string]struct {
	do      func(root string) error
	want    []string
	rebuild bool
}{
	"nothing":       {func(string) error { return nil }, nil, true},
	"removed":       {remove("old"), []string{`"old" is missing`}, false},
	"removed, all":  {remove("both"), []string{`"both" is missing`, `"both/x" is missing`}, false},
	"removed, link": {remove("bin"), []string{`"bin" is missing`}, true},
	"implied gone":  {remove("abs"), []string{`"abs/file" is missing`}, false},
	"opaque, gone":  {remove("opq"), []string{`"opq/new" is missing`, `"opq" is missing, an opaque directory`}, false},
	"shorter":       {write("both/x", ""), []string{`"both/x" has 0 bytes, not 1`}, false},
	"longer":        {write("both/x", "33"), []string{`"both/x" has 2 bytes, not 1`}, false},
	"other content": {write("both/x", "4"), []string{`"both/x" has other content`}, false},
	"time":          {write("implied/dir/empty", ""), []string{`"implied/dir/empty" has another modification time`}, true},
	"mode": {func(root string) error { return unix.Chmod(root+"/f", 0o4755) },
		[]string{`"f" has mode 04755, not 0644`}, true},
	"mode of a directory": {func(root string) error { return unix.Chmod(root+"/tmp", 0o777) },
		[]string{`"tmp" has mode 0777, not 01777`}, true},
	"mode of an implied directory": {func(root string) error { return unix.Chmod(root+"/abs", 0o700) }, nil, true},
	"owner": {func(root string) error { return unix.Lchown(root+"/bin", 1, 2) },
		[]string{`"bin" belongs to 1:2, not to 0:0`}, true},
	"target": {replace("bin", func(path string) error { return os.Symlink("usr/sbin", path) }),
		[]string{`"bin" leads to "usr/sbin", not to "usr/bin"`, `"bin2" is no hard link to "bin"`}, true},
	"device": {replace("dev/null", func(path string) error {
		return errors.Join(unix.Mknod(path, unix.S_IFCHR|0o620, int(unix.Mkdev(1, 5))), unix.Chown(path, 0, 5), unix.Chmod(path, 0o620))
	}), []string{`"dev/null" is device 1:5, not 1:3`}, true},
	"hard link": {replace("usr/bin/same", func(path string) error { return os.WriteFile(path, nil, 0o600) }),
		[]string{`"usr/bin/same" is no hard link to "usr/bin/tool"`}, true},
	"attribute": {func(root string) error { return unix.Setxattr(root+"/usr/bin/tool", "user.note", []byte("c"), 0) },
		[]string{`"usr/bin/tool" has another attribute user.note`}, true},
	"attribute gone": {func(root string) error { return unix.Removexattr(root+"/usr/bin/tool", "security.capability") },
		[]string{`"usr/bin/tool" has another attribute security.capability`}, true},
	"capability": {func(root string) error {
		value := make([]byte, 20)
		n, err := unix.Getxattr(root+"/usr/bin/tool", "security.capability", value)
		return errors.Join(err, unix.Setxattr(root+"/f", "security.capability", value[:n], 0))
	}, []string{`"f" has a file capability`}, true},
	"fifo for a file": {replace("f", func(path string) error { return unix.Mkfifo(path, 0o644) }),
		[]string{`"f" is of type 010000, not 0100000`}, false},
	"link for a file": {replace("f", func(path string) error { return os.Symlink("/etc/passwd", path) }),
		[]string{`"f" is of type 0120000, not 0100000`}, false},
	"link for a directory": {replace("both", func(path string) error { return os.Symlink("opq", path) }),
		[]string{`"both" is of type 0120000, not 040000`, `"both/x" is missing`}, false},
	"file for an implied directory": {replace("abs", func(path string) error { return os.WriteFile(path, nil, 0o600) }),
		[]string{`"abs/file" is missing`, `"abs" is no directory`}, false},
	"no whiteout":      {remove("etc/gone"), []string{`"etc/gone" is missing, a whiteout`}, true},
	"whiteout's file":  {replace("top", func(path string) error { return os.WriteFile(path, nil, 0o600) }), []string{`"top" is no whiteout`}, true},
	"not opaque":       {func(root string) error { return unix.Removexattr(root+"/opq", opaqueXattr) }, []string{`"opq" is not opaque`}, true},
	"not opaque, both": {func(root string) error { return unix.Removexattr(root+"/both", opaqueXattr) }, []string{`"both" is not opaque`}, true},
	"opaque":           {func(root string) error { return unix.Setxattr(root+"/usr", opaqueXattr, []byte("y"), 0) }, []string{`"usr" is opaque`}, true},
	"opaque root":      {func(root string) error { return unix.Setxattr(root, opaqueXattr, []byte("y"), 0) }, []string{`"" is opaque`}, true},
	"a file more":      {write("both/new", "1"), []string{`"both/new" is not in the layer`}, true},
	"a tree more": {func(root string) error {
		return errors.Join(os.MkdirAll(root+"/more/and/more", 0o755), os.WriteFile(root+"/more/f", nil, 0o644))
	}, []string{`"more" is not in the layer`}, true},
}

func remove(name string) func(string) error {
	return func(root string) error { return os.RemoveAll(filepath.Join(root, name)) }
}

func write(name, content string) func(string) error {
	return func(root string) error {
		path := filepath.Join(root, name)
		info, err := os.Lstat(path)
		werr := os.WriteFile(path, []byte(content), 0o644)
		if err == nil && info.Size() > 0 { // that only one thing is another
			werr = errors.Join(werr, os.Chtimes(path, time.Time{}, info.ModTime()))
		}
		return werr
	}
}

func replace(name string, with func(path string) error) func(string) error {
	return func(root string) error {
		path := filepath.Join(root, name)
		return errors.Join(os.RemoveAll(path), with(path))
	}
}

func TestDamage(t *testing.T) {
	data := everything(t)
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			root, meta := unpacked(t, data)
			if err := damage.do(root); err != nil {
				t.Fatal(err)
			}
			problems, err := Verify(t.Context(), bytes.NewReader(meta), root)
			var got []string
			for _, p := range problems {
				got = append(got, p.String())
			}
			if err != nil || !slices.Equal(got, damage.want) {
				t.Errorf("problems %q, %v; want %q", got, err, damage.want)
			}
			var rebuilt bytes.Buffer
			err = Rebuild(bytes.NewReader(meta), root, &rebuilt)
			switch {
			case damage.rebuild && (err != nil || !bytes.Equal(rebuilt.Bytes(), data)):
				t.Errorf("rebuild: %v, or other bytes", err)
			case !damage.rebuild && !errors.Is(err, ErrDamaged):
				t.Errorf("rebuild: %v, want %v", err, ErrDamaged)
			case !damage.rebuild && !namesOne(err, problems):
				t.Errorf("rebuild: %v names none of %v", err, problems)
			}
		})
	}
}

func namesOne(err error, problems []Problem) bool {
	return slices.ContainsFunc(problems, func(p Problem) bool {
		return strings.Contains(err.Error(), fmt.Sprintf("%q", p.Path))
	})
}

func TestMetadataDamaged(t *testing.T) {
	root, meta := unpacked(t, everything(t))
	flipped := slices.Clone(meta)
	flipped[len(flipped)/2] ^= 0x10
	for name, bad := range map[string][]byte{
		"cut":     meta[:len(meta)/2],
		"flipped": flipped,
		"foreign": []byte("something else"),
		"a tar":   everything(t),
	} {
		if err := Rebuild(bytes.NewReader(bad), root, io.Discard); !errors.Is(err, ErrMetadata) {
			t.Errorf("%s: rebuild: %v, want %v", name, err, ErrMetadata)
		}
		if _, err := Verify(t.Context(), bytes.NewReader(bad), root); !errors.Is(err, ErrMetadata) {
			t.Errorf("%s: verify: %v, want %v", name, err, ErrMetadata)
		}
	}
}

func TestVerifyErrors(t *testing.T) {
	root, meta := unpacked(t, everything(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Verify(ctx, bytes.NewReader(meta), root); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if _, err := Verify(t.Context(), bytes.NewReader(meta), root+"/none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if err := Rebuild(bytes.NewReader(meta), root+"/none", io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	full := errors.New("disk full")
	if err := Rebuild(bytes.NewReader(meta), root, failingWriter{full}); !errors.Is(err, full) {
		t.Errorf("rebuild to a full disk: %v", err)
	}
}

func TestVerifyStopsAtMany(t *testing.T) {
	var entries []entry
	for i := range 2 * MaxProblems {
		entries = append(entries, file(fmt.Sprint(i), "1"))
	}
	_, meta := unpacked(t, makeTar(t, entries...))
	problems, err := Verify(t.Context(), bytes.NewReader(meta), t.TempDir())
	if err != nil || len(problems) != MaxProblems {
		t.Errorf("%d problems, %v; want %d", len(problems), err, MaxProblems)
	}
}

// FuzzExact holds Capture to its word: a tar that it calls exact and that could be unpacked is rebuilt bit by bit.
func FuzzExact(f *testing.F) {
	f.Add(makeTar(f, dir("a"), file("a/f", "1"), symlink("a/l", "../.."), hardlink("h", "a/f"), file("a/.wh.x", "")))
	f.Add(makeTar(f, file("d/x", "1"), file(".wh.d", ""), file("e/.wh..wh..opq", ""), device("n", '3', 0, 0)))
	f.Add(makeTar(f, symlink("l", "d"), file("d/f", "1"), file("./a", "1"), file("b//c", "2")))
	f.Add(sparseGNU())
	f.Fuzz(func(t *testing.T, data []byte) {
		root := t.TempDir()
		meta, captureErr, applyErr := captured(t, root, data)
		if captureErr != nil || applyErr != nil {
			return
		}
		var got bytes.Buffer
		if err := Rebuild(bytes.NewReader(meta), root, &got); err != nil || !bytes.Equal(got.Bytes(), data) {
			t.Errorf("rebuild: %v, equal: %v", err, bytes.Equal(got.Bytes(), data))
		}
		if problems, err := Verify(t.Context(), bytes.NewReader(meta), root); err != nil || len(problems) > 0 {
			t.Errorf("verify: %v, %v", problems, err)
		}
	})
}

func TestNoDescriptorsAreLeft(t *testing.T) {
	root, meta := unpacked(t, everything(t))
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := count()
	for range 3 {
		_, err := Verify(t.Context(), bytes.NewReader(meta), root)
		err = errors.Join(err, Rebuild(bytes.NewReader(meta), root, io.Discard), Changes(t.Context(), root, io.Discard))
		if err != nil {
			t.Fatal(err)
		}
		if err := Rebuild(bytes.NewReader(meta), t.TempDir(), io.Discard); !errors.Is(err, ErrDamaged) {
			t.Fatal(err)
		}
		if _, err := Verify(t.Context(), bytes.NewReader(meta), t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors, before %d", after, before)
	}
}

// Whatever unpacking does not refuse, or keeps in another form, is no damage.
func TestVerifyOddEntries(t *testing.T) {
	typed, link, fifo := file("typed", "1"), symlink("link", "typed"), device("fifo", tar.TypeFifo, 1<<30, 1<<30)
	typed.Mode = unix.S_IFLNK | 0o4755
	link.Mode, fifo.Mode = 0, 1<<40|0o640
	typed.Format, fifo.Format = tar.FormatGNU, tar.FormatGNU
	whiteout := file(".wh.gone", "")
	whiteout.Uid, whiteout.Format = -1, tar.FormatGNU
	highest := file("highest", "1")
	highest.Uid, highest.Gid, highest.Format = 1<<32-2, 1<<32-2, tar.FormatGNU
	entries := []entry{typed, link, fifo, whiteout, highest, device("null", tar.TypeChar, 4095, 1<<20-1)}
	for year, name := range map[int]string{1850: "a", 1969: "b", 2040: "c", 2107: "d", 2250: "e", 2500: "f", 9999: "g"} {
		late := file(name, "1")
		late.ModTime, late.Format = time.Date(year, 1, 2, 3, 4, 5, 6, time.UTC), tar.FormatPAX
		entries = append(entries, late)
	}
	attributes := file("attributes", "1")
	attributes.PAXRecords = map[string]string{
		"SCHILY.xattr.user.note":                 "",
		"SCHILY.xattr.com.apple.quarantine":      "x",
		"SCHILY.xattr.system.nfs4_acl":           "x",
		"SCHILY.xattr.system.posix_acl_access":   "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x04\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff",
		"SCHILY.xattr.trusted.overlay.metacopy":  "",
		"SCHILY.xattr.security.something-nobody": "has",
	}
	root, meta := unpacked(t, makeTar(t, append(entries, attributes)...))
	if problems, err := Verify(t.Context(), bytes.NewReader(meta), root); err != nil || len(problems) > 0 {
		t.Errorf("problems %q, %v", problems, err)
	}
}

func TestSameTime(t *testing.T) {
	late := time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	for sec, want := range map[int64]bool{late.Unix(): true, 1<<31 - 1: true, 0: false, 1<<31 - 2: false, late.Unix() + 1: false} {
		if got := sameTime(unix.Timespec{Sec: sec}, late); got != want {
			t.Errorf("%d is the same: %v, want %v", sec, got, want)
		}
	}
	if sameTime(unix.Timespec{Sec: 1<<31 - 1}, time.Unix(1<<31-2, 0)) {
		t.Error("the end of time is the same as a time before it")
	}
}
