package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/sandbox"
)

// limit ends tests that would otherwise hang.
const limit = 20 * time.Second

func serve(t *testing.T, f *Funcs) (*Client, *Server) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(f.Backends())
	s.progress = time.Millisecond
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c := NewClient(path)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return c, s
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

var (
	created = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	pulled  = created.Add(time.Hour)
)

func testImage() imagesvc.Image {
	return imagesvc.Image{
		ID: digest.FromString("config"), Manifest: digest.FromString("manifest"), Tags: []string{"docker.io/library/a:1"},
		Digests: []string{"docker.io/library/a@" + digest.FromString("manifest").String()}, Size: 123, Pulled: pulled, Pinned: true,
		Config:  ocispec.Image{Created: &created, Platform: ocispec.Platform{Architecture: "arm64", OS: "linux"}},
		DiffIDs: []digest.Digest{digest.FromString("layer")}, Annotations: map[string]string{"k": "v"},
	}
}

func wireImage() Image {
	i := testImage()
	return Image{ID: i.ID, Manifest: i.Manifest, Tags: i.Tags, Digests: i.Digests, Size: 123, Created: created, Pulled: pulled, Pinned: true}
}

func resolve(name string) (imagesvc.Image, error) {
	img := testImage()
	if name == "a:1" || name == img.ID.String() || name == img.ID.Encoded()[:12] {
		return img, nil
	}
	return imagesvc.Image{}, imagesvc.ErrNotFound
}

func check[T any](t *testing.T, what string, got T, err error, want T) {
	t.Helper()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %+v, %v\nwant %+v", what, got, err, want)
	}
}

func TestShortCalls(t *testing.T) {
	var removed []string
	img := testImage()
	c, _ := serve(t, &Funcs{
		ListFunc:    func() []imagesvc.Image { return []imagesvc.Image{img, {ID: "sha256:bare"}} },
		ResolveFunc: resolve,
		RemoveFunc: func(_ context.Context, name string) error {
			removed = append(removed, name)
			return nil
		},
		TagFunc: func(_ context.Context, source, target string) (imagesvc.Image, error) {
			img := testImage()
			img.Tags = []string{source, target}
			return img, nil
		},
		ExplainFunc: func(_ context.Context, name string, probe bool) (any, error) {
			return map[string]any{"name": name, "probe": probe}, nil
		},
		ContainersFunc: func() []sandbox.ContainerStatus {
			return []sandbox.ContainerStatus{{ID: "other", ImageID: "sha256:other"}, {ID: "c2", ImageID: img.ID.String(), Phase: sandbox.ContainerRemoving}}
		},
	})
	ctx := within(t)
	list, err := c.List(ctx)
	check(t, "list", list, err, []Image{wireImage(), {ID: "sha256:bare", Tags: []string{}, Digests: []string{}}})
	want := wireImage()
	want.Config, want.Layers, want.Annotations = &img.Config, img.DiffIDs, img.Annotations
	got, err := c.Inspect(ctx, "a:1")
	check(t, "inspect", got, err, want)
	gone, err := c.Remove(ctx, RemoveRequest{Name: "a:1"})
	check(t, "remove", gone, err, RemoveResponse{ID: img.ID, Names: append(img.Tags, img.Digests...)})
	check(t, "removed", removed, nil, []string{img.ID.String()})
	tagged, err := c.Tag(ctx, "a:1", "b:2")
	want = wireImage()
	want.Tags = []string{"a:1", "b:2"}
	check(t, "tag", tagged, err, want)
	explanation, err := c.Explain(ctx, "x", true)
	check(t, "explain", string(explanation), err, `{"name":"x","probe":true}`)
}

