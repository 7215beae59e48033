package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/imagesvc/registry/registrytest"
)

const (
	secret = "open-sesame-4711"
	// repoTag is the image that all registries of these tests have; it has two layers, the second one of some size.
	repoTag = "team/app:v1"
)

// testImage is an image that no cache knows.
func testImage(t *testing.T) *registrytest.Image {
	t.Helper()
	big := make([]byte, 3<<20)
	for i := range big {
		big[i] = byte(rand.Uint32())
	}
	return registrytest.NewImage(runtime.GOARCH,
		registrytest.NewLayer(t, ocispec.MediaTypeImageLayerGzip, map[string][]byte{"small": []byte(fmt.Sprint(rand.Uint64()))}),
		registrytest.NewLayer(t, ocispec.MediaTypeImageLayerGzip, map[string][]byte{"big": big}))
}

// pullAs pulls with credentials.
func (n *node) pullAs(image string, auth *runtimeapi.AuthConfig) error {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	_, err := n.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}, Auth: auth})
	return err
}

func (n *node) removeImage(image string) {
	n.t.Helper()
	if _, err := n.images.RemoveImage(n.t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
		n.t.Errorf("remove %s: %v", image, err)
	}
}

// collect removes an image, with which goes what no image needs, and waits until nothing is deleted any more.
func (n *node) collect() {
	n.t.Helper()
	layers := filepath.Join(n.dir, "root/overlay/l/*")
	before, _ := filepath.Glob(layers)
	n.pull(busyboxImage)
	pulled, _ := filepath.Glob(layers)
	n.removeImage(busyboxImage)
	eventually(n.t, "the layers of the removed image are collected", func() bool {
		now, _ := filepath.Glob(layers)
		return !slices.ContainsFunc(now, func(l string) bool { return slices.Contains(pulled, l) && !slices.Contains(before, l) })
	})
	n.awaitDeletion()
}

// awaitDeletion waits until nothing is deleted in the background.
func (n *node) awaitDeletion() {
	n.t.Helper()
	eventually(n.t, "the trash is empty", func() bool {
		left, _ := filepath.Glob(filepath.Join(n.dir, "root/overlay/trash/*"))
		return len(left) == 0
	})
}

// stored are the files below the root, but those of databases.
func (n *node) stored() []string {
	var files []string
	root := filepath.Join(n.dir, "root")
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !strings.Contains(d.Name(), ".db") {
			name, _ := filepath.Rel(root, path)
			files = append(files, name)
		}
		return nil
	})
	return files
}

// wantStored fails the test if the root has other files than before. What is deleted in the background gets time.
func (n *node) wantStored(before []string) {
	n.t.Helper()
	var more, less []string
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		now := n.stored()
		without := func(a, b []string) []string {
			return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
		}
		more, less = without(now, before), without(before, now)
		if len(more)+len(less) == 0 {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	n.t.Errorf("files left: %v\nfiles gone: %v", more[:min(20, len(more))], less)
}

// outcome is how a pull shall end: with success if there are no codes.
type outcome struct {
	codes []codes.Code
	texts []string // parts of the error's text
}

func (o outcome) check(t *testing.T, err error) {
	t.Helper()
	if len(o.codes) == 0 {
		if err != nil {
			t.Errorf("pull: %v", err)
		}
		return
	}
	if got := status.Code(err); !slices.Contains(o.codes, got) {
		t.Errorf("code = %s, want one of %v: %v", got, o.codes, err)
	}
	text := status.Convert(err).Message()
	for _, part := range o.texts {
		if !strings.Contains(text, part) {
			t.Errorf("the error does not say %q: %s", part, text)
		}
	}
	if strings.Contains(text, secret) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte("me:"+secret))) {
		t.Errorf("the error tells the password: %s", text)
	}
}

// try pulls, compares the outcome, and removes what was pulled; then the root must be as it was.
func (n *node) try(t *testing.T, before []string, image string, auth *runtimeapi.AuthConfig, want outcome) {
	t.Helper()
	m := *n
	m.t = t
	err := m.pullAs(image, auth)
	want.check(t, err)
	st, statusErr := m.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	if statusErr != nil || (st.Image != nil) != (err == nil) {
		t.Errorf("the pull ended with %v, then there is the image %v, %v", err, st.GetImage(), statusErr)
	}
	m.removeImage(image)
	m.collect()
	m.wantStored(before)
}

