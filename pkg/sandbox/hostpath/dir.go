package hostpath

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/hostpath/probe"
	"criserver/pkg/sandbox/spec"
)

// answerLimit is how long a file system may take for what is not a volume, which pods know that they wait for.
const answerLimit = 30 * time.Second

// limited is ctx with a deadline for an answer.
func limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, answerLimit, fmt.Errorf("no answer in %s: %w", answerLimit, context.DeadlineExceeded))
}

// MakeDir makes the directory path, and those above it, unless they are there. waits is called before it waits for a file system. When ctx
// ends, or after half a minute, the error names the path. spec.ErrInvalid: it is no directory, as far as the kernel knows without asking, and none can be made.
func (r *Resolver) MakeDir(ctx context.Context, path string, waits func()) error {
	done, err := makeLocal(path)
	if !done && err == nil {
		ctx, cancel := limited(ctx)
		defer cancel()
		_, err = r.await(ctx, path, func(string) { waits() })
	}
	if dir, known := IsDir(path); err == nil && known && !dir {
		err = probe.Blame(fmt.Errorf("%s: %w", path, unix.ENOTDIR))
	}
	if errors.Is(err, probe.ErrUnusable) {
		return fmt.Errorf("%w: %w", spec.ErrInvalid, err)
	}
	return err
}

// IsDir tells whether a path leads to a directory, as far as the kernel has it in its caches: it asks no file system (openat2(2),
// RESOLVE_CACHED).
func IsDir(path string) (dir, known bool) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: flags, Resolve: resolveCached})
	if err == nil {
		_ = unix.Close(fd)
	}
	return err == nil, err == nil || errors.Is(err, unix.ENOTDIR)
}

// makeLocal makes a directory as far as only file systems of this machine are asked, one name after the other below what the kernel
// has in its caches; where one has a mount on it, or is a link, the next look at it finds out. It tells whether that was all.
func makeLocal(path string) (done bool, err error) {
	path = filepath.Clean(path)
	var table mountTable
	for {
		above, ok := deepest(path, &table)
		if !ok || above == path {
			return ok, nil
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(path, above), "/"), "/")
		next := filepath.Join(above, name)
		if err := unix.Mkdir(next, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return false, fmt.Errorf("make directory %s: %w", next, probe.Blame(err))
		}
		if _, ok := quick(next, &table); !ok {
			return false, nil
		}
	}
}

// deepest is the longest part of a path that quick resolves, and is false if what it leads to may hang.
func deepest(path string, table *mountTable) (string, bool) {
	for at := path; ; at = filepath.Dir(at) {
		if _, known, local := look(at, table); known || at == "/" {
			return at, local
		}
	}
}
