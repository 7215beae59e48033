package registry_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

func pusher(t *testing.T, c *registry.Client, name string, a registry.Auth) *registry.Pusher {
	t.Helper()
	p, err := c.Pusher(reference(t, name), a)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func random(t *testing.T, n int) ([]byte, ocispec.Descriptor) {
	t.Helper()
	data := make([]byte, n)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	return data, descriptor(data)
}

func descriptor(data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

func pushAll(ctx context.Context, p *registry.Pusher, img *registrytest.Image) error {
	for _, blob := range [][]byte{img.ConfigData, img.Layers[0].Blob} {
		if how, err := p.PushBlob(ctx, descriptor(blob), bytes.NewReader(blob), registry.BlobOptions{}); err != nil || how != registry.PushUploaded {
			return fmt.Errorf("%s: %w", how, err)
		}
	}
	d, err := p.Manifest(ctx, "", img.Manifest.MediaType, img.ManifestData)
	if err == nil && d != img.Digest() {
		err = fmt.Errorf("it has digest %s", d)
	}
	return err
}

func TestPushToRealRegistry(t *testing.T) {
	img := smallImage(t)
	tokens := registrytest.NewTokenServer(t, "me", "s3cret-word", "s3cret-refresh")
	me := registry.Auth{Username: "me", Password: "s3cret-word"}
	for name, test := range map[string]struct {
		server *registrytest.Server
		auth   registry.Auth
		config registry.Config
	}{
		"plain":         {server: registrytest.Start(t, registrytest.Options{})},
		"basic":         {server: registrytest.Start(t, registrytest.Options{User: "me", Password: "s3cret-word"}), auth: me},
		"TLS, basic":    {server: registrytest.Start(t, registrytest.Options{User: "me", Password: "s3cret-word", TLS: true}), auth: me},
		"token":         {server: registrytest.Start(t, registrytest.Options{Auth: tokens}), auth: me},
		"refresh token": {server: registrytest.Start(t, registrytest.Options{Auth: tokens}), auth: registry.Auth{IdentityToken: "s3cret-refresh"}},
	} {
		t.Run(name, func(t *testing.T) {
			host := test.server.Host
			if test.server.CA != "" {
				test.config.Mirrors = map[string][]registry.Endpoint{host: {{URL: test.server.URL(), CA: []string{test.server.CA}}}}
			}
			c := client(t, test.config)
			p := pusher(t, c, host+"/new/repo:v1", test.auth)
			layer := img.Manifest.Layers[0]
			if there, err := p.Exists(t.Context(), layer.Digest); there || err != nil {
				t.Fatalf("before: %v, %v", there, err)
			}
			if there, err := p.ManifestExists(t.Context(), img.Digest()); there || err != nil {
				t.Fatalf("before: %v, %v", there, err)
			}
			if err := pushAll(t.Context(), p, img); err != nil {
				t.Fatal(err)
			}
			if err := fetchAll(t.Context(), repository(t, c, host+"/new/repo:v1", test.auth), img); err != nil {
				t.Errorf("read back: %v", err)
			}
			if there, err := p.ManifestExists(t.Context(), img.Digest()); !there || err != nil {
				t.Errorf("after: %v, %v", there, err)
			}
			blob := img.Layers[0].Blob
			if how, err := p.PushBlob(t.Context(), layer, bytes.NewReader(blob), registry.BlobOptions{}); how != registry.PushExists || err != nil {
				t.Errorf("again: %s, %v", how, err)
			}
			other := pusher(t, c, host+"/other/repo:v1", test.auth)
			o := registry.BlobOptions{From: []string{"other/repo", "not/there", "new/repo"}}
			if how, err := other.PushBlob(t.Context(), layer, bytes.NewReader(blob), o); err != nil || how != registry.PushUploaded {
				t.Errorf("from the wrong repository: %s, %v", how, err)
			}
			o.From = []string{"new/repo"}
			third := pusher(t, c, host+"/third/repo:v1", test.auth)
			if how, err := third.PushBlob(t.Context(), layer, noReader{}, o); how != registry.PushMounted || err != nil {
				t.Errorf("mount: %s, %v", how, err)
			}
			if d, err := p.Manifest(t.Context(), "v2", img.Manifest.MediaType, img.ManifestData); d != img.Digest() || err != nil {
				t.Errorf("another tag: %s, %v", d, err)
			}
			if err := fetchAll(t.Context(), repository(t, c, host+"/new/repo:v2", test.auth), img); err != nil {
				t.Errorf("by the other tag: %v", err)
			}
			empty := descriptor(nil)
			if how, err := p.PushBlob(t.Context(), empty, bytes.NewReader(nil), registry.BlobOptions{}); err != nil {
				t.Errorf("nothing: %s, %v", how, err)
			}
		})
	}
	t.Run("many scopes, one token each", func(t *testing.T) {
		if n := tokens.Issued.Load(); n > 40 {
			t.Errorf("%d tokens", n)
		}
	})
}

type noReader struct{}

var errRead = errors.New("disk is broken")

func (noReader) ReadAt([]byte, int64) (int, error) { return 0, errRead }

func TestPushIsRefused(t *testing.T) {
	img := smallImage(t)
	tokens := registrytest.NewTokenServer(t, "me", "s3cret-word", "s3cret-refresh")
	basic := registrytest.Start(t, registrytest.Options{User: "me", Password: "s3cret-word"})
	token := registrytest.Start(t, registrytest.Options{Auth: tokens})
	for _, host := range []string{basic.Host, token.Host} {
		for name, a := range map[string]registry.Auth{
			"nobody": {}, "password": {Username: "me", Password: "s3cret-typo"}, "base64": {Auth: encode("me:s3cret-typo")},
			"refresh": {IdentityToken: "s3cret-typo"}, "read only": {RegistryToken: tokens.Token("repository:a/b:pull")},
		} {
			err := pushAll(t.Context(), pusher(t, client(t, registry.Config{}), host+"/a/b:v1", a), img)
			t.Log(err)
			if !errors.Is(err, registry.ErrUnauthorized) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s: %v", name, err)
			}
			if a.RegistryToken != "" && strings.Contains(err.Error(), a.RegistryToken[:20]) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	p := pusher(t, client(t, registry.Config{}), "127.0.0.1:1/a/b:v1", registry.Auth{})
	if err := pushAll(t.Context(), p, img); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("down: %v", err)
	}
	data := []byte("x")
	p = pusher(t, client(t, registry.Config{}), basic.Host+"/a/b:v1", registry.Auth{Username: "me", Password: "s3cret-word"})
	if _, err := p.PushBlob(t.Context(), descriptor(data), noReader{}, registry.BlobOptions{}); !errors.Is(err, errRead) {
		t.Errorf("unreadable: %v", err)
	}
	if _, err := p.PushBlob(t.Context(), ocispec.Descriptor{Digest: descriptor(data).Digest, Size: 3}, bytes.NewReader(data), registry.BlobOptions{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("too short: %v", err)
	}
	if _, err := p.PushBlob(t.Context(), descriptor([]byte("y")), bytes.NewReader(data), registry.BlobOptions{}); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Errorf("other content: %v", err)
	}
	if _, err := p.PushBlob(t.Context(), ocispec.Descriptor{Digest: "sha256:x"}, bytes.NewReader(data), registry.BlobOptions{}); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("no digest: %v", err)
	}
	if _, err := p.Manifest(t.Context(), descriptor([]byte("y")).Digest.String(), ocispec.MediaTypeImageManifest, data); !errors.Is(err, registry.ErrDigest) {
		t.Errorf("manifest of another digest: %v", err)
	}
	if _, err := p.Manifest(t.Context(), "a/b", ocispec.MediaTypeImageManifest, data); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("no tag: %v", err)
	}
	if _, err := p.Manifest(t.Context(), "", ocispec.MediaTypeImageManifest, img.ManifestData); err == nil || !strings.Contains(err.Error(), "blob unknown") {
		t.Errorf("without its blobs: %v", err)
	}
	mirrorOnly := registry.Config{
		Mirrors: map[string][]registry.Endpoint{"quay.io": {{URL: "http://" + basic.Host}}}, Hosts: map[string]registry.HostConfig{"quay.io": {NoFallback: true}},
	}
	ref, err := registry.Parse("quay.io/a/b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client(t, mirrorOnly).Pusher(ref, registry.Auth{}); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("mirrors only: %v", err)
	}
}

