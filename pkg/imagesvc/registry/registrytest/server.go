package registrytest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// Server is Debian's docker-registry, running.
type Server struct {
	// Host is host:port.
	Host string
	// CA is the PEM file of the authority that signed its certificate, if it has TLS.
	CA string
	// ClientCert and ClientKey are what it takes to be let in, if it asks for certificates of clients.
	ClientCert, ClientKey string

	client *http.Client
	base   string
	user   *url.Userinfo
}

// Options of a Server.
type Options struct {
	// User and Password, if not empty, are asked for (basic).
	User, Password string
	// TLS has it use a certificate of its own authority.
	TLS bool
	// ClientCert has it refuse clients without the certificate of its own authority. It needs TLS.
	ClientCert bool
	// Prefix is the path below which its API is: "/a/b".
	Prefix string
	// Auth is a token server to send clients to.
	Auth *TokenServer
}

// Start runs docker-registry on a loopback port until the test ends; it is skipped where that is not installed.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is not installed")
	}
	dir := t.TempDir()
	s := &Server{Host: freeAddr(t), client: &http.Client{}}
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"+
		"storage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}\n", filepath.Join(dir, "data"))
	scheme, tlsConfig := "http", ""
	if o.TLS {
		cert, key := newCert(t, dir)
		s.CA, scheme = cert, "https"
		clients := ""
		if o.ClientCert {
			s.ClientCert, s.ClientKey = newCert(t, t.TempDir())
			clients = fmt.Sprintf(", clientcas: [%q]", s.ClientCert)
		}
		tlsConfig = fmt.Sprintf(", tls: {certificate: %q, key: %q%s}", cert, key, clients)
		s.client.Transport = s.trusting(t)
	}
	config += fmt.Sprintf("http: {addr: %q, prefix: %q%s}\n", s.Host, o.Prefix+"/", tlsConfig)
	if o.User != "" {
		out, err := exec.Command("htpasswd", "-Bbn", o.User, o.Password).Output()
		if err != nil {
			t.Skipf("htpasswd: %v", err)
		}
		file := writeFile(t, filepath.Join(dir, "htpasswd"), out)
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %q}}\n", file)
		s.user = url.UserPassword(o.User, o.Password)
	}
	if o.Auth != nil {
		config += fmt.Sprintf("auth: {token: {realm: %q, service: test, issuer: test, rootcertbundle: %q}}\n", o.Auth.URL, o.Auth.cert)
		s.client.Transport = o.Auth.pusher()
	}
	s.base = scheme + "://" + s.Host + o.Prefix + "/v2/"
	s.run(t, program, writeFile(t, filepath.Join(dir, "registry.yml"), []byte(config)))
	return s
}

func (s *Server) run(t testing.TB, program, config string) {
	t.Helper()
	cmd := exec.Command(program, "serve", config)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	// A test that panics runs no cleanups. The kernel sends the signal when the thread that forked ends
	// (PR_SET_PDEATHSIG(2const)), so that one waits for the process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, exited := make(chan error), make(chan struct{})
	go func() {
		defer close(exited)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
	})
	for deadline := time.Now().Add(20 * time.Second); ; {
		select {
		case <-exited:
			t.Fatalf("docker-registry has ended: %s", log.String())
		case <-time.After(20 * time.Millisecond): // it has no way to tell that it listens
		}
		if c, err := net.Dial("tcp", s.Host); err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("docker-registry does not listen at %s", s.Host)
		}
	}
}

// Push uploads a whole image.
func (s *Server) Push(t testing.TB, repo, tag string, img *Image) {
	t.Helper()
	s.PushBlob(t, repo, img.ConfigData)
	for _, l := range img.Layers {
		s.PushBlob(t, repo, l.Blob)
	}
	s.PushManifest(t, repo, tag, img.Manifest.MediaType, img.ManifestData)
}

// PushBlob uploads a blob in one piece (distribution-spec, "POST then PUT").
func (s *Server) PushBlob(t testing.TB, repo string, data []byte) {
	t.Helper()
	to := s.do(t, http.MethodPost, s.base+repo+"/blobs/uploads/", "", nil, http.StatusAccepted)
	q := to.Query()
	q.Set("digest", digest.FromBytes(data).String())
	to.RawQuery = q.Encode()
	s.do(t, http.MethodPut, to.String(), "application/octet-stream", data, http.StatusCreated)
}

// PushManifest uploads a manifest or index under a tag.
func (s *Server) PushManifest(t testing.TB, repo, tag, mediaType string, data []byte) {
	t.Helper()
	s.do(t, http.MethodPut, s.base+repo+"/manifests/"+tag, mediaType, data, http.StatusCreated)
}

// do makes a request and returns where the answer points to.
func (s *Server) do(t testing.TB, method, target, contentType string, body []byte, want int) *url.URL {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, target, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	if s.user != nil {
		password, _ := s.user.Password()
		req.SetBasicAuth(s.user.Username(), password)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		text, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s: %s", method, target, resp.Status, text)
	}
	to, err := resp.Location()
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func writeFile(t testing.TB, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newCert makes a certificate for 127.0.0.1 that is its own authority, and its key.
func newCert(t testing.TB, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "registrytest"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert = writeFile(t, filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	key = writeFile(t, filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}))
	return cert, key
}

func (s *Server) trusting(t testing.TB) *http.Transport {
	t.Helper()
	data, err := os.ReadFile(s.CA)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	if !config.RootCAs.AppendCertsFromPEM(data) {
		t.Fatalf("%s has no certificate", s.CA)
	}
	if s.ClientCert != "" {
		pair, err := tls.LoadX509KeyPair(s.ClientCert, s.ClientKey)
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return &http.Transport{TLSClientConfig: config}
}

// URL is the server's base URL, as for a mirror.
func (s *Server) URL() string { return strings.TrimSuffix(s.base, "/v2/") }
