package device

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/spec"
)

func TestFind(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	got, err := Find(t.Context(), nil, []Want{{HostPath: link, ContainerPath: "/dev/x", Permissions: "r"}, {HostPath: "/dev/zero"}})
	if err != nil || len(got) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	if d := got[0]; d.Path != "/dev/x" || d.Type != "c" || d.Major != 1 || d.Minor != 3 || d.Permissions != "r" {
		t.Errorf("got %+v", d)
	}
	if d := got[1]; d.Path != "/dev/zero" || d.Minor != 5 || d.Permissions != "rwm" {
		t.Errorf("got %+v", d)
	}
	all, err := Find(t.Context(), nil, []Want{{HostPath: "/dev", ContainerPath: "/mnt/dev"}})
	if err != nil || !slices.ContainsFunc(all, func(d spec.Device) bool { return d.Path == "/mnt/dev/null" }) {
		t.Errorf("directory: %+v, %v", all, err)
	}
	for path, names := range map[string]string{"dev/null": "absolute", "/no/such": "/no/such", "/etc/passwd": "/etc/passwd", "/etc/passwd/x": "no /etc/passwd/x", t.TempDir(): "no device"} {
		if _, err := Find(t.Context(), nil, []Want{{HostPath: path}}); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), names) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestCDI(t *testing.T) {
	dir := t.TempDir()
	file := `{"cdiVersion": "0.6.0", "kind": "vendor.com/gpu", "devices": [{"name": "a", "containerEdits": {
		"env": ["GPU=a"], "deviceNodes": [{"path": "/dev/gpu-a", "hostPath": "/dev/null"}],
		"mounts": [{"hostPath": "/etc", "containerPath": "/gpu", "options": ["ro", "bind"]}]}}]}`
	if err := os.WriteFile(filepath.Join(dir, "v.json"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	names, err := CDINames([]string{"vendor.com/gpu=a"}, map[string]string{"cdi.k8s.io/x": "vendor.com/gpu=a"})
	if err != nil || len(names) != 1 {
		t.Fatalf("%q, %v", names, err)
	}
	s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
	if err := InjectCDI(t.Context(), []string{dir}, s, names); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.Process.Env, []string{"GPU=a"}) || len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Minor != 3 ||
		len(s.Linux.Resources.Devices) != 1 || len(s.Mounts) != 1 {
		t.Errorf("got %+v %+v", s.Process, s.Linux)
	}
	err = InjectCDI(t.Context(), []string{dir}, s, []string{"vendor.com/gpu=b"})
	if !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "vendor.com/gpu=b") {
		t.Errorf("unknown device: %v", err)
	}
}