// cutter stands before a registry and cuts connections after some bytes of a body, as long as it has cuts left.
type cutter struct {
	host string
	cuts atomic.Int64
	// puts are the bodies' bytes that came.
	puts atomic.Int64
}

func newCutter(t *testing.T, to string, after int64, cuts int64) *cutter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{host: l.Addr().String()}
	c.cuts.Store(cuts)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: to})
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	proxy.ModifyResponse = func(r *http.Response) error { // as if it were asked directly
		if at := r.Header.Get("Location"); at != "" {
			r.Header.Set("Location", strings.ReplaceAll(at, to, c.host))
		}
		return nil
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > after && c.cuts.Add(-1) >= 0 {
			r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, after), failing{}))
		}
		r.Body = counting{r.Body, &c.puts}
		proxy.ServeHTTP(w, r)
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return c
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("cut") }

type counting struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c counting) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func TestInterruptedUpload(t *testing.T) {
	real := registrytest.Start(t, registrytest.Options{})
	data, d := random(t, 8<<20)
	for name, test := range map[string]struct {
		cuts int64
		err  error
	}{"once": {1, nil}, "a few times": {3, nil}, "always": {1000, registry.ErrUnavailable}} {
		t.Run(name, func(t *testing.T) {
			c := newCutter(t, real.Host, 3<<20, test.cuts)
			p := pusher(t, client(t, registry.Config{}), c.host+"/"+strings.ReplaceAll(name, " ", "-")+":v1", registry.Auth{})
			var last, most int64
			how, err := p.PushBlob(t.Context(), d, bytes.NewReader(data), registry.BlobOptions{Progress: func(n int64) { last, most = n, max(most, n) }})
			t.Log(how, err)
			if !errors.Is(err, test.err) || err == nil && last != d.Size || most > d.Size {
				t.Errorf("%s, %v, %d bytes of %d", how, err, last, d.Size)
			}
			if test.err != nil {
				return
			}
			blob, err := repository(t, client(t, registry.Config{}), real.Host+"/"+strings.ReplaceAll(name, " ", "-")+":v1", registry.Auth{}).Blob(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(blob.Drain(), blob.Close()); err != nil {
				t.Errorf("read back: %v", err)
			}
		})
	}
}

// uploads is a registry that takes uploads as the specification lets it.
type uploads struct {
	*registrytest.Memory
	got      []byte
	location func(id int) string
	maxBody  int64
	cut      int64 // the first body is cut after so many bytes
	deny     bool  // resumption
	sessions int
	turn     sync.Mutex // one request is served at a time
	mu       sync.Mutex
	methods  []string
	stall    bool
	end      chan struct{}
}

func newUploads(t *testing.T) *uploads {
	u := &uploads{Memory: registrytest.NewMemory(t), end: make(chan struct{})}
	t.Cleanup(func() { close(u.end) })
	u.location = func(id int) string { return fmt.Sprintf("/v2/a/b/blobs/uploads/%d?state=x", id) }
	u.Hook = u.serve
	return u
}

func (u *uploads) serve(w http.ResponseWriter, r *http.Request) bool {
	if !strings.Contains(r.URL.Path, "/uploads/") && !strings.Contains(r.URL.Path, "/up/") {
		return false
	}
	u.mu.Lock()
	u.methods = append(u.methods, r.Method)
	u.mu.Unlock()
	if u.stall && r.Method == http.MethodPut {
		<-u.end // a server that does not read the body does not notice that the client has left
		return true
	}
	// A request may come while the one before it, which its client has given up, is still served.
	u.turn.Lock()
	defer u.turn.Unlock()
	w.Header().Set("Location", u.location(u.sessions))
	switch r.Method {
	case http.MethodPost:
		u.got, u.sessions = nil, u.sessions+1
		w.Header().Set("Location", u.location(u.sessions))
		w.WriteHeader(http.StatusAccepted)
		return true
	case http.MethodGet:
		w.Header().Set("Range", fmt.Sprintf("0-%d", max(0, len(u.got)-1)))
		w.WriteHeader(http.StatusNoContent)
		return true
	}
	if u.maxBody > 0 && r.ContentLength > u.maxBody {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return true
	}
	if r.Method == http.MethodPatch {
		if want := fmt.Sprintf("%d-%d", len(u.got), int64(len(u.got))+r.ContentLength-1); r.Header.Get("Content-Range") != want || u.deny {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return true
		}
	}
	if u.cut > 0 {
		part, _ := io.ReadAll(io.LimitReader(r.Body, u.cut))
		u.got, u.cut = append(u.got, part...), 0
		panic(http.ErrAbortHandler)
	}
	part, _ := io.ReadAll(r.Body)
	u.got = append(u.got, part...)
	if r.Method == http.MethodPatch {
		w.WriteHeader(http.StatusAccepted)
		return true
	}
	if d := digest.Digest(r.URL.Query().Get("digest")); d != digest.FromBytes(u.got) {
		registrytest.Fail(w, http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content")
		return true
	}
	w.WriteHeader(http.StatusCreated)
	return true
}

func TestUploadWays(t *testing.T) {
	data, d := random(t, 40<<20)
	for name, test := range map[string]struct {
		set     func(u *uploads)
		methods string
		err     error
	}{
		"one piece":    {func(*uploads) {}, "POST PUT", nil},
		"absolute":     {func(u *uploads) { u.location = func(int) string { return "http://" + u.Host + "/up/1" } }, "POST PUT", nil},
		"resumed":      {func(u *uploads) { u.cut = 10 << 20 }, "POST PUT GET PATCH PUT", nil},
		"restarted":    {func(u *uploads) { u.cut = 10 << 20; u.deny = true }, "POST PUT GET PATCH POST PUT", nil},
		"chunks":       {func(u *uploads) { u.maxBody = 20 << 20 }, "POST PUT POST PATCH PATCH PATCH PUT", nil},
		"too small":    {func(u *uploads) { u.maxBody = 1 << 20 }, "POST PUT POST PATCH", errAny},
		"stalls":       {func(u *uploads) { u.stall = true }, "POST PUT", registry.ErrStalled},
		"no location":  {func(u *uploads) { u.location = func(int) string { return "" } }, "POST", errAny},
		"not to there": {func(u *uploads) { u.location = func(int) string { return "ftp://" + u.Host + ":1/up/1" } }, "POST", errAny},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUploads(t)
			test.set(u)
			config := registry.Config{Mirrors: map[string][]registry.Endpoint{u.Host: {{URL: "http://" + u.Host}}}}
			if u.stall {
				config.NoProgress = 100 * time.Millisecond
			}
			p := pusher(t, client(t, config), u.Host+"/a/b:v1", registry.Auth{})
			var sent int64
			how, err := p.PushBlob(t.Context(), d, bytes.NewReader(data), registry.BlobOptions{Progress: func(n int64) { sent = n }})
			u.mu.Lock()
			methods := strings.Join(u.methods, " ")
			u.mu.Unlock()
			t.Log(how, err, methods)
			if errors.Is(test.err, errAny) && err != nil {
				err = errAny
			}
			if !errors.Is(err, test.err) || err == nil && (!bytes.Equal(u.got, data) || sent != d.Size) {
				t.Errorf("%s, %v, %d bytes there, %d sent", how, err, len(u.got), sent)
			}
			if methods != test.methods {
				t.Errorf("requests: %s, want %s", methods, test.methods)
			}
		})
	}
}