// TestRegistryLogins pulls from registries that ask who one is.
func TestRegistryLogins(t *testing.T) {
	basic := registrytest.Start(t, registrytest.Options{User: "me", Password: secret})
	tokens := registrytest.NewTokenServer(t, "me", secret, "refresh-"+secret)
	token := registrytest.Start(t, registrytest.Options{Auth: tokens})
	configured := registrytest.Start(t, registrytest.Options{User: "me", Password: secret})
	for _, s := range []*registrytest.Server{basic, token, configured} {
		s.Push(t, "team/app", "v1", testImage(t))
	}
	n := newNode(t, fmt.Sprintf("[registry.auth.%q]\nusername = \"me\"\npassword = %q\n", configured.Host, secret))
	n.collect()
	before := n.stored()
	ok := outcome{}
	refused := outcome{codes: []codes.Code{codes.Unauthenticated}, texts: []string{"credentials"}}
	right := &runtimeapi.AuthConfig{Username: "me", Password: secret}
	packed := &runtimeapi.AuthConfig{Auth: base64.StdEncoding.EncodeToString([]byte("me:" + secret))}
	wrong := &runtimeapi.AuthConfig{Username: "me", Password: secret + "x"}
	for _, row := range []struct {
		name string
		from *registrytest.Server
		auth *runtimeapi.AuthConfig
		want outcome
	}{
		{"basic, right", basic, right, ok},
		{"basic, right, as auth", basic, packed, ok},
		{"basic, wrong", basic, wrong, refused},
		{"basic, missing", basic, nil, refused},
		{"basic, for another host", basic, &runtimeapi.AuthConfig{Username: "me", Password: secret, ServerAddress: "elsewhere.test"}, refused},
		{"token, right", token, right, ok},
		{"token, refresh token", token, &runtimeapi.AuthConfig{IdentityToken: "refresh-" + secret}, ok},
		{"token, wrong", token, wrong, refused},
		{"token, missing", token, nil, refused},
		{"configured, missing", configured, nil, ok},
		{"configured, wrong", configured, wrong, ok}, // the node's own are tried next, as the kubelet does
	} {
		t.Run(row.name, func(t *testing.T) { n.try(t, before, row.from.Host+"/"+repoTag, row.auth, row.want) })
	}
}

// A misbehaving registry is a real one behind a proxy that does one thing wrong.
type misbehaviour func(w http.ResponseWriter, r *http.Request, next http.Handler)

func misbehaving(t *testing.T, target string, wrong misbehaviour) string {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	next := httputil.NewSingleHostReverseProxy(u)
	next.ErrorLog = log.New(io.Discard, "", 0) // that clients go away is what is tested
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { wrong(w, r, next) }))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.URL
}

// onBlobs changes the answers for blobs of which wanted says so by the path.
func onBlobs(wanted func(path string) bool, change func(w http.ResponseWriter, r *http.Request, code int, body []byte)) misbehaviour {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") || !wanted(r.URL.Path) {
			next.ServeHTTP(w, r)
			return
		}
		answer := httptest.NewRecorder()
		next.ServeHTTP(answer, r)
		for k, v := range answer.Header() {
			w.Header()[k] = v
		}
		change(w, r, answer.Code, answer.Body.Bytes())
	}
}

func failing(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
	http.Error(w, "out of order", http.StatusInternalServerError)
}

// failingBlobs has the manifests.
func failingBlobs(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if strings.Contains(r.URL.Path, "/blobs/") {
		http.Error(w, "out of order", http.StatusBadGateway)
		return
	}
	next.ServeHTTP(w, r)
}

// truncating cuts the connection within the blob, at each try.
func truncating(w http.ResponseWriter, _ *http.Request, code int, body []byte) {
	w.WriteHeader(code)
	_, _ = w.Write(body[:len(body)/2])
	panic(http.ErrAbortHandler)
}

// shortening says that half of the blob is all of it.
func shortening(w http.ResponseWriter, _ *http.Request, code int, body []byte) {
	w.Header().Set("Content-Length", fmt.Sprint(len(body)/2))
	w.WriteHeader(code)
	_, _ = w.Write(body[:len(body)/2])
}

