package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vbauerster/mpb/v8"

	"criserver/cmd/criserver/config"
	"criserver/pkg/admin"
	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/sandbox"
)

// command is a command line of image, at a daemon made of functions.
type command struct {
	t     *testing.T
	state string
}

func administer(t *testing.T, f *admin.Funcs) *command {
	t.Helper()
	c := &command{t, t.TempDir()}
	l, err := listen(filepath.Join(c.state, "admin.sock"), adminSocketMode)
	if err != nil {
		t.Fatal(err)
	}
	s := admin.NewServer(f.Backends())
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(s.Stop(ctx), <-served); err != nil {
			t.Error(err)
		}
	})
	return c
}

type result struct {
	out, notes string
	err        error
}

func (c *command) run(in string, args ...string) result {
	return c.runWith(c.t.Context(), strings.NewReader(in), args...)
}

func (c *command) runWith(ctx context.Context, in io.Reader, args ...string) result {
	c.t.Helper()
	var out, notes bytes.Buffer
	root := newRoot(func(context.Context, *config.Config, loadFunc) error { return errors.New("the daemon was started") })
	root.SetArgs(append([]string{"image", "--config", writeFile(c.t, ""), "--state", c.state}, args...))
	root.SetIn(in)
	root.SetOut(&out)
	root.SetErr(&notes)
	err := root.ExecuteContext(ctx)
	return result{out.String(), notes.String(), err}
}

// wants runs a command that succeeds and writes exactly this.
func (c *command) wants(out string, args ...string) {
	c.t.Helper()
	if r := c.run("", args...); r.err != nil || r.out != out {
		c.t.Errorf("%q: got %v\n%s\nwant\n%s", args, r.err, r.out, out)
	}
}

// fails runs a command that fails with this in its error.
func (c *command) fails(text string, args ...string) {
	c.t.Helper()
	if r := c.run("", args...); r.err == nil || !strings.Contains(r.err.Error(), text) {
		c.t.Errorf("%q: got %v, want %q in it", args, r.err, text)
	}
}

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func nginx() imagesvc.Image {
	long := time.Now().Add(-50 * time.Hour)
	return imagesvc.Image{
		ID: "sha256:" + hex64, Manifest: "sha256:m", Tags: []string{"docker.io/library/nginx:1", "docker.io/library/nginx:latest"},
		Digests: []string{"docker.io/library/nginx@sha256:m"}, Size: 12_345_678, Pulled: long, Pinned: true,
		Config: ocispec.Image{
			Created: &long, Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"},
			Config: ocispec.ImageConfig{Cmd: []string{"nginx", "-g", "a b"}, Env: []string{"A=1", "B=2"}, Labels: map[string]string{"l": "v"}},
		},
		DiffIDs: []digest.Digest{"sha256:layer"},
	}
}

func TestImageList(t *testing.T) {
	c := administer(t, &admin.Funcs{ListFunc: func() []imagesvc.Image {
		return []imagesvc.Image{nginx(), {ID: "sha256:fedc", Size: 999}}
	}})
	c.wants(`NAME                             ID             SIZE    CREATED      PULLED       PINNED
docker.io/library/nginx:1        0123456789ab   12 MB   2 days ago   2 days ago   yes
docker.io/library/nginx:latest   0123456789ab   12 MB   2 days ago   2 days ago   yes
<none>                           fedc           999 B   -            -            
`, "ls")
	c.wants("sha256:"+hex64+"\nsha256:fedc\n", "ls", "-q")
	var images []admin.Image
	if r := c.run("", "ls", "--json"); json.Unmarshal([]byte(r.out), &images) != nil || len(images) != 2 || images[0].Size != 12_345_678 {
		t.Errorf("got %+v", r)
	}
	c.fails("quiet", "ls", "-q", "--json")
	c.fails("unknown command", "ls", "extra")
}

func TestImageInspect(t *testing.T) {
	c := administer(t, &admin.Funcs{
		ResolveFunc: func(name string) (imagesvc.Image, error) {
			if name == "nginx" {
				return nginx(), nil
			}
			return imagesvc.Image{}, imagesvc.ErrNotFound
		},
		ContainersFunc: func() []sandbox.ContainerStatus {
			return []sandbox.ContainerStatus{{ID: "c1", ImageID: "sha256:" + hex64}}
		},
	})
	c.wants(`ID:            sha256:`+hex64+`
Manifest:      sha256:m
Names:         docker.io/library/nginx:1
               docker.io/library/nginx:latest
               docker.io/library/nginx@sha256:m
Size:          12 MB (12345678 bytes to download)
Created:       2 days ago
Pulled:        2 days ago
Pinned:        yes: the kubelet does not remove it to free space
Platform:      linux/amd64
Command:       "nginx" "-g" "a b"
Environment:   A=1
               B=2
Labels:        l=v
Layer:         sha256:layer
Containers:    c1
`, "inspect", "nginx")
	var img admin.Image
	if r := c.run("", "inspect", "--json", "nginx"); json.Unmarshal([]byte(r.out), &img) != nil || img.Config.Architecture != "amd64" {
		t.Errorf("got %+v", r)
	}
	c.fails("image not found", "inspect", "nosuch")
	c.fails("accepts 1 arg", "inspect")
}