// An upload that goes on elsewhere goes there without credentials.
func TestCredentialsStayOnUpload(t *testing.T) {
	thief := newThief(t)
	u := newUploads(t)
	u.location = func(int) string { return thief.URL + "/up/1" }
	u.Hook = func(w http.ResponseWriter, r *http.Request) bool { return demand(w, r) || u.serve(w, r) }
	data, d := random(t, 1000)
	p := pusher(t, client(t, registry.Config{}), u.Host+"/a/b:v1", secret)
	_, err := p.PushBlob(t.Context(), d, bytes.NewReader(data), registry.BlobOptions{})
	if !errors.Is(err, registry.ErrUnauthorized) || strings.Contains(err.Error(), "s3cret") || len(thief.thefts()) > 0 {
		t.Errorf("err = %v, stolen: %q", err, thief.thefts())
	}
}

func TestPushIsCancelled(t *testing.T) {
	u := newUploads(t)
	u.stall = true
	ctx, cancel := context.WithCancel(t.Context())
	data, d := random(t, 1<<20)
	p := pusher(t, client(t, registry.Config{}), u.Host+"/a/b:v1", registry.Auth{})
	_, err := p.PushBlob(ctx, d, bytes.NewReader(data), registry.BlobOptions{Progress: func(int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
}

func TestReferrers(t *testing.T) {
	subject := digest.FromString("subject")
	entry := func(kind string, n int) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(fmt.Sprint(kind, n)), Size: 5, ArtifactType: kind}
	}
	list := func(entries ...ocispec.Descriptor) []byte {
		data, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: entries})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	api := func(pages ...[]byte) func(m *registrytest.Memory, w http.ResponseWriter, r *http.Request) {
		return func(_ *registrytest.Memory, w http.ResponseWriter, r *http.Request) {
			page := 0
			_, _ = fmt.Sscan(r.URL.Query().Get("page"), &page)
			if page+1 < len(pages) {
				w.Header().Add("Link", fmt.Sprintf(`<%s?page=%d>; rel="next"`, r.URL.Path, page+1))
			}
			_, _ = w.Write(pages[page])
		}
	}
	unsupported := func(m *registrytest.Memory, w http.ResponseWriter, r *http.Request) { m.Serve(w, r) }
	tag := "sha256-" + subject.Encoded()
	for name, test := range map[string]struct {
		serve func(m *registrytest.Memory, w http.ResponseWriter, r *http.Request)
		tag   []byte
		kind  string
		want  int
		err   error
	}{
		"none":              {serve: api(list())},
		"some":              {serve: api(list(entry("a", 1), entry("b", 2))), want: 2},
		"of a kind":         {serve: api(list(entry("a", 1), entry("b", 2))), kind: "b", want: 1},
		"pages":             {serve: api(list(entry("a", 1)), list(entry("a", 2), entry("b", 3)), list(entry("a", 4))), want: 4},
		"pages, of a kind":  {serve: api(list(entry("a", 1)), list(entry("a", 2), entry("b", 3)), list(entry("a", 4))), kind: "a", want: 3},
		"no API, no tag":    {serve: unsupported},
		"no API, but a tag": {serve: unsupported, tag: list(entry("a", 1), entry("b", 2)), kind: "a", want: 1},
		"no API, a bad tag": {serve: unsupported, tag: []byte("{]"), err: errAny},
		"filtered": {serve: func(_ *registrytest.Memory, w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("artifactType") != "a" {
				w.WriteHeader(http.StatusBadRequest)
			}
			w.Header().Set("OCI-Filters-Applied", "artifactType")
			_, _ = w.Write(list(ocispec.Descriptor{Digest: digest.FromString("x"), Size: 1})) // its word counts
		}, kind: "a", want: 1},
		"next page elsewhere": {serve: func(_ *registrytest.Memory, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", `<http://elsewhere.example/v2/a/b/referrers/x>; rel="next"`)
			_, _ = w.Write(list())
		}, err: errAny},
		"pages without end": {serve: func(_ *registrytest.Memory, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "<"+r.URL.Path+`>; rel="next"`)
			_, _ = w.Write(list(entry("a", 1)))
		}, err: errAny},
		"huge":         {serve: api(bytes.Repeat([]byte(" "), registry.MaxManifest+1)), err: errAny},
		"no JSON":      {serve: api([]byte("<html>")), err: errAny},
		"bad digest":   {serve: api([]byte(`{"manifests": [{"digest": "../../etc", "size": 3}]}`)), err: errAny},
		"bad size":     {serve: api([]byte(`{"manifests": [{"digest": "` + aDigest + `", "size": -3}]}`)), err: errAny},
		"not an index": {serve: api([]byte(`{"mediaType": "` + ocispec.MediaTypeImageManifest + `"}`)), err: errAny},
		"refused": {serve: func(_ *registrytest.Memory, w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
		},
			err: registry.ErrUnauthorized},
		"down": {serve: func(_ *registrytest.Memory, w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusServiceUnavailable)
		},
			err: registry.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			m := registrytest.NewMemory(t)
			m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/referrers/") {
					return false
				}
				if r.URL.Path != "/v2/a/b/referrers/"+subject.String() {
					t.Errorf("asked for %s", r.URL)
				}
				test.serve(m, w, r)
				return true
			}
			if test.tag != nil {
				m.AddManifest("a/b", tag, test.tag)
			}
			repo := repository(t, client(t, registry.Config{}), m.Host+"/a/b:v1", registry.Auth{})
			got, err := repo.Referrers(t.Context(), subject, test.kind)
			t.Log(err)
			if errors.Is(test.err, errAny) && err != nil {
				err = errAny
			}
			if !errors.Is(err, test.err) || len(got) != test.want {
				t.Errorf("%d, %v, want %d, %v", len(got), err, test.want, test.err)
			}
		})
	}
}

