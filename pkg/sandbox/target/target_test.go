package target

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/spec"
)

func TestCheck(t *testing.T) {
	rootfs, host := t.TempDir(), t.TempDir()
	file, dir := filepath.Join(host, "file"), filepath.Join(host, "dir")
	if err := errors.Join(
		os.Mkdir(dir, 0o755), os.WriteFile(file, nil, 0o600), os.WriteFile(filepath.Join(dir, "below"), nil, 0o600),
		os.MkdirAll(filepath.Join(rootfs, "etc/ssl"), 0o755), os.WriteFile(filepath.Join(rootfs, "etc/passwd"), nil, 0o600),
		os.Symlink("/etc/passwd", filepath.Join(rootfs, "link")), os.Symlink("../../proc/sys", filepath.Join(rootfs, "etc/kernel")),
		os.Symlink("/", filepath.Join(rootfs, "top")), os.Symlink("/vol", filepath.Join(rootfs, "alias")),
		os.Symlink("circle", filepath.Join(rootfs, "circle")),
	); err != nil {
		t.Fatal(err)
	}
	if _, known := hostpath.IsDir(dir); !known {
		t.Skip("the kernel does not find " + dir + " in its caches")
	}
	const at, work = "mounts.container_path: ", "working_dir: "
	for _, row := range []struct {
		source, to, cwd string
		refused         string // how the error begins
	}{
		{dir, "/etc/ssl", "/etc/ssl", ""},
		{dir, "/new/place", "/new/place/deeper", ""},
		{file, "/etc/passwd", "/", ""},
		{file, "/link", "/missing", ""},
		{file, "/new", "/etc", ""},
		{dir, "/etc/passwd", "/", at},
		{dir, "/link", "/", at},
		{file, "/etc/ssl", "/", at},
		{dir, "/etc/passwd/x", "/", at},
		{dir, "/top", "/", at},
		{dir, "/circle", "/", at},
		{dir, "/d", "/circle", work},
		{dir, "/proc/sys", "/", at},
		{dir, "/etc/kernel", "/", at},
		{dir, "/proc/../proc/1/x", "/", at},
		{dir, "/proc", "/", at},
		{"/proc", "/proc", "/proc", ""},
		{file, "/proc/meminfo", "/", ""},
		{dir, "/process", "/", ""},
		{dir, "/vol", "/vol/below", ""}, // is not looked at
		{dir, "/alias", "/vol", ""},
		{file, "/work", "/work", work},
		{dir, "/d", "/etc/passwd", work},
		{dir, "/d", "/link", work},
		{dir, "/d", "/etc/passwd/x", work},
	} {
		s := &specs.Spec{Root: &specs.Root{Path: rootfs}, Process: &specs.Process{Cwd: row.cwd}, Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: row.to, Type: "bind", Source: row.source},
		}}
		err := Check(t.Context(), nil, s, []spec.Mount{{Source: row.source, Destination: row.to}}, "working_dir")
		if row.refused == "" && err != nil || row.refused != "" && (!errors.Is(err, spec.ErrInvalid) || !strings.HasPrefix(err.Error(), row.refused)) {
			t.Errorf("%+v: %v", row, err)
		}
	}
}

// What another mount brings is not the image's.
func TestCheckBelowMounts(t *testing.T) {
	rootfs, source := t.TempDir(), t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(rootfs, "v"), 0o755), os.WriteFile(filepath.Join(rootfs, "v/f"), nil, 0o600),
		os.Symlink("/proc/mounts", filepath.Join(rootfs, "v/mtab")), os.Symlink("/v2", filepath.Join(rootfs, "v/run")),
		os.Mkdir(filepath.Join(rootfs, "v2"), 0o755), os.WriteFile(filepath.Join(rootfs, "v2/app"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	s := &specs.Spec{Root: &specs.Root{Path: rootfs}, Process: &specs.Process{Cwd: "/v/f"}}
	mounts := []spec.Mount{{Source: source, Destination: "/v"}, {Source: source, Destination: "/v/f"},
		{Source: source, Destination: "/v/mtab"}, {Source: source, Destination: "/v/run/app"}}
	for _, m := range mounts {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: m.Destination, Type: "bind", Source: m.Source})
	}
	if err := Check(t.Context(), nil, s, mounts, "working_dir"); err != nil {
		t.Error(err)
	}
}