func TestRemoveIsCareful(t *testing.T) {
	img := testImage()
	img.Tags = append(img.Tags, "docker.io/library/b:2")
	var users []sandbox.ContainerStatus
	var removed []string
	c, _ := serve(t, &Funcs{
		ResolveFunc: func(name string) (imagesvc.Image, error) {
			if name == "nosuch" {
				return imagesvc.Image{}, imagesvc.ErrNotFound
			}
			return img, nil
		},
		RemoveFunc:     func(_ context.Context, name string) error { removed = append(removed, name); return nil },
		ContainersFunc: func() []sandbox.ContainerStatus { return users },
	})
	ctx := within(t)
	id := img.ID.String()
	user := []sandbox.ContainerStatus{{ID: "0123456789abcdef", ImageID: id, Phase: sandbox.ContainerExited}}
	for name, tc := range map[string]struct {
		request RemoveRequest
		users   []sandbox.ContainerStatus
		err     error
		text    string
		removed []string
	}{
		"used":             {RemoveRequest{Name: id}, user, ErrInUse, "0123456789ab;", nil},
		"used, forced":     {RemoveRequest{Name: id, Force: true}, user, nil, "", []string{id}},
		"other tags":       {RemoveRequest{Name: "a:1"}, nil, ErrInUse, "docker.io/library/b:2", nil},
		"by its digest":    {RemoveRequest{Name: img.Digests[0]}, nil, ErrInUse, "docker.io/library/b:2", nil},
		"forced":           {RemoveRequest{Name: "a:1", Force: true}, nil, nil, "", []string{id}},
		"by ID":            {RemoveRequest{Name: img.ID.Encoded()[:12]}, nil, nil, "", []string{id}},
		"not there":        {RemoveRequest{Name: "nosuch"}, nil, imagesvc.ErrNotFound, "", nil},
		"not whole, maybe": {RemoveRequest{Name: "nosuch", Force: true}, nil, nil, "", []string{"nosuch"}},
		"no name":          {RemoveRequest{Force: true}, nil, ErrInvalid, "name is missing", nil},
	} {
		users, removed = tc.users, nil
		_, err := c.Remove(ctx, tc.request)
		if !errors.Is(err, tc.err) || err != nil && !strings.Contains(err.Error(), tc.text) || !reflect.DeepEqual(removed, tc.removed) {
			t.Errorf("%s: got %v, removed %q", name, err, removed)
		}
	}
}

func TestNothingIsSupported(t *testing.T) {
	c, _ := serve(t, &Funcs{ResolveFunc: resolve, ContainerFunc: func(string) (sandbox.ContainerStatus, error) {
		return sandbox.ContainerStatus{ID: "c", ImageID: testImage().ID.String(), Phase: sandbox.ContainerRunning}, nil
	}})
	ctx := within(t)
	none := func(Event) {}
	errs := map[string]error{"export": c.Export(ctx, io.Discard, ExportRequest{Names: []string{"a"}})}
	_, errs["remove"] = c.Remove(ctx, RemoveRequest{Name: "a:1"})
	_, errs["tag"] = c.Tag(ctx, "a", "b")
	_, errs["explain"] = c.Explain(ctx, "a", false)
	_, errs["pull"] = c.Pull(ctx, PullRequest{Name: "a"}, none)
	_, errs["push"] = c.Push(ctx, PushRequest{Source: "a"}, none)
	_, errs["import"] = c.Import(ctx, strings.NewReader("x"), "", none)
	_, errs["check"] = c.Check(ctx, false)
	_, errs["commit"] = c.Commit(ctx, CommitRequest{Container: "c", Name: "n", NoPause: true})
	for call, err := range errs {
		if !errors.Is(err, ErrUnsupported) || err.Error() != ErrUnsupported.Error() {
			t.Errorf("%s: got %v", call, err)
		}
	}
	_, err := c.Commit(ctx, CommitRequest{Container: "c", Name: "n"})
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "without a pause") {
		t.Errorf("commit with a pause: got %v", err)
	}
	if _, err := new(Funcs).Backends().Images.Resolve("x"); !errors.Is(err, ErrUnsupported) {
		t.Errorf("resolve: got %v", err)
	}
	if _, err := new(Funcs).Backends().Containers.Container("x"); !errors.Is(err, ErrUnsupported) {
		t.Errorf("container: got %v", err)
	}
}