// Debian's registry has no referrers API: the list that a signer pushes is found by its tag, the signature by its own.
func TestReferrersOfRealRegistry(t *testing.T) {
	img := smallImage(t)
	server := registrytest.Start(t, registrytest.Options{User: "me", Password: "s3cret-word"})
	me := registry.Auth{Username: "me", Password: "s3cret-word"}
	c := client(t, registry.Config{})
	p := pusher(t, c, server.Host+"/a/b:v1", me)
	if err := pushAll(t.Context(), p, img); err != nil {
		t.Fatal(err)
	}
	repo := repository(t, c, server.Host+"/a/b:v1", me)
	if got, err := repo.Referrers(t.Context(), img.Digest(), ""); len(got) > 0 || err != nil {
		t.Errorf("before: %v, %v", got, err)
	}
	signature := ocispec.Descriptor{MediaType: img.Manifest.MediaType, Digest: img.Digest(), Size: int64(len(img.ManifestData)), ArtifactType: "application/x-signature"}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": []ocispec.Descriptor{signature}})
	if err != nil {
		t.Fatal(err)
	}
	tag := "sha256-" + img.Digest().Encoded()
	if _, err := p.Manifest(t.Context(), tag, ocispec.MediaTypeImageIndex, index); err != nil {
		t.Fatal(err)
	}
	if got, err := repo.Referrers(t.Context(), img.Digest(), "application/x-signature"); len(got) != 1 || err != nil || got[0].Digest != img.Digest() {
		t.Errorf("%v, %v", got, err)
	}
	if m, err := repo.ManifestByTag(t.Context(), tag); err != nil || !bytes.Equal(m.Data, index) {
		t.Errorf("%s, %v", m.Data, err)
	}
	if _, err := repo.ManifestByTag(t.Context(), tag+".sig"); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("no signature: %v", err)
	}
	if _, err := repo.ManifestByTag(t.Context(), "a/b"); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("no tag: %v", err)
	}
}
