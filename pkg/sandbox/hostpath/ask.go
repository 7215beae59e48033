package hostpath

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"criserver/pkg/flight"
)

// Asker asks for host paths that are no mounts. nil asks in this process.
type Asker struct {
	// Program is the command that looks at the path that is its last argument, with probe.Look, and ends when there is an answer.
	Program []string

	looks singleflight.Group
}

// Ask calls fn, which works on a host path, once its file system has answered a process of its own, unless that is of this machine. fn is
// on a goroutine: where a file system ceases to answer just then, it holds that, and not the call, which ends with ctx and names the
// path.
func Ask[T any](ctx context.Context, a *Asker, path string, fn func() (T, error)) (T, error) {
	var none T
	if err := a.answers(ctx, path); err != nil {
		return none, err
	}
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		value, err := fn()
		done <- answer{value, err}
	}()
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
		return none, fmt.Errorf("host path %s does not answer: %w", path, context.Cause(ctx))
	}
}

// Soon is Ask for what takes no longer than it takes the file system to answer: it ends after half a minute too.
func Soon[T any](ctx context.Context, a *Asker, path string, fn func() (T, error)) (T, error) {
	ctx, cancel := limited(ctx)
	defer cancel()
	return Ask(ctx, a, path, fn)
}

// Below asks for each mount below a directory, whose path has no symlinks, before what looks at all that is there.
func Below(ctx context.Context, a *Asker, dir string) error {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, at := range newMountTable(mountinfo).remote {
		if !strings.HasPrefix(at, strings.TrimSuffix(dir, "/")+"/") {
			continue
		}
		if _, err := Soon(ctx, a, at, func() (struct{}, error) { return struct{}{}, nil }); err != nil {
			return err
		}
	}
	return nil
}

// answers waits until a path is safe to ask for.
func (a *Asker) answers(ctx context.Context, path string) error {
	if a == nil || !filepath.IsAbs(path) || strings.ContainsRune(path, 0) || local(path) {
		return nil // what is no path is fn's to refuse
	}
	flight.Stage(ctx, "it waits for host path "+path)
	select {
	case answer := <-a.looks.DoChan(path, func() (any, error) { return nil, a.look(path) }):
		return answer.Err
	case <-ctx.Done():
		return fmt.Errorf("host path %s does not answer: %w", path, context.Cause(ctx))
	}
}

// look has a process look at the path. What that finds is not told: fn finds it again.
func (a *Asker) look(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), probeLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.Program[0], append(slices.Clone(a.Program[1:]), path)...)
	cmd.Dir = "/"
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("host path %s did not answer in %s: %w", path, probeLimit, ctx.Err())
	}
	return fmt.Errorf("ask for host path %s: %w", path, err)
}

// local tells whether a path, and nothing on the way to it, is of a file system that could hang, also where there is nothing at that path.
// It goes from name to name, as far as the kernel has them not in its caches already, and neither over a mount nor along a link.
func local(path string) bool {
	path = filepath.Clean(path)
	var table mountTable
	for {
		above, ok := deepest(path, &table)
		if !ok || above == path {
			return ok
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(path, above), "/"), "/")
		switch there, err := lookUp(above, name); {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return true
		case err != nil || !there:
			return false
		}
		next := filepath.Join(above, name)
		if _, known, _ := look(next, &table); !known {
			return false
		}
	}
}

// lookUp has the kernel look for a name in a directory that it knows; false if that is a mount point or a link.
func lookUp(dir, name string) (bool, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolveCached})
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	const inside = unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH
	found, err := unix.Openat2(fd, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: inside})
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ELOOP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var st unix.Stat_t
	err = unix.Fstat(found, &st)
	return err == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK, errors.Join(err, unix.Close(found))
}
