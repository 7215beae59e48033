package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"criserver/pkg/imagesvc/unpack/tartest"
)

// withXattr is a file with an attribute.
func withXattr(name, attr, value string) entry {
	f := file(name, "1")
	f.PAXRecords = map[string]string{"SCHILY.xattr." + attr: value}
	return f
}

// What the kernel refuses is the layer's fault, and says so without telling where it was unpacked.
func TestApplyWhatTheKernelRefuses(t *testing.T) {
	needRoot(t)
	whole := makeTar(t, file("f", strings.Repeat("x", 10_000)))
	for name, data := range map[string][]byte{
		"hard link to nothing":       makeTar(t, dir("d"), hardlink("h", "d/none")),
		"hard link below a file":     makeTar(t, file("f", "1"), hardlink("h", "f/none")),
		"hard link to a directory":   makeTar(t, dir("d"), hardlink("h", "d")),
		"hard link to the root":      makeTar(t, hardlink("h", "/")),
		"hard link to no name":       block("h", tar.TypeLink, 0, nil),
		"hard link to itself":        makeTar(t, file("f", "1"), hardlink("f", "f")),
		"hard link to what is later": makeTar(t, hardlink("h", "f"), file("f", "1")),
		"symbolic link to no name":   block("l", tar.TypeSymlink, 0, nil),
		"attribute without a name":   makeTar(t, withXattr("f", "user.", "1")),
		"attribute with a long name": makeTar(t, withXattr("f", "user."+strings.Repeat("n", 300), "1")),
		"attribute of 65 KiB":        makeTar(t, withXattr("f", "user.big", strings.Repeat("v", 65<<10))),
		"capability that is none":    makeTar(t, withXattr("f", "security.capability", "all")),
		"ends in a header":           whole[:300],
		"ends in a file":             whole[:2000],
		"ends in an extended header": makeTar(t, withXattr("f", "user.a", strings.Repeat("v", 2000)))[:700],
	} {
		dir := t.TempDir()
		_, err := Apply(t.Context(), dir, bytes.NewReader(data), Limits{})
		if !errors.Is(err, ErrInvalid) || strings.Contains(fmt.Sprint(err), dir) || len(fmt.Sprint(err)) > 2000 {
			t.Errorf("%s: error %v, want %v", name, err, ErrInvalid)
		}
	}
}

// The names of the tar are cut wherever an error has them.
func TestApplyShortErrors(t *testing.T) {
	needRoot(t)
	long := strings.Repeat("n", 3000)
	for name, entries := range map[string][]entry{
		"name":        {file(long, "1")},
		"hard link":   {hardlink("h", long)},
		"directory":   {file(strings.Repeat("d/", 1900)+"f", "1")},
		"link beyond": {symlink("l", strings.Repeat("../", 900)), hardlink("h", "l/"+long)},
	} {
		_, err := Apply(t.Context(), t.TempDir(), bytes.NewReader(makeTar(t, entries...)), Limits{})
		if !errors.Is(err, ErrInvalid) || len(err.Error()) > 1000 {
			t.Errorf("%s: %d bytes of error %.100v, want a short %v", name, len(fmt.Sprint(err)), err, ErrInvalid)
		}
	}
}