// lying has one other byte in the blob.
func lying(w http.ResponseWriter, _ *http.Request, code int, body []byte) {
	body = bytes.Clone(body)
	if len(body) > 0 {
		body[len(body)*2/3] ^= 1
	}
	w.WriteHeader(code)
	_, _ = w.Write(body)
}

// stalling sends a part of the blob and then nothing.
func stalling(w http.ResponseWriter, r *http.Request, code int, body []byte) {
	w.WriteHeader(code)
	_, _ = w.Write(body[:len(body)/2])
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}

// closedPort is an address where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// TestRegistryMirrors pulls by mirrors that do not work: the next one has the image, or there is none.
func TestRegistryMirrors(t *testing.T) {
	good, withTLS := registrytest.Start(t, registrytest.Options{}), registrytest.Start(t, registrytest.Options{TLS: true})
	img := testImage(t)
	good.Push(t, "team/app", "v1", img)
	withTLS.Push(t, "team/app", "v1", img)
	unavailable := []codes.Code{codes.Unknown}
	// The CRI has no word for damaged content.
	damaged := []codes.Code{codes.Unavailable, codes.DataLoss, codes.Unknown}
	endpoint := func(u string) string { return fmt.Sprintf("%q", u) }
	rows := []row{
		{"down", endpoint(closedPort(t)), outcome{unavailable, []string{"connection refused"}}},
		{"failing", endpoint(misbehaving(t, good.URL(), failing)), outcome{unavailable, []string{"500"}}},
		{"failing-blobs", endpoint(misbehaving(t, good.URL(), failingBlobs)), outcome{unavailable, []string{"502"}}},
		{"untrusted", endpoint(withTLS.URL()), outcome{unavailable, []string{"unknown authority"}}},
		{"no-tls", endpoint(strings.Replace(good.URL(), "http:", "https:", 1)), outcome{unavailable, nil}},
		{"private-ca", fmt.Sprintf("{url = %q, ca = %q}", withTLS.URL(), withTLS.CA), outcome{}},
		{"unverified", fmt.Sprintf("{url = %q, skip_verify = true}", withTLS.URL()), outcome{}},
	}
	config := img.Manifest.Config.Digest.String()
	for _, of := range []struct {
		name   string
		wanted func(path string) bool
	}{
		{"config", func(path string) bool { return strings.HasSuffix(path, config) }},
		{"layers", func(path string) bool { return !strings.HasSuffix(path, config) }},
	} {
		for _, bad := range []struct {
			name   string
			change func(w http.ResponseWriter, r *http.Request, code int, body []byte)
			alone  outcome
		}{
			{"truncated", truncating, outcome{damaged, nil}},
			{"shortened", shortening, outcome{damaged, nil}},
			{"wrong", lying, outcome{damaged, []string{"digest"}}},
			{"stalled", stalling, outcome{append(damaged, codes.DeadlineExceeded), []string{"stalled"}}},
		} {
			rows = append(rows, row{bad.name + "-" + of.name, endpoint(misbehaving(t, good.URL(), onBlobs(of.wanted, bad.change))), bad.alone})
		}
	}
	n := newNode(t, mirrorsOf(rows, good.URL()))
	n.collect()
	before := n.stored()
	for _, r := range rows {
		t.Run(r.name+"/alone", func(t *testing.T) { n.try(t, before, r.name+".alone.test/"+repoTag, nil, r.alone) })
		t.Run(r.name+"/first", func(t *testing.T) { n.try(t, before, r.name+".first.test/"+repoTag, nil, outcome{}) })
	}
}

// row is an endpoint, as in a configuration, and what comes of it when there is no other one.
type row struct {
	name, endpoint string
	alone          outcome
}

// mirrorsOf configures two hosts an endpoint: with that alone, and with the good one after it.
func mirrorsOf(rows []row, good string) string {
	config := "[image]\nno_progress_timeout = \"1s\"\nkeep_downloads = \"0s\"\n"
	for _, r := range rows {
		config += fmt.Sprintf("[registry.mirrors.\"%s.alone.test\"]\nendpoints = [%s]\nno_fallback = true\n", r.name, r.endpoint)
		config += fmt.Sprintf("[registry.mirrors.\"%s.first.test\"]\nendpoints = [%s, %q]\nno_fallback = true\n", r.name, r.endpoint, good)
	}
	return config
}
