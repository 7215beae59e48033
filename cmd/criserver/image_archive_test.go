package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"criserver/pkg/admin"
	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/sandbox"
)

func TestImageImport(t *testing.T) {
	var archive string
	c := administer(t, &admin.Funcs{ImportFunc: func(_ context.Context, r io.Reader, o imagesvc.ImportOptions) ([]imagesvc.Image, error) {
		data, err := io.ReadAll(r)
		if archive = string(data); archive == "bad" {
			return nil, imagesvc.ErrInvalid
		}
		return []imagesvc.Image{{ID: "sha256:i", Tags: []string{"t:" + o.Name}}, {ID: "sha256:j"}}, err
	}})
	file := writeFile(t, "of a file")
	c.wants("t: is sha256:i\nj is sha256:j\n", "import", file)
	if archive != "of a file" {
		t.Errorf("got %q", archive)
	}
	for _, args := range [][]string{{"import", "--name", "n"}, {"import", "-", "--name", "n"}} {
		if r := c.run("of stdin", args...); r.err != nil || r.out != "t:n is sha256:i\nj is sha256:j\n" || archive != "of stdin" {
			t.Errorf("%q: got %+v, %q", args, r, archive)
		}
	}
	if r := c.run("x", "import", "--json"); r.err != nil || !strings.Contains(r.out, `{"result":{"images":[{"id":"sha256:i"`) {
		t.Errorf("got %+v", r)
	}
	if r := c.run("bad", "import"); !errors.Is(r.err, imagesvc.ErrInvalid) || r.out != "" {
		t.Errorf("got %+v", r)
	}
	c.fails("/nonexistent", "import", "/nonexistent")
	c.fails("is a directory", "import", t.TempDir())
}

func TestImageExport(t *testing.T) {
	var fail error
	c := administer(t, &admin.Funcs{ExportFunc: func(_ context.Context, w io.Writer, names []string, f imagesvc.Format) error {
		_, err := io.WriteString(w, string(f)+" of "+strings.Join(names, ","))
		return errors.Join(err, fail)
	}})
	c.wants("oci of a", "export", "a")
	c.wants("docker of a,b", "export", "a", "b", "--format", "docker", "-o", "-")
	c.fails(`"zip"`, "export", "a", "--format", "zip")
	dir := t.TempDir()
	file, link := filepath.Join(dir, "a.tar"), filepath.Join(dir, "link")
	if err := os.Symlink("a.tar", link); err != nil {
		t.Fatal(err)
	}
	content := func(want string) {
		t.Helper()
		if got, err := os.ReadFile(file); string(got) != want {
			t.Errorf("the file has %q, %v", got, err)
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 2 {
			t.Errorf("left are %v", entries)
		}
	}
	c.wants(file+" has 8 B\n", "export", "a", "-o", file)
	content("oci of a")
	fail = errors.New("disk is burning")
	c.fails("disk is burning", "export", "b", "-o", file)
	content("oci of a") // as it was
	fail = nil
	c.wants("{\n  \"file\": \""+link+"\",\n  \"size\": 8\n}\n", "export", "c", "-o", link, "--json")
	content("oci of c")
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v, %v", info, err)
	}
	c.fails("no such file", "export", "a", "-o", "/nonexistent/a.tar")
	c.wants("/dev/null has 8 B\n", "export", "a", "-o", "/dev/null")
	if info, err := os.Stat("/dev/null"); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		t.Fatalf("/dev/null is replaced: %v, %v", info, err)
	}
}

func TestTerminalsAreNoFiles(t *testing.T) {
	_, ptmx := newTerminal(t)
	if !isTerminal(ptmx) || isTerminal(strings.NewReader("")) {
		t.Error("terminals are not told apart")
	}
	who := credentials{username: "me", passwordStdin: true}
	if _, err := who.read(ptmx); err == nil || !strings.Contains(err.Error(), "terminal") {
		t.Errorf("got %v", err)
	}
	if _, _, err := (&session{in: ptmx}).archive(nil); err == nil || !strings.Contains(err.Error(), "terminal") {
		t.Errorf("got %v", err)
	}
	c := administer(t, &admin.Funcs{})
	root := newRoot(nil)
	root.SetArgs([]string{"image", "--config", writeFile(t, ""), "--state", c.state, "export", "a"})
	root.SetOut(ptmx)
	if err := root.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "not written to a terminal") {
		t.Errorf("got %v", err)
	}
}

func TestImageCommit(t *testing.T) {
	var got imagesvc.CommitOptions
	c := administer(t, &admin.Funcs{
		ContainerFunc: func(id string) (sandbox.ContainerStatus, error) {
			return sandbox.ContainerStatus{ID: id, ImageID: "sha256:base", Phase: sandbox.ContainerRunning}, nil
		},
		ResolveFunc: func(name string) (imagesvc.Image, error) { return imagesvc.Image{ID: digest.Digest(name)}, nil },
		CommitFunc: func(_ context.Context, o imagesvc.CommitOptions) (imagesvc.Image, error) {
			got = o
			return imagesvc.Image{ID: "sha256:new"}, nil
		},
	})
	c.wants("sha256:new\n", "commit", "c1", "n:1", "--no-pause", "--author", "me", "--message", "why, indeed",
		"--change", `CMD ["a,b", "c"]`, "--change", "USER 1")
	if got.Snapshot != "c1" || got.Name != "n:1" || got.Author != "me" || got.Comment != "why, indeed" ||
		len(got.Changes) != 2 || got.Changes[0] != `CMD ["a,b", "c"]` {
		t.Errorf("got %+v", got)
	}
	c.fails("not supported", "commit", "c1", "n:1")
}

