//go:build !race

// The race detector multiplies what a process takes.

package unpack_test

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
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"criserver/pkg/imagesvc/layertar"
	"criserver/pkg/imagesvc/unpack"
	"criserver/pkg/imagesvc/unpack/tartest"
)

// maxPeak is what unpacking may take above what the process has when it is idle.
const maxPeak = 64 << 20

// shapes are layers that are written while they are read.
var shapes = map[string]func(w *tar.Writer) error{
	"300,000 files": func(w *tar.Writer) error {
		for i := range 300_000 {
			if i%1000 == 0 {
				if err := add(w, tar.TypeDir, fmt.Sprintf("usr/lib/some/directory/number%06d/", i/1000), ""); err != nil {
					return err
				}
			}
			name := fmt.Sprintf("usr/lib/some/directory/number%06d/file with a name%08d", i/1000, i)
			if err := add(w, tar.TypeReg, name, ""); err != nil {
				return err
			}
		}
		return nil
	},
	"one directory of 300,000 files": func(w *tar.Writer) error {
		for i := range 300_000 {
			if err := add(w, tar.TypeReg, fmt.Sprintf("usr/lib/file with a name%08d", i), ""); err != nil {
				return err
			}
		}
		return nil
	},
	"1 GiB of zeros": func(w *tar.Writer) error {
		if err := w.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1 << 30}); err != nil {
			return err
		}
		_, err := io.CopyN(w, zero{}, 1<<30)
		return err
	},
	"150,000 directories, 150,000 hard links, links": func(w *tar.Writer) error {
		for i := range 75_000 {
			name := fmt.Sprintf("usr/lib/some/directory/number%06d", i)
			err := errors.Join(add(w, tar.TypeDir, name, ""), add(w, tar.TypeDir, name+"/below", ""), add(w, tar.TypeReg, name+"/below/file", ""),
				add(w, tar.TypeLink, name+"/link", name+"/below/file"), add(w, tar.TypeLink, name+"/other", name+"/below/file"),
				add(w, tar.TypeSymlink, name+"/symbolic", "below/file"))
			if err != nil {
				return err
			}
		}
		return nil
	},
}

func add(w *tar.Writer, kind byte, name, target string) error {
	return w.WriteHeader(&tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o755, ModTime: tartest.ModTime})
}

type zero struct{}

func (zero) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// generate writes a layer's blob while it is read. Who compresses takes as little memory as possible: it counts.
func generate(shape string, compress func(io.Writer) (io.WriteCloser, error)) *io.PipeReader {
	r, w := io.Pipe()
	go func() {
		compressed, err := compress(w)
		if err == nil {
			plain := tar.NewWriter(compressed)
			err = errors.Join(shapes[shape](plain), plain.Close(), compressed.Close())
		}
		w.CloseWithError(err)
	}()
	return r
}

func gzipWriter(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, gzip.BestSpeed) }

// TestUnpackMemory unpacks in a process of its own, by the chain of readers that a pull has, and looks at what the kernel says
// that it took at most.
func TestUnpackMemory(t *testing.T) {
	tartest.NeedRoot(t)
	if testing.Short() {
		t.Skip("a million files take a while")
	}
	for shape := range shapes {
		t.Run(shape, func(t *testing.T) { child(t, shape) })
	}
	t.Run("4 layers of zstd", func(t *testing.T) { child(t, "zstd", "8388608") })
	t.Run("4 layers of zstd with large windows", func(t *testing.T) { child(t, "zstd", "33554432") })
}

func child(t *testing.T, args ...string) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestUnpackMemoryChild$", "-test.v")
	cmd.Env = append(os.Environ(), "UNPACK_MEMORY="+strings.Join(args, "|"), "UNPACK_MEMORY_DIR="+tmpfs(t))
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// tmpfs is quick with files, and what is in it is not the process's memory.
func tmpfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=6g,nr_inodes=0"); err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestUnpackMemoryChild is the process.
func TestUnpackMemoryChild(t *testing.T) {
	args := strings.Split(os.Getenv("UNPACK_MEMORY"), "|")
	if args[0] == "" {
		t.Skip("TestUnpackMemory runs this")
	}
	dir := os.Getenv("UNPACK_MEMORY_DIR")
	blobs := []io.Reader{nil}
	if args[0] == "zstd" {
		blobs = zstdBlobs(t, dir, args[1])
	} else {
		blobs[0] = generate(args[0], gzipWriter)
	}
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // proc(5): resets the peak
		t.Fatal(err)
	}
	idle := status(t, "VmRSS:")
	group, ctx := errgroup.WithContext(t.Context())
	for i, blob := range blobs {
		group.Go(func() error { return unpackLayer(ctx, filepath.Join(dir, strconv.Itoa(i)), blob) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	peak := status(t, "VmHWM:")
	t.Logf("idle %d KiB, at most %d KiB more", idle>>10, (peak-idle)>>10)
	if peak-idle > maxPeak {
		t.Errorf("unpacking took %d MiB, at most %d are right", (peak-idle)>>20, int64(maxPeak)>>20)
	}
}

// zstdBlobs are the blobs of four layers with windows of a size, on the disk.
func zstdBlobs(t *testing.T, dir, window string) []io.Reader {
	size, err := strconv.Atoi(window)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "blob")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	blob := generate("1 GiB of zeros", func(w io.Writer) (io.WriteCloser, error) {
		return zstd.NewWriter(w, zstd.WithWindowSize(size), zstd.WithEncoderConcurrency(1))
	})
	if _, err := io.Copy(f, blob); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var blobs []io.Reader
	for range 4 {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		blobs = append(blobs, f)
	}
	return blobs
}

// unpackLayer is what the image service does with a blob, and then checks what is there.
func unpackLayer(ctx context.Context, dir string, blob io.Reader) error {
	root, meta := filepath.Join(dir, "root"), filepath.Join(dir, "meta")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	plain, err := unpack.Decompress(ctx, "", blob, unpack.Limits{})
	if err != nil {
		return err
	}
	defer plain.Close()
	ahead, stop, err := unpack.ReadAhead(plain)
	if err != nil {
		return err
	}
	defer stop()
	recorder, err := layertar.Record(ahead, meta)
	if err != nil {
		return err
	}
	_, err = unpack.Apply(ctx, root, recorder, unpack.Limits{})
	exact, recordErr := recorder.Finish()
	if err := errors.Join(err, recordErr); err != nil {
		return err
	}
	if !exact {
		return errors.New("the tar cannot be written again")
	}
	return nil
}

// status is a number of bytes of proc_pid_status(5).
func status(t *testing.T, key string) int64 {
	t.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) == 3 && fields[0] == key {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("no %s", key)
	return 0
}