func TestImageRemove(t *testing.T) {
	var removed []string
	c := administer(t, &admin.Funcs{
		ResolveFunc: func(name string) (imagesvc.Image, error) {
			if name == "nosuch" {
				return imagesvc.Image{}, imagesvc.ErrNotFound
			}
			return imagesvc.Image{ID: digest.Digest("sha256:" + name), Tags: []string{name}}, nil
		},
		RemoveFunc: func(_ context.Context, name string) error {
			removed = append(removed, name)
			return nil
		},
		ContainersFunc: func() []sandbox.ContainerStatus { return []sandbox.ContainerStatus{{ID: "c1", ImageID: "sha256:used"}} },
	})
	c.wants("removed a\nremoved sha256:a\nremoved b\nremoved sha256:b\n", "rm", "a", "b")
	c.fails("remove used: \"used\": image is in use, containers: 1, such as c1", "rm", "used")
	c.wants("removed used\nremoved sha256:used\n", "rm", "--force", "used")
	r := c.run("", "rm", "nosuch", "c")
	if r.err == nil || !strings.Contains(r.err.Error(), "remove nosuch: ") || r.out != "removed c\nremoved sha256:c\n" {
		t.Errorf("got %+v", r)
	}
	c.wants("[\n  {\n    \"id\": \"sha256:d\",\n    \"names\": [\n      \"d\"\n    ]\n  }\n]\n", "rm", "--json", "d")
	if got := strings.Join(removed, " "); got != "sha256:a sha256:b sha256:used sha256:c sha256:d" {
		t.Errorf("removed %s", got)
	}
}

func TestImageTag(t *testing.T) {
	c := administer(t, &admin.Funcs{TagFunc: func(_ context.Context, source, target string) (imagesvc.Image, error) {
		return imagesvc.Image{ID: digest.Digest("sha256:" + source), Tags: []string{target}}, nil
	}})
	c.wants("b:2 is sha256:a:1\n", "tag", "a:1", "b:2")
	c.fails("accepts 2 arg", "tag", "a")
}

// pulling is a daemon that pulls, and tells of two layers as it does.
func pulling(pulled *registry.Auth) *admin.Funcs {
	step := make(chan []imagesvc.LayerProgress)
	layers := func(s imagesvc.LayerState, fetched int64) []imagesvc.LayerProgress {
		return []imagesvc.LayerProgress{
			{Digest: "sha256:" + hex64, State: s, Size: 2000, Fetched: fetched}, {Digest: "sha256:aa", State: imagesvc.LayerExists, Size: 10},
		}
	}
	return &admin.Funcs{
		PullFunc: func(_ context.Context, name string, auth registry.Auth) (string, error) {
			*pulled = auth
			if name == "bad" {
				return "", registry.ErrNotFound
			}
			step <- layers(imagesvc.LayerFetching, 500)
			step <- layers(imagesvc.LayerDone, 2000)
			return "sha256:" + hex64, nil
		},
		ProgressFunc: func(string) []imagesvc.Progress {
			select {
			case now := <-step:
				return []imagesvc.Progress{{Layers: now}}
			default:
				return nil
			}
		},
	}
}

func TestImagePull(t *testing.T) {
	var auth registry.Auth
	c := administer(t, pulling(&auth))
	r := c.run("", "pull", "nginx")
	if r.err != nil || r.out != "sha256:"+hex64+"\n" || auth != (registry.Auth{}) {
		t.Errorf("got %+v", r)
	}
	if want := "0123456789ab fetching 2.0 kB\naa exists 10 B\n0123456789ab done 2.0 kB\n"; r.notes != want {
		t.Errorf("got notes %q, want %q", r.notes, want)
	}
	r = c.run("p w\r\n", "pull", "nginx", "--username", "me", "--password-stdin", "--json")
	if want := (registry.Auth{Username: "me", Password: "p w"}); r.err != nil || auth != want {
		t.Errorf("got %v, %#v", r.err, auth)
	}
	events := strings.Split(strings.TrimSpace(r.out), "\n")
	if len(events) != 3 || !strings.Contains(events[0], `"fetched":500`) || events[2] != `{"result":{"id":"sha256:`+hex64+`"}}` {
		t.Errorf("got %q", events)
	}
	if r = c.run("token", "pull", "nginx", "--identity-token-stdin"); r.err != nil || auth != (registry.Auth{IdentityToken: "token"}) {
		t.Errorf("got %+v, %#v", r, auth)
	}
	c.fails("not found in registry", "pull", "bad")
	c.fails("password-stdin", "pull", "nginx", "--username", "me")
	c.fails("no secret", "pull", "nginx", "--username", "me", "--password-stdin")
	c.fails("none of the others", "pull", "nginx", "--username", "me", "--password-stdin", "--identity-token-stdin")
	c.fails("unknown flag", "pull", "nginx", "--password", "p")
}