// ext4 is a new file system of so many KiB.
func ext4(t *testing.T, size int) string {
	t.Helper()
	needRoot(t)
	image, dir := filepath.Join(t.TempDir(), "ext4"), t.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, int64(size)<<10); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-b", "4096", "-O", "^ea_inode", image).CombinedOutput(); err != nil {
		t.Skipf("no ext4 can be made: %v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("no loop mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// ext4 says ENOSPC to attributes that it has no place for.
func TestApplyLargeAttributes(t *testing.T) {
	dir := ext4(t, 32<<10)
	_, err := Apply(t.Context(), dir, bytes.NewReader(makeTar(t, withXattr("f", "user.big", strings.Repeat("v", 8000)))), Limits{})
	if !errors.Is(err, ErrInvalid) || errors.Is(err, unix.ENOSPC) {
		t.Errorf("attributes of 8000 bytes: error %v, want %v", err, ErrInvalid)
	}
	full := makeTar(t, withXattr("full", "user.small", "v"), withXattr("more", "user.small", strings.Repeat("v", 500)))
	filler := makeTar(t, file("filler", strings.Repeat("x", 64<<20)))
	if _, err := Apply(t.Context(), dir, bytes.NewReader(filler), Limits{}); !errors.Is(err, unix.ENOSPC) || errors.Is(err, ErrInvalid) {
		t.Errorf("file larger than the disk: error %v, want ENOSPC", err)
	}
	if _, err := Apply(t.Context(), dir, bytes.NewReader(full), Limits{}); !errors.Is(err, unix.ENOSPC) || errors.Is(err, ErrInvalid) {
		t.Errorf("attributes on a full disk: error %v, want ENOSPC", err)
	}
}

func TestApplyTooManyLinks(t *testing.T) {
	dir := ext4(t, 64<<10)
	entries := []entry{file("f", "1")}
	for i := range 65_000 { // EXT4_LINK_MAX
		entries = append(entries, hardlink(fmt.Sprint("l", i), "f"))
	}
	if _, err := Apply(t.Context(), dir, bytes.NewReader(makeTar(t, entries...)), Limits{}); !errors.Is(err, ErrInvalid) || !errors.Is(err, unix.EMLINK) {
		t.Errorf("error %v, want %v: EMLINK", err, ErrInvalid)
	}
}

// What is wrong beside the layer is not the layer's fault, whatever it looks like.
func TestApplyKeepsKinds(t *testing.T) {
	needRoot(t)
	data := makeTar(t, file("f", strings.Repeat("x", 10_000)))
	for _, broken := range []error{io.ErrUnexpectedEOF, unix.EINVAL, os.ErrNotExist, tar.ErrHeader} {
		_, err := Apply(t.Context(), t.TempDir(), io.MultiReader(bytes.NewReader(data[:700]), readerFunc(func([]byte) (int, error) { return 0, broken })), Limits{})
		if !errors.Is(err, broken) || errors.Is(err, ErrInvalid) {
			t.Errorf("error %v, want %v", err, broken)
		}
		for name, blob := range map[string][]byte{"gzip": gzipped(t, data), "zstd": zstded(t, data)} {
			_, err := decompressFrom(io.MultiReader(bytes.NewReader(blob[:len(blob)/2]), readerFunc(func([]byte) (int, error) { return 0, broken })))
			if !errors.Is(err, broken) || errors.Is(err, ErrInvalid) {
				t.Errorf("%s: error %v, want %v", name, err, broken)
			}
		}
	}
	gone := filepath.Join(t.TempDir(), "gone")
	err := os.Mkdir(gone, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	vanish := readerFunc(func([]byte) (int, error) {
		if err := os.Remove(gone); err != nil {
			t.Error(err)
		}
		return 0, io.EOF
	})
	_, err = Apply(t.Context(), gone, io.MultiReader(vanish, bytes.NewReader(makeTar(t, tartest.Symlink("l", "x")))), Limits{})
	if !errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrInvalid) {
		t.Errorf("without its directory: error %v", err)
	}
}

func decompressFrom(r io.Reader) ([]byte, error) {
	plain, err := Decompress(context.Background(), "", r, Limits{})
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(plain)
	return out, errors.Join(err, plain.Close())
}

func TestDecompressDamaged(t *testing.T) {
	plain := makeTar(t, file("f", strings.Repeat("content ", 10_000)))
	gz, zst := gzipped(t, plain), zstded(t, plain)
	flipped := func(blob []byte, at int) []byte {
		blob = bytes.Clone(blob)
		blob[at] ^= 0xff
		return blob
	}
	for name, blob := range map[string][]byte{
		"gzip, no trailer":        gz[:len(gz)-8],
		"gzip, half a trailer":    gz[:len(gz)-3],
		"gzip, header only":       gz[:10],
		"gzip, half a header":     gz[:6],
		"gzip, wrong checksum":    flipped(gz, len(gz)-8),
		"gzip, wrong size":        flipped(gz, len(gz)-1),
		"gzip, other content":     flipped(gz, len(gz)/2),
		"gzip, garbage behind":    append(bytes.Clone(gz), "garbage"...),
		"gzip, zeros behind":      append(bytes.Clone(gz), make([]byte, 512)...),
		"gzip, half a member":     append(bytes.Clone(gz), gz[:20]...),
		"zstd, no checksum":       zst[:len(zst)-4],
		"zstd, wrong checksum":    flipped(zst, len(zst)-1),
		"zstd, header only":       zst[:6],
		"zstd, garbage behind":    append(bytes.Clone(zst), "garbage"...),
		"zstd, ends too early":    zst[:len(zst)/2],
		"zstd, half a skip frame": append([]byte{0x50, 0x2a, 0x4d, 0x18, 30, 0, 0, 0}, zst[:10]...),
	} {
		if _, err := decompress("", blob); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: error %v, want %v", name, err, ErrInvalid)
		}
	}
}