// raw makes a request as no Client would.
func raw(t *testing.T, c *Client, method, path, body string) (int, http.Header, *Error) {
	t.Helper()
	req, err := http.NewRequestWithContext(within(t), method, "http://x"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	e := &Error{}
	if err := json.NewDecoder(resp.Body).Decode(e); err != nil {
		t.Errorf("%s %s: the body is no error: %v", method, path, err)
	}
	return resp.StatusCode, resp.Header, e
}

func TestBadRequests(t *testing.T) {
	c, _ := serve(t, &Funcs{})
	for _, tc := range []struct {
		method, path, body string
		status             int
		code, text         string
	}{
		{"GET", "/v1/images/pull", "", 405, "method", "takes POST, not GET"},
		{"POST", "/v1/images", "{}", 405, "method", "takes GET, not POST"},
		{"DELETE", "/v1/images/import", "", 405, "method", "POST"},
		{"GET", "/v2/images", "", 501, "unsupported", "/v2/images"},
		{"POST", "/", "", 501, "unsupported", "different versions"},
		{"POST", "/v1/images/pull", "", 400, "invalid", "EOF"},
		{"POST", "/v1/images/pull", "{", 400, "invalid", "EOF"},
		{"POST", "/v1/images/pull", `{"image":"a"}`, 400, "invalid", `"image"`},
		{"POST", "/v1/images/pull", `{"name":1}`, 400, "invalid", "name"},
		{"POST", "/v1/images/pull", `{"name":"a"}{}`, 400, "invalid", "more than one"},
		{"POST", "/v1/images/pull", `{}`, 400, "invalid", "name is missing"},
		{"POST", "/v1/images/pull", `{"name":"` + strings.Repeat("a", maxRequest) + `"}`, 413, "too-large", "1048576"},
		{"POST", "/v1/images/inspect", `{}`, 400, "invalid", "name"},
		{"POST", "/v1/images/tag", `{"source":"a"}`, 400, "invalid", "target"},
		{"POST", "/v1/images/push", `{"target":"a"}`, 400, "invalid", "source"},
		{"POST", "/v1/images/commit", `{"container":"a"}`, 400, "invalid", "name"},
		{"POST", "/v1/images/explain", `{"probe":true}`, 400, "invalid", "name"},
		{"POST", "/v1/images/check", `{"repair":"yes"}`, 400, "invalid", "repair"},
		{"POST", "/v1/images/export", `{}`, 400, "invalid", "names"},
		{"POST", "/v1/images/export", `{"names":[""]}`, 400, "invalid", "names"},
		{"POST", "/v1/images/export", `{"names":["a"],"format":"zip"}`, 400, "invalid", `"zip"`},
		{"POST", "/v1/images/import?image=a", "", 400, "invalid", "image"},
		{"POST", "/v1/images/import?name=a&name=b", "", 400, "invalid", "name=b"},
	} {
		status, header, e := raw(t, c, tc.method, tc.path, tc.body)
		if status != tc.status || e.Code != tc.code || !strings.Contains(e.Text, tc.text) || header.Get(contentType) != mediaJSON {
			t.Errorf("%s %s %.40s: got %d, %+v", tc.method, tc.path, tc.body, status, e)
		}
		if tc.status == 405 && header.Get("Allow") == "" {
			t.Errorf("%s %s: does not tell what is allowed", tc.method, tc.path)
		}
	}
}

func TestErrorsBothWays(t *testing.T) {
	var current error
	c, _ := serve(t, &Funcs{
		ResolveFunc: func(string) (imagesvc.Image, error) { return imagesvc.Image{}, current },
		PullFunc:    func(context.Context, string, registry.Auth) (string, error) { return "", current },
	})
	codes := map[string]bool{}
	for _, row := range codeTable {
		if codes[row.code] {
			t.Errorf("code %s is there twice", row.code)
		}
		codes[row.code] = true
		current = errors.Join(errors.New("a \"reason\"\nof two lines"), row.err)
		_, short := c.Inspect(within(t), "x")
		_, long := c.Pull(within(t), PullRequest{Name: "x"}, func(Event) {})
		for _, err := range []error{short, long} {
			if !errors.Is(err, row.err) || err.Error() != current.Error() {
				t.Errorf("%s: got %q", row.code, err)
			}
		}
		if status, _, e := raw(t, c, "POST", "/v1/images/inspect", `{"name":"x"}`); status != row.status || e.Code != row.code {
			t.Errorf("%s: got %d, %+v", row.code, status, e)
		}
	}
	current = errors.New("disk is full")
	_, err := c.Inspect(within(t), "x")
	if e := new(Error); !errors.As(err, &e) || e.Code != codeInternal || err.Error() != "disk is full" || e.Unwrap() != nil {
		t.Errorf("got %#v", err)
	}
}

func TestPanicIsAnErrorOfItsCall(t *testing.T) {
	c, _ := serve(t, &Funcs{
		ResolveFunc: func(string) (imagesvc.Image, error) { panic("ouch") },
		PullFunc:    func(context.Context, string, registry.Auth) (string, error) { panic("ouch") },
		ExportFunc: func(_ context.Context, w io.Writer, _ []string, _ imagesvc.Format) error {
			_, _ = io.WriteString(w, "begin")
			panic("ouch")
		},
	})
	_, short := c.Inspect(within(t), "x")
	_, long := c.Pull(within(t), PullRequest{Name: "x"}, func(Event) {})
	for _, err := range []error{short, long, c.Export(within(t), io.Discard, ExportRequest{Names: []string{"x"}})} {
		if err == nil || !strings.Contains(err.Error(), "panicked: ouch") {
			t.Errorf("got %v", err)
		}
	}
	if _, err := c.List(within(t)); err != nil {
		t.Errorf("the server is no more: %v", err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.sock")
	_, err := NewClient(path).List(within(t))
	if !errors.Is(err, ErrNoDaemon) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("got %v", err)
	}
}

func TestAnotherProgramAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.NotFoundHandler()}
	go s.Serve(l)
	defer s.Close()
	if _, err := NewClient(path).List(within(t)); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("got %v", err)
	}
}

func TestCredentialsAreNotPrinted(t *testing.T) {
	a := Auth{Username: "u", Password: "hunter2", IdentityToken: "hunter2"}
	for _, s := range []string{a.String(), a.GoString()} {
		if strings.Contains(s, "hunter2") {
			t.Errorf("got %s", s)
		}
	}
}
