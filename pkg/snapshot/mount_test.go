package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot/fsmount"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
}

// stack makes n lower directories, each with a file of its number, and an upper and a work directory below base.
func stack(t testing.TB, base string, n int) Mount {
	t.Helper()
	lower := make([]string, n)
	for i := range n {
		lower[i] = fmt.Sprintf("layer-%03d", i)
		dir := filepath.Join(base, lower[i])
		err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644))
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(filepath.Join(base, "u"), 0o755), os.Mkdir(filepath.Join(base, "w"), 0o755)); err != nil {
		t.Fatal(err)
	}
	return Mount{
		Type:    "overlay",
		Source:  "overlay",
		Options: []string{"lowerdir=" + strings.Join(lower, ":"), "upperdir=u", "workdir=w"},
		Dir:     base,
	}
}

// target is an empty directory that is unmounted at the end of the test.
func target(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		if err := Unmount(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func names(t testing.TB, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func mounted(t testing.TB, dir string) int {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(table), " "+dir+" ")
}

func TestMountAllRelativeToDir(t *testing.T) {
	needRoot(t)
	before, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	m := stack(t, t.TempDir(), 5)
	flags, data := parseOptions(m.Options)
	ways := map[string]func(string) error{
		"MountAll": func(dir string) error { return MountAll([]Mount{m}, dir) },
		"mount(2)": func(dir string) error { return m.mountClassic(dir, nil, flags, strings.Join(data, ",")) },
	}
	for name, mount := range ways {
		dir := target(t)
		if err := mount(dir); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if n := names(t, dir); n != 5 {
			t.Errorf("%s: %d names, want 5", name, n)
		}
		if err := Unmount(dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after, err := os.Getwd(); err != nil || after != before {
		t.Errorf("working directory %s, %v; was %s", after, err, before)
	}
}

func TestMountAllRelativeTarget(t *testing.T) {
	needRoot(t)
	m := stack(t, t.TempDir(), 2)
	dir := target(t)
	t.Chdir(filepath.Dir(dir))
	flags, data := parseOptions(m.Options)
	if err := m.mountClassic(filepath.Base(dir), nil, flags, strings.Join(data, ",")); err != nil {
		t.Fatal(err)
	}
	if n := mounted(t, dir); n != 1 {
		t.Errorf("%d mounts on the target, want 1", n)
	}
}

func TestMountAllBeyondAPage(t *testing.T) {
	needRoot(t)
	m := stack(t, t.TempDir(), 450)
	flags, data := parseOptions(m.Options)
	dir := target(t)
	if err := m.mountClassic(dir, nil, flags, strings.Join(data, ",")); !errors.Is(err, unix.E2BIG) {
		t.Errorf("mount(2) with more than a page: %v, want %v", err, unix.E2BIG)
	}
	if ok, err := fsmount.LowerdirPlus(); err != nil || !ok {
		t.Skipf("this kernel has no lowerdir+ (%v)", err)
	}
	if err := MountAll([]Mount{m}, dir); err != nil {
		t.Fatal(err)
	}
	if n := names(t, dir); n != 450 {
		t.Errorf("%d names, want 450", n)
	}
}

func TestMountAllBind(t *testing.T) {
	needRoot(t)
	source, dir := t.TempDir(), target(t)
	err := MountAll([]Mount{{Type: "bind", Source: source, Options: []string{"rbind", "ro", "nosuid", "nodev"}}}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only bind: %v", err)
	}
	// A bind of that without options of its own keeps the flags of its source.
	second := target(t)
	if err := MountAll([]Mount{{Source: dir, Options: []string{"bind", "noexec", "rw"}}}, second); err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(second, &st); err != nil {
		t.Fatal(err)
	}
	const want = unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
	if st.Flags&want != want {
		t.Errorf("flags %#x, want all of %#x", st.Flags, want)
	}
	err = MountAll([]Mount{{Type: "bind", Source: source, Options: []string{"bind", "size=1m"}}}, target(t))
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("bind with a file system option: %v", err)
	}
}

func TestMountAllFailureLeavesNothing(t *testing.T) {
	needRoot(t)
	dir := target(t)
	tmpfs := Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m", "noexec"}}
	bind := Mount{Type: "bind", Source: t.TempDir(), Options: []string{"bind", "ro"}}
	for name, bad := range map[string]Mount{
		"unknown type":   {Type: "criserverfs", Source: "x"},
		"missing lower":  {Type: "overlay", Source: "overlay", Options: []string{"lowerdir=none:/"}, Dir: t.TempDir()},
		"missing dir":    {Type: "tmpfs", Source: "tmpfs", Dir: filepath.Join(dir, "none")},
		"missing source": {Type: "bind", Source: filepath.Join(dir, "none"), Options: []string{"bind"}},
	} {
		if err := MountAll([]Mount{tmpfs, bind, bad}, dir); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: error %v, want one that names the target", name, err)
		}
		if n := mounted(t, dir); n != 0 {
			t.Errorf("%s: %d mounts left", name, n)
		}
	}
}

func TestMountErrorSaysWhy(t *testing.T) {
	needRoot(t)
	if ok, err := fsmount.LowerdirPlus(); err != nil || !ok {
		t.Skipf("this kernel has no lowerdir+ (%v)", err)
	}
	m := stack(t, t.TempDir(), 2)
	m.Options = append(m.Options, "no_such_option=1")
	err := MountAll([]Mount{m}, target(t))
	if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "no_such_option") {
		t.Errorf("error %v, want %v naming the option", err, unix.EINVAL)
	}
}

func TestUnmount(t *testing.T) {
	needRoot(t)
	dir := target(t)
	tmpfs := Mount{Type: "tmpfs", Source: "tmpfs"}
	if err := MountAll([]Mount{tmpfs, tmpfs, tmpfs}, dir); err != nil {
		t.Fatal(err)
	}
	busy, err := os.Create(filepath.Join(dir, "busy"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if err := Unmount(link); err != nil || mounted(t, dir) != 3 {
		t.Errorf("unmount of a symbolic link: %v, %d mounts left of 3", err, mounted(t, dir))
	}
	for range 2 {
		if err := Unmount(dir); err != nil || mounted(t, dir) != 0 {
			t.Errorf("unmount: %v, %d mounts left", err, mounted(t, dir))
		}
	}
	for _, nothing := range []string{filepath.Join(dir, "none"), busy.Name()} {
		if err := Unmount(nothing); err != nil {
			t.Errorf("unmount %s: %v", nothing, err)
		}
	}
}

func TestParseOptions(t *testing.T) {
	flags, data := parseOptions([]string{"ro", "nosuid", "rw", "noatime", "size=1m", "defaults", "volatile"})
	if flags != unix.MS_NOSUID|unix.MS_NOATIME || !slices.Equal(data, []string{"size=1m", "volatile"}) {
		t.Errorf("flags %#x, data %q", flags, data)
	}
}

func TestOverlayParamsLeavesToMount(t *testing.T) {
	for name, option := range map[string]string{
		"escaped colon": `lowerdir=/a\:b:/c`,
		"data layer":    "lowerdir=/a::/b",
		"long path":     "upperdir=/" + strings.Repeat("x", fsmount.MaxValue),
	} {
		if _, ok := (Mount{}).overlayParams(0, []string{option}); ok {
			t.Errorf("%s: fsconfig(2) is said to take %.40s", name, option)
		}
	}
}

func TestCheckKey(t *testing.T) {
	for _, key := range []string{"a", "0", "A.b_c-d", strings.Repeat("f", MaxKey)} {
		if err := CheckKey(key); err != nil {
			t.Error(err)
		}
	}
	for _, key := range []string{"", ".", "..", "-a", "_a", "a/b", "a b", "ä", "a\x00", strings.Repeat("f", MaxKey+1)} {
		if err := CheckKey(key); !errors.Is(err, ErrInvalid) {
			t.Errorf("key %q: %v, want %v", key, err, ErrInvalid)
		}
	}
}

func TestDiskUsage(t *testing.T) {
	dir := t.TempDir()
	empty, err := DiskUsage(t.Context(), dir)
	if err != nil || empty.Inodes != 1 {
		t.Errorf("empty directory: %+v, %v", empty, err)
	}
	file := filepath.Join(dir, "file")
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(os.WriteFile(file, make([]byte, 64<<10), 0o644), os.Link(file, file+"2"),
		sparse.Truncate(1<<30), sparse.Close(), os.Symlink("nowhere", filepath.Join(dir, "link")))
	if err != nil {
		t.Fatal(err)
	}
	usage, err := DiskUsage(t.Context(), dir)
	if grown := usage.Bytes - empty.Bytes; err != nil || usage.Inodes != 4 || grown < 64<<10 || grown > 80<<10 {
		t.Errorf("%+v after %+v, %v; want 4 inodes and 64 KiB more", usage, empty, err)
	}
	if _, err := DiskUsage(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

func BenchmarkMount(b *testing.B) {
	needRoot(b)
	for _, layers := range []int{5, 100} {
		m := stack(b, b.TempDir(), layers)
		m.Options[1], m.Options[2] = "ro", "index=off" // with an upper directory, syncing it at unmount hides the rest
		flags, data := parseOptions(m.Options)
		dir := target(b)
		run := func(name string, mount func() error) {
			b.Run(fmt.Sprintf("%s/%d", name, layers), func(b *testing.B) {
				for b.Loop() {
					if err := errors.Join(mount(), Unmount(dir)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		run("fsmount", func() error { return MountAll([]Mount{m}, dir) })
		run("mount", func() error { return m.mountClassic(dir, nil, flags, strings.Join(data, ",")) })
	}
	b.Run("thread", func(b *testing.B) {
		for b.Loop() {
			if err := onThread("/", nil, func() error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// The first thread of a process outlives its goroutine: no thread may keep the directory busy.
func TestOnThreadLeavesTheDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("unshare needs root")
	}
	dir := t.TempDir()
	for range 100 {
		if err := onThread(dir, nil, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		cwds, err := filepath.Glob("/proc/self/task/*/cwd")
		if err != nil {
			t.Fatal(err)
		}
		for _, cwd := range cwds {
			if to, _ := os.Readlink(cwd); to == dir {
				t.Fatalf("%s is %s", cwd, to)
			}
		}
	}
}
