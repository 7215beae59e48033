// Package hostpath prepares the host paths that containers mount. They may be on file systems that hang.
//
// A thread that asks such a file system is in uninterruptible sleep until that answers, and a process with such a thread does
// not end: its lock and its sockets stay taken. So this process asks only what the kernel tells from its caches, and of file
// systems that need nobody's answer; a process of its own asks the others, one for each path, whoever else wants it.
//
// A source is followed if it is a link, as the CRI demands (api.proto, Mount), and once: what is mounted is the path that was found. So
// whoever may change a directory on the way to a source decides what a container sees, links or not, and must be trusted by who names it.
// The kubelet keeps to that: directories of volumes are in ones that are root's, and a subPath it mounts on such a directory itself.
package hostpath

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/hostpath/probe"
	"criserver/pkg/sandbox/spec"
)

// probeLimit is how long a process may ask for a path before it is killed. In uninterruptible sleep it stays until the file
// system answers; nobody asks a second time for the path until then.
const probeLimit = 2 * time.Minute

// resolveCached is RESOLVE_CACHED of linux/openat2.h, which x/sys lacks.
const resolveCached = 0x20

// Resolver resolves host paths.
type Resolver struct {
	// Probe is the command that prints what probe.Resolve says of the path that is its last argument, or ends with the code of
	// probe.Code.
	Probe []string

	probes singleflight.Group
}

// Resolve follows the symlinks in the sources, and makes a directory of a source that does not exist. waits is called with
// each source before it is waited for. When ctx ends the error names the source that does not answer. spec.ErrInvalid: there is no such
// source, and none can be made.
func (r *Resolver) Resolve(ctx context.Context, mounts []spec.Mount, waits func(source string)) ([]spec.Mount, error) {
	out := slices.Clone(mounts)
	var table mountTable
	for i, m := range mounts {
		var ok bool
		if out[i].Source, ok = quick(m.Source, &table); ok {
			continue
		}
		var err error
		out[i].Source, err = r.await(ctx, m.Source, waits)
		if errors.Is(err, probe.ErrUnusable) {
			return nil, spec.Invalidf("mounts.host_path", "for %s: %v", m.Destination, err)
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Destination, err)
		}
	}
	return out, nil
}

// await waits for the answer of a process to who asks for path, which all get who ask meanwhile. probe.ErrUnusable.
func (r *Resolver) await(ctx context.Context, path string, waits func(path string)) (string, error) {
	waits(path)
	select {
	case answer := <-r.probes.DoChan(path, func() (any, error) { return r.ask(path) }):
		if answer.Err != nil {
			return "", answer.Err
		}
		return answer.Val.(string), nil
	case <-ctx.Done():
		return "", fmt.Errorf("host path %s does not answer: %w", path, context.Cause(ctx))
	}
}

// ask has a process ask for the path.
func (r *Resolver) ask(path string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), probeLimit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, r.Probe[0], append(slices.Clone(r.Probe[1:]), path)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Dir = "/"
	err := cmd.Run()
	switch {
	case err == nil:
		return stdout.String(), nil
	case ctx.Err() != nil:
		return "", fmt.Errorf("host path %s did not answer in %s: %w", path, probeLimit, ctx.Err())
	case errors.Is(probe.Cause(cmd.ProcessState.ExitCode()), probe.ErrUnusable):
		return "", probe.Unusable(errors.New(strings.TrimSpace(stderr.String())))
	case stderr.Len() > 0:
		return "", errors.New(strings.TrimSpace(stderr.String()))
	}
	return "", fmt.Errorf("ask for host path %s: %w", path, err)
}

// quick resolves a path without asking a file system that could hang: RESOLVE_CACHED fails where the kernel does not know all
// of the path, and neither opening nor naming an O_PATH descriptor asks anybody (openat2(2), open(2)). table is the list of
// mounts, once it is read.
func quick(path string, table *mountTable) (string, bool) {
	resolved, known, local := look(path, table)
	return resolved, known && local
}

// look tells also of a path that the kernel knows, but whose file system could hang.
func look(path string, table *mountTable) (resolved string, known, local bool) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolveCached})
	if err != nil {
		return "", false, false
	}
	defer unix.Close(fd)
	name := strconv.Itoa(fd)
	resolved, err = os.Readlink("/proc/self/fd/" + name)
	if err != nil || strings.HasSuffix(resolved, " (deleted)") {
		return "", false, false
	}
	info, err := os.ReadFile("/proc/self/fdinfo/" + name)
	if err != nil {
		return "", false, false
	}
	if table.text == nil {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return "", false, false
		}
		*table = newMountTable(mounts)
	}
	// Names on the way may be in the caches for a while, and then be asked for again.
	ok := isLocal(fileSystem(table.text, info)) && !table.crosses(filepath.Clean(path)) && !table.crosses(resolved)
	return resolved, true, ok
}

// mountTable is what the kernel tells of mounts.
type mountTable struct {
	text []byte // of mountinfo, after a line break
	// remote are the mount points of file systems that could hang.
	remote []string
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func newMountTable(mountinfo []byte) mountTable {
	t := mountTable{text: slices.Concat([]byte("\n"), mountinfo)}
	for line := range bytes.Lines(mountinfo) {
		mount, rest, _ := bytes.Cut(line, []byte(" - "))
		kind, _, _ := bytes.Cut(rest, []byte(" "))
		if fields := bytes.Fields(mount); len(fields) > 4 && !isLocal(string(kind)) {
			t.remote = append(t.remote, unescape.Replace(string(fields[4])))
		}
	}
	return t
}

// crosses tells whether a file system that could hang is on the way to a path.
func (t mountTable) crosses(path string) bool {
	return slices.ContainsFunc(t.remote, func(at string) bool { return path == at || strings.HasPrefix(path, strings.TrimSuffix(at, "/")+"/") })
}

// fileSystem is the type of the mount that fdinfo names (proc_pid_fdinfo(5), proc_pid_mountinfo(5)). table begins with a line
// break.
func fileSystem(table, fdinfo []byte) string {
	_, rest, _ := bytes.Cut(fdinfo, []byte("mnt_id:"))
	id, _, _ := bytes.Cut(bytes.TrimSpace(rest), []byte("\n"))
	_, line, _ := bytes.Cut(table, slices.Concat([]byte("\n"), id, []byte(" ")))
	line, _, _ = bytes.Cut(line, []byte("\n"))
	_, kind, _ := bytes.Cut(line, []byte(" - "))
	kind, _, _ = bytes.Cut(kind, []byte(" "))
	return string(kind)
}

func isLocal(kind string) bool { return slices.Contains(localFileSystems, kind) }

// localFileSystems are the file systems that need no other process and no network to answer.
var localFileSystems = strings.Fields(`ext2 ext3 ext4 xfs btrfs bcachefs f2fs zfs vfat exfat iso9660 squashfs erofs tmpfs ramfs devtmpfs rootfs overlay
	proc sysfs cgroup cgroup2 devpts mqueue hugetlbfs bpf debugfs tracefs securityfs configfs nsfs binfmt_misc`)
