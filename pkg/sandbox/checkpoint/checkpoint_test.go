package checkpoint_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/checkpoint"
)

func newDir(t *testing.T) (root string, dir checkpoint.Dir) {
	t.Helper()
	root = t.TempDir()
	dir, err := checkpoint.MakeDir(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.Describe(checkpoint.Config{ID: "id", RootfsImageName: "image"}, []byte(`{"process":{"args":["a"]}}`), time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir.Images(), "pages-1.img"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return root, dir
}

func TestPack(t *testing.T) {
	root, dir := newDir(t)
	location := filepath.Join(t.TempDir(), "archive")
	if err := dir.Pack(t.Context(), location); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(location)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var names []string
	for r := tar.NewReader(f); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, header.Name)
	}
	if want := []string{"checkpoint/", "checkpoint/pages-1.img", "config.dump", "spec.dump", "status"}; !slices.Equal(names, want) {
		t.Errorf("the archive has %v, want %v", names, want)
	}
	if err := dir.Pack(t.Context(), location); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second archive in its place: %v", err)
	}
	if err := errors.Join(dir.Remove(), dir.Remove()); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(root); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestPackCutOff leaves nothing in the archive's place.
func TestPackCutOff(t *testing.T) {
	root, dir := newDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	place := t.TempDir()
	if err := dir.Pack(ctx, filepath.Join(place, "archive")); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	// As if this process had died in it: the next one finds what it was making, and where.
	partial := filepath.Join(place, "archive."+filepath.Base(string(dir))+".partial")
	if err := os.WriteFile(partial, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(root, "kept")
	if err := os.Mkdir(kept, 0o700); err != nil {
		t.Fatal(err)
	}
	stale, err := checkpoint.Tools{Root: root}.Prepare(func(id string) bool { return id == "kept" })
	if err != nil {
		t.Fatal(err)
	}
	checkpoint.Sweep(t.Context(), stale)
	if left, _ := os.ReadDir(place); len(left) > 0 {
		t.Errorf("in the archive's place there are %v", left)
	}
	if left, _ := os.ReadDir(root); len(left) != 1 || left[0].Name() != "kept" {
		t.Errorf("left: %v", left)
	}
}

// TestPackBesideStrangersFiles: what is in the way of an archive, or is somebody else's part of one, stays.
func TestPackBesideStrangersFiles(t *testing.T) {
	_, dir := newDir(t)
	place := t.TempDir()
	location := filepath.Join(place, "archive")
	precious := filepath.Join(location+".partial", "precious")
	if err := errors.Join(os.Mkdir(location+".partial", 0o700), os.WriteFile(precious, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := dir.Pack(t.Context(), location); err != nil {
		t.Fatal(err)
	}
	_, second := newDir(t)
	if err := second.Pack(t.Context(), location); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second one: %v", err)
	}
	if err := errors.Join(dir.Remove(), second.Remove()); err != nil {
		t.Error(err)
	}
	for _, path := range []string{location, precious} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
}

// TestReadOfNoFiles: a description is a file, as is the layer, or the checkpoint is refused, and that at once.
func TestReadOfNoFiles(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"fifo":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"link":      func(path string) error { return os.Symlink("/etc/passwd", path) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		dir, err := checkpoint.StageDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := make(filepath.Join(string(dir), checkpoint.SpecFile)); err != nil {
			t.Fatal(err)
		}
		if _, err := dir.Spec(); !errors.Is(err, checkpoint.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if err := make(filepath.Join(string(dir), checkpoint.LayerTar)); err != nil {
			t.Fatal(err)
		}
		err = dir.EachLayer(func(io.Reader) error { return errors.New("it was unpacked") })
		if !errors.Is(err, checkpoint.ErrInvalid) {
			t.Errorf("layer that is a %s: %v", name, err)
		}
	}
}

// TestAdaptRefuses what comes back as it was, whatever is asked for.
func TestAdaptRefuses(t *testing.T) {
	base := func() *specs.Spec {
		return &specs.Spec{
			Process: &specs.Process{Args: []string{"a"}},
			Mounts:  []specs.Mount{{Destination: "/v", Type: "bind", Source: "/srv", Options: []string{"rbind", "rw"}}},
			Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
				{Type: specs.NetworkNamespace, Path: "/n"}, {Type: specs.IPCNamespace, Path: "/i"}, {Type: specs.PIDNamespace},
			}},
		}
	}
	drop := func(t specs.LinuxNamespaceType) func(*specs.Spec) {
		return func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == t })
		}
	}
	for want, change := range map[string]func(*specs.Spec){
		"":                                 func(*specs.Spec) {},
		"the network namespace":            drop(specs.NetworkNamespace),
		"the ipc namespace":                drop(specs.IPCNamespace),
		"the pid namespace":                func(s *specs.Spec) { s.Linux.Namespaces[2].Path = "/p" },
		"mounts: the one at /v had the op": func(s *specs.Spec) { s.Mounts[0].Options = []string{"rbind", "ro"} },
		"mounts: the container had one at": func(s *specs.Spec) { s.Mounts = nil },
	} {
		dir, err := checkpoint.StageDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(base())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(string(dir), checkpoint.SpecFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
		s := base()
		change(s)
		err = dir.Adapt(s, []string{"/v"}, false)
		if (want == "") != (err == nil) || err != nil && (!errors.Is(err, checkpoint.ErrInvalid) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestRemoveOfStrangersFiles: what an archive has in it says nothing of files elsewhere.
func TestRemoveOfStrangersFiles(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := checkpoint.StageDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"partial", ".partial", "dump.partial"} {
		if err := os.WriteFile(filepath.Join(string(dir), name), []byte(victim), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := dir.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(victim); err != nil {
		t.Error(err)
	}
}

func TestEachLayer(t *testing.T) {
	_, dir := newDir(t)
	if err := os.WriteFile(filepath.Join(string(dir), "deleted.files"), []byte(`["etc/group", "/a/../b", "b"]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := dir.WriteLayer(func(w io.Writer) error { _, err := io.WriteString(w, "the tar"); return err }); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := dir.EachLayer(func(r io.Reader) error {
		if len(got) > 0 {
			data, err := io.ReadAll(r)
			got = append(got, string(data))
			return err
		}
		for tr := tar.NewReader(r); ; {
			header, err := tr.Next()
			if err != nil {
				return nil
			}
			got = append(got, header.Name)
		}
	})
	if want := []string{".wh.b", "etc/.wh.group", "the tar"}; err != nil || !slices.Equal(slices.Sorted(slices.Values(got)), want) {
		t.Errorf("layers: %v, %v, want %v", got, err, want)
	}
}

func TestAdapt(t *testing.T) {
	_, dir := newDir(t)
	had := `{"process":{"args":["a"],"cwd":"/c","env":["E=1"],"user":{"uid":7}},"mounts":[{"destination":"/m","type":"bind"},{"destination":"/proc","type":"proc"}]}`
	if err := os.WriteFile(filepath.Join(string(dir), "spec.dump"), []byte(had), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := func() *specs.Spec {
		return &specs.Spec{Process: &specs.Process{Args: []string{"b"}, NoNewPrivileges: true}, Mounts: []specs.Mount{{Destination: "/m", Type: "bind"}}}
	}
	s := spec()
	if err := dir.Adapt(s, []string{"/m/"}, false); err != nil {
		t.Fatal(err)
	}
	if p := s.Process; p.Args[0] != "a" || p.Cwd != "/c" || p.Env[0] != "E=1" || p.User.UID != 7 || !p.NoNewPrivileges {
		t.Errorf("process = %+v", p)
	}
	like := func(s *specs.Spec) {
		s.Process = &specs.Process{Args: []string{"a"}, Cwd: "/c", Env: []string{"HOSTNAME=other", "E=1"}, User: specs.User{UID: 7}}
	}
	s = spec()
	like(s)
	if err := dir.Adapt(s, nil, true); err != nil {
		t.Errorf("one that is the same: %v", err)
	}
	for name, row := range map[string]struct {
		change func(*specs.Spec)
		wanted []string
		must   bool
	}{
		"terminal":     {func(s *specs.Spec) { s.Process.Terminal = true }, nil, false},
		"no mount":     {func(s *specs.Spec) { s.Mounts = nil }, nil, false},
		"new mount":    {func(*specs.Spec) {}, []string{"/other"}, false},
		"command":      {func(s *specs.Spec) { like(s); s.Process.Args = []string{"b"} }, nil, true},
		"variable":     {func(s *specs.Spec) { like(s); s.Process.Env = []string{"E=2"} }, nil, true},
		"user":         {func(s *specs.Spec) { like(s); s.Process.User.UID = 8 }, nil, true},
		"directory":    {func(s *specs.Spec) { like(s); s.Process.Cwd = "/" }, nil, true},
		"no_new_privs": {func(s *specs.Spec) { like(s); s.Process.NoNewPrivileges = true }, nil, true},
		"capability": {func(s *specs.Spec) {
			like(s)
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_SYS_ADMIN"}}
		}, nil, true},
		"seccomp": {func(s *specs.Spec) { like(s); s.Linux = &specs.Linux{Seccomp: &specs.LinuxSeccomp{}} }, nil, true},
		"device":  {func(s *specs.Spec) { like(s); s.Linux = &specs.Linux{Devices: []specs.LinuxDevice{{Path: "/dev/x"}}} }, nil, true},
	} {
		s := spec()
		row.change(s)
		if err := dir.Adapt(s, row.wanted, row.must); !errors.Is(err, checkpoint.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestImages(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	_, err := checkpoint.Tools{Root: dir}.Images("/x")
	if !errors.Is(err, checkpoint.ErrNoCRIU) || !strings.Contains(err.Error(), "runtime.criu") {
		t.Errorf("without criu: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "criu"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if images, err := (checkpoint.Tools{Root: dir}).Images("/x"); err != nil || images.CRIU != filepath.Join(dir, "criu") || images.Dir != "/x/checkpoint" {
		t.Errorf("images = %+v, %v", images, err)
	}
}
