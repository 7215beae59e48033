package catalog

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"criserver/test/images/image"
)

// busybox is Debian's busybox package, unpacked: the program and the libraries it is linked with.
//
// The package busybox-static is no base for test images: its shell runs applets without looking at
// the file system, so a masked /bin/ls would still list.
type busybox struct {
	program []byte
	applets []string
	libs    []image.File
}

func loadBusybox(ctx context.Context, cache string) (*busybox, error) {
	dir := filepath.Join(cache, "busybox")
	path := filepath.Join(dir, "bin", "busybox")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := downloadBusybox(ctx, cache, dir); err != nil {
			return nil, err
		}
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read busybox: %w", err)
	}
	list, err := exec.CommandContext(ctx, path, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list applets of busybox: %w", err)
	}
	libs, err := libraries(path)
	if err != nil {
		return nil, err
	}
	return &busybox{program: program, applets: strings.Fields(string(list)), libs: libs}, nil
}

// downloadBusybox unpacks the package into dir, without installing it: it conflicts with busybox-static.
func downloadBusybox(ctx context.Context, cache, dir string) error {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return fmt.Errorf("make cache: %w", err)
	}
	tmp, err := os.MkdirTemp(cache, "busybox-*")
	if err != nil {
		return fmt.Errorf("make cache: %w", err)
	}
	defer os.RemoveAll(tmp)
	download := exec.CommandContext(ctx, "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "busybox")
	download.Dir = tmp
	if out, err := download.CombinedOutput(); err != nil {
		return fmt.Errorf("download package busybox: %w: %s", err, out)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "busybox_*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("download package busybox: got files %q: %w", debs, err)
	}
	root := filepath.Join(tmp, "root")
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", debs[0], root).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack package busybox: %w: %s", err, out)
	}
	// Another run may have done the same meanwhile; its result is as good.
	if err := os.Rename(root, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("keep package busybox: %w", err)
	}
	return nil
}

// libraries are the files that a dynamically linked program needs, at the paths it has them on this machine.
func libraries(path string) ([]image.File, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer f.Close()
	needed, err := f.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("read libraries of %s: %w", path, err)
	}
	paths := []string{}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			name := make([]byte, p.Filesz)
			if _, err := p.ReadAt(name, 0); err != nil {
				return nil, fmt.Errorf("read interpreter of %s: %w", path, err)
			}
			paths = append(paths, strings.TrimRight(string(name), "\x00"))
		}
	}
	for _, lib := range needed {
		found, err := filepath.Glob("/lib/*-linux-gnu*/" + lib)
		if err != nil || len(found) == 0 {
			return nil, fmt.Errorf("find library %s of %s: none in /lib/*-linux-gnu", lib, path)
		}
		paths = append(paths, found[0])
	}
	files := make([]image.File, 0, len(paths))
	for _, p := range paths {
		body, err := os.ReadFile(p)
		if err != nil {
			return nil, fmt.Errorf("read library: %w", err)
		}
		files = append(files, image.File{Path: strings.TrimPrefix(p, "/"), Mode: 0o755, Body: body})
	}
	return files, nil
}