func TestImageCheck(t *testing.T) {
	c := administer(t, &admin.Funcs{CheckFunc: func(_ context.Context, repair bool) ([]imagesvc.Finding, error) {
		return []imagesvc.Finding{
			{Kind: "layer", Name: "sha256:l", Problem: "is gone", Images: []digest.Digest{"sha256:i", "sha256:j"}, Repaired: repair, Action: map[bool]string{true: "a\nb"}[repair]},
		}, nil
	}})
	r := c.run("", "check")
	if want := "layer sha256:l: is gone\n   images:   i, j\n"; r.out != want {
		t.Errorf("got %q", r.out)
	}
	c.wants("layer sha256:l: is gone\n   images:     i, j\n   repaired:   yes, a; b\n", "check", "--repair")
	if r.err == nil || !strings.Contains(r.err.Error(), "problems were found: 1") {
		t.Errorf("got %v", r.err)
	}
	if r := c.run("", "check", "--repair", "--json"); r.err != nil || !strings.Contains(r.out, `"repaired": true`) {
		t.Errorf("got %+v", r)
	}
	administer(t, &admin.Funcs{CheckFunc: func(context.Context, bool) ([]imagesvc.Finding, error) { return nil, nil }}).
		wants("nothing is wrong\n", "check")
}

func TestImageExplain(t *testing.T) {
	rests := time.Date(2030, 1, 2, 3, 4, 5, 0, time.Local)
	x := registry.Explanation{Reference: "docker.io/library/a:1", Registry: "docker.io", Source: "hosts.toml", Endpoints: []registry.EndpointExplanation{
		{
			URL: "https://m/v2/a", Source: "hosts.toml:3", Credential: "none", DialTimeout: "5s", RestsUntil: &rests,
			TLS:     registry.TLSExplanation{Verify: "system and configured authorities", CA: []string{"/ca.pem"}},
			Resolve: registry.Decision{Why: "it is configured without resolve"}, Pull: registry.Decision{In: true, Why: "it is a mirror"},
		},
		{URL: "https://d/v2/a", Own: true, Probe: &registry.ProbeResult{Status: 401, Took: "3ms"}, Pull: registry.Decision{In: true, Why: "it is the registry"}},
	}}
	var value any = x
	c := administer(t, &admin.Funcs{ExplainFunc: func(_ context.Context, _ string, probe bool) (any, error) {
		if probe {
			return nil, admin.ErrUnsupported
		}
		return value, nil
	}})
	c.wants(`image:           docker.io/library/a:1
configured by:   hosts.toml
1. https://m/v2/a
   from:           hosts.toml:3
   tags:           no, it is configured without resolve
   content:        yes, it is a mirror
   credential:     none
   TLS:            system and configured authorities, /ca.pem
   dial timeout:   5s
   rests until:    03:04:05, because it gave no answer; others are asked first
2. https://d/v2/a
   tags:      no, 
   content:   yes, it is the registry
   probe:     status 401 after 3ms
`, "explain", "a")
	if r := c.run("", "explain", "a", "--json"); r.err != nil || !strings.Contains(r.out, `"why": "it is a mirror"`) {
		t.Errorf("got %+v", r)
	}
	c.fails("not supported", "explain", "a", "--probe")
	value = []int{1}
	c.fails("read explanation", "explain", "a")
	value = registry.Explanation{Reference: "a", Error: "broken"}
	c.wants("image:           a\nconfigured by:   nothing; the registry itself is asked\nerror:           broken\nno endpoint would be asked\n", "explain", "a")
}

// newTerminal returns both ends of a terminal.
func newTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here:", err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here:", err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

func TestImagePullOnATerminal(t *testing.T) {
	person, program := newTerminal(t)
	if err := unix.IoctlSetWinsize(int(program.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}); err != nil {
		t.Fatal(err)
	}
	var auth registry.Auth
	c := administer(t, pulling(&auth))
	root := newRoot(nil)
	root.SetArgs([]string{"image", "--config", writeFile(t, ""), "--state", c.state, "pull", "nginx"})
	root.SetOut(program)
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	var text string
	for screen := make([]byte, 64<<10); !strings.HasSuffix(text, "\r\nsha256:"+hex64+"\r\n"); { // the ID comes last
		n, err := person.Read(screen)
		if err != nil {
			t.Fatalf("%v after %q", err, text)
		}
		text += string(screen[:n])
	}
	for _, want := range []string{"J0123456789ab done ", "\naa           exists ", "2.0 kB / 2.0 kB"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in %q", want, text)
		}
	}
}