func TestImagePush(t *testing.T) {
	c := administer(t, &admin.Funcs{PushFunc: func(
		_ context.Context, source, target string, auth registry.Auth, report func(imagesvc.LayerProgress),
	) (digest.Digest, error) {
		report(imagesvc.LayerProgress{Digest: "sha256:aa", State: imagesvc.LayerDone, Size: 10})
		return digest.Digest("sha256:" + source + target + auth.Password), nil
	}})
	c.wants("sha256:aa\n", "push", "a")
	c.wants("sha256:ab\n", "push", "a", "b")
	if r := c.run("p\n", "push", "a", "b", "-u", "me", "--password-stdin"); r.err != nil || r.out != "sha256:abp\n" || r.notes != "aa done 10 B\n" {
		t.Errorf("got %+v", r)
	}
}

func TestInterruptCancelsInTheDaemon(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	ended := make(chan struct{})
	wait := func(ctx context.Context) error {
		interrupt()
		<-ctx.Done()
		ended <- struct{}{}
		return ctx.Err()
	}
	c := administer(t, &admin.Funcs{
		PullFunc: func(ctx context.Context, _ string, _ registry.Auth) (string, error) { return "", wait(ctx) },
	})
	r := c.runWith(ctx, strings.NewReader(""), "pull", "a")
	if !errors.Is(r.err, context.Canceled) || !strings.Contains(r.err.Error(), "interrupted") {
		t.Errorf("got %v", r.err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the daemon goes on")
	}
}

func TestNoDaemon(t *testing.T) {
	c := &command{t, t.TempDir()}
	c.fails("does not answer on "+c.state+"/admin.sock: ", "ls")
	c.fails("systemctl start criserver", "ls")
	c.fails("does not answer on /nonexistent/a.sock: ", "ls", "--admin-socket", "/nonexistent/a.sock")
	c.fails("admin.socket", "ls", "--admin-socket", "relative")
	c.fails("/nonexistent/config", "ls", "--config", "/nonexistent/config")
}

func TestOnlyRootAdministers(t *testing.T) {
	if err := checkRoot(1000); err == nil || !strings.Contains(err.Error(), "root") {
		t.Errorf("got %v", err)
	}
	if err := checkRoot(0); err != nil {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "a.sock")
	l, err := listen(path, adminSocketMode)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v", info.Mode(), err)
	}
	if _, ok := l.(*net.UnixListener); !ok {
		t.Errorf("got %T", l)
	}
}

func TestBarsAndLines(t *testing.T) {
	layers := func(s imagesvc.LayerState, fetched int64) admin.Event {
		return admin.Event{Layers: []imagesvc.LayerProgress{
			{Digest: "sha256:aa", State: s, Size: 2000, Fetched: fetched}, {Digest: "sha256:bb", State: imagesvc.LayerExists},
		}}
	}
	for say, want := range map[words]string{wordsOfPull: "aa fetching 10 B\nbb unpacking 10 B\naa done 10 B\n", wordsOfPush: "aa sending 10 B\nbb sending 10 B\naa done 10 B\n"} {
		var out bytes.Buffer
		p := lines{&out, say, map[digest.Digest]imagesvc.LayerState{}}
		for _, state := range []imagesvc.LayerState{imagesvc.LayerFetching, imagesvc.LayerDone} {
			p.show(admin.Event{Layers: []imagesvc.LayerProgress{
				{Digest: "sha256:aa", State: state, Size: 10}, {Digest: "sha256:bb", State: imagesvc.LayerFetching, Size: 10, Fetched: 10},
			}})
		}
		if out.String() != want {
			t.Errorf("got %q, want %q", out.String(), want)
		}
	}
	for _, ok := range []bool{true, false} {
		var out bytes.Buffer
		p := newBars(5000, wordsOfPull, mpb.WithOutput(&out), mpb.ForceAutoRefresh())
		p.show(layers(imagesvc.LayerWaiting, 0))
		p.show(layers(imagesvc.LayerFetching, 2000))
		p.show(admin.Event{Read: 4000})
		p.end(ok) // that it returns is the test of all bars being complete or given up
		for _, want := range []string{"aa ", "bb ", "archive ", "exists", map[bool]string{true: "5.0 kB / 5.0 kB", false: "4.0 kB / 5.0 kB"}[ok]} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("ok %v: %q is missing in %q", ok, want, out.String())
			}
		}
	}
}
