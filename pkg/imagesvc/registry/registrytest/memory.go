package registrytest

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// Memory is a registry in this process, for what no real one does: Hook may answer first.
type Memory struct {
	// Hook answers a request if it returns true. It must be set before the first request.
	Hook func(w http.ResponseWriter, r *http.Request) bool
	// Host is host:port.
	Host string
	// Server is what listens.
	Server *httptest.Server

	mu        sync.Mutex
	manifests map[string][]byte // by repository/reference
	blobs     map[digest.Digest][]byte
	requests  []*http.Request
}

// NewMemory starts a registry without TLS.
func NewMemory(t testing.TB) *Memory {
	m := newMemory()
	m.Server = httptest.NewServer(m)
	return m.started(t)
}

// NewMemoryTLS starts a registry with TLS, and a certificate nobody knows, the same for all. It asks for a certificate of the
// client, which is in the TLS of Requests.
func NewMemoryTLS(t testing.TB) *Memory {
	m := newMemory()
	m.Server = httptest.NewUnstartedServer(m)
	m.Server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	m.Server.StartTLS()
	return m.started(t)
}

// CA writes the certificate to a file.
func (m *Memory) CA(t testing.TB) string {
	block := &pem.Block{Type: "CERTIFICATE", Bytes: m.Server.Certificate().Raw}
	return writeFile(t, filepath.Join(t.TempDir(), "ca.pem"), pem.EncodeToMemory(block))
}

// NewClientCert makes the files of a certificate and its key.
func NewClientCert(t testing.TB) (cert, key string) { return newCert(t, t.TempDir()) }

func newMemory() *Memory {
	return &Memory{manifests: map[string][]byte{}, blobs: map[digest.Digest][]byte{}}
}

func (m *Memory) started(t testing.TB) *Memory {
	t.Cleanup(func() {
		m.Server.CloseClientConnections() // a hook may hang
		m.Server.Close()
	})
	_, m.Host, _ = strings.Cut(m.Server.URL, "://")
	return m
}

// AddManifest puts a manifest or index under a tag or "", and its digest.
func (m *Memory) AddManifest(repo, tag string, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.manifests[repo+"/"+tag] = data
	m.manifests[repo+"/"+digest.FromBytes(data).String()] = data
}

// AddBlob puts a blob under the digest, whatever it is.
func (m *Memory) AddBlob(d digest.Digest, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blobs[d] = data
}

// Add puts a whole image.
func (m *Memory) Add(repo, tag string, img *Image) {
	m.AddManifest(repo, tag, img.ManifestData)
	m.AddBlob(img.Manifest.Config.Digest, img.ConfigData)
	for i, l := range img.Layers {
		m.AddBlob(img.Manifest.Layers[i].Digest, l.Blob)
	}
}

// Requests are those that came, as "GET /v2/…", for who has no better question.
func (m *Memory) Requests() []*http.Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]*http.Request(nil), m.requests...)
}

// Count is how many requests began with a method and had a part in their path.
func (m *Memory) Count(method, part string) int {
	n := 0
	for _, r := range m.Requests() {
		if r.Method == method && strings.Contains(r.URL.Path, part) {
			n++
		}
	}
	return n
}

// ServeHTTP keeps account of the request, and answers it.
func (m *Memory) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	m.requests = append(m.requests, r.Clone(r.Context()))
	m.mu.Unlock()
	if m.Hook == nil || !m.Hook(w, r) {
		m.Serve(w, r)
	}
}

// Serve answers GET and HEAD, with ranges; a hook may call it.
func (m *Memory) Serve(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	if repo, ref, ok := strings.Cut(path, "/manifests/"); ok {
		m.mu.Lock()
		data := m.manifests[repo+"/"+ref]
		m.mu.Unlock()
		if data == nil {
			Fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
			return
		}
		var doc struct{ MediaType string }
		_ = json.Unmarshal(data, &doc) // a test may serve anything
		w.Header().Set("Content-Type", doc.MediaType)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(data).String())
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		return
	}
	_, d, _ := strings.Cut(path, "/blobs/")
	m.mu.Lock()
	data, ok := m.blobs[digest.Digest(d)]
	m.mu.Unlock()
	if !ok {
		Fail(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// Fail answers as registries do (distribution-spec, error codes).
func Fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}
