package streaming

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority " + t.Name()}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t, cert, key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// write makes a PEM file of its own certificate.
func (a *authority) write(path string) {
	a.t.Helper()
	writePEM(a.t, path, "CERTIFICATE", a.cert.Raw)
}

// sign makes PEM files of a certificate for 127.0.0.1 and its key.
func (a *authority) sign(certificate, key string) tls.Certificate {
	a.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "leaf"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &k.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	writePEM(a.t, key, "PRIVATE KEY", keyDER)
	writePEM(a.t, certificate, "CERTIFICATE", der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ask makes a handshake and a request, which finds nothing.
func (s *Server) ask(t *testing.T, c *tls.Config) (*tls.ConnectionState, error) {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}}
	resp, err := client.Get("https://" + s.address + "/nothing")
	if err != nil {
		return nil, err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("answer: %s", resp.Status)
	}
	return resp.TLS, nil
}

// Each setting lets in who complies with it, and refuses who does not.
func TestTLSHandshakes(t *testing.T) {
	ours, strange := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	ours.sign(at("cert"), at("key"))
	ours.write(at("ca"))
	ourClient, strangeClient := ours.sign(at("c"), at("ck")), strange.sign(at("s"), at("sk"))
	const suite, otherSuite = tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
	given := TLS{Certificate: at("cert"), Key: at("key")}
	with := func(change func(*TLS)) TLS {
		c := given
		change(&c)
		return c
	}
	for name, test := range map[string]struct {
		server  TLS
		in, out *tls.Config
	}{
		"certificate": {given, &tls.Config{RootCAs: ours.pool()}, &tls.Config{RootCAs: strange.pool()}},
		"client's authority, no certificate": {with(func(c *TLS) { c.ClientCA = at("ca") }),
			&tls.Config{RootCAs: ours.pool(), Certificates: []tls.Certificate{ourClient}}, &tls.Config{RootCAs: ours.pool()}},
		"client's authority, another one's certificate": {with(func(c *TLS) { c.ClientCA = at("ca") }),
			&tls.Config{RootCAs: ours.pool(), Certificates: []tls.Certificate{ourClient}},
			&tls.Config{RootCAs: ours.pool(), GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &strangeClient, nil }}},
		"minimum version": {with(func(c *TLS) { c.MinVersion = "1.3" }),
			&tls.Config{RootCAs: ours.pool()}, &tls.Config{RootCAs: ours.pool(), MaxVersion: tls.VersionTLS12}},
		"version 1.1": {given, &tls.Config{RootCAs: ours.pool(), MaxVersion: tls.VersionTLS12},
			&tls.Config{RootCAs: ours.pool(), MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}},
		"ciphers": {with(func(c *TLS) { c.Ciphers = []string{tls.CipherSuiteName(suite)} }),
			&tls.Config{RootCAs: ours.pool(), MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite}},
			&tls.Config{RootCAs: ours.pool(), MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{otherSuite}}},
		"generated, client's authority": {TLS{Generate: true, ClientCA: at("ca")},
			&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{ourClient}}, &tls.Config{InsecureSkipVerify: true}},
	} {
		t.Run(name, func(t *testing.T) {
			s := serveTLS(t, test.server)
			if _, err := s.ask(t, test.in); err != nil {
				t.Errorf("it is refused: %v", err)
			}
			if _, err := s.ask(t, test.out); err == nil {
				t.Error("it is let in")
			}
		})
	}
}

// Files may be exchanged while the server runs. What cannot be used leaves the former in place.
func TestTLSFilesChange(t *testing.T) {
	hook := logtest.NewGlobal()
	said := func(text string) (n int) {
		for _, e := range hook.AllEntries() {
			if e.Level <= logrus.InfoLevel && strings.Contains(e.Message, text) {
				n++
			}
		}
		return n
	}
	first, second := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	first.sign(at("cert"), at("key"))
	first.write(at("ca"))
	s := serveTLS(t, TLS{Certificate: at("cert"), Key: at("key"), ClientCA: at("ca")})
	firstClient, secondClient := first.sign(at("1"), at("1k")), second.sign(at("2"), at("2k"))
	lets := func(server *authority, client tls.Certificate) bool {
		_, err := s.ask(t, &tls.Config{RootCAs: server.pool(),
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &client, nil }})
		return err == nil
	}
	if !lets(first, firstClient) || lets(first, secondClient) {
		t.Fatal("it does not begin with the first")
	}
	// A certificate without its key, as in the middle of an exchange.
	second.sign(at("cert"), at("key-next"))
	await(t, "the broken pair is logged", func() bool { return lets(first, firstClient) && said("cannot be used") == 1 })
	time.Sleep(lookEvery)
	if !lets(first, firstClient) || said("cannot be used") != 1 {
		t.Error("the former certificate is not kept, or it is said again")
	}
	if err := os.Rename(at("key-next"), at("key")); err != nil {
		t.Fatal(err)
	}
	await(t, "the second certificate is used", func() bool { return lets(second, firstClient) })
	if err := os.WriteFile(at("ca"), []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	await(t, "the broken authority is logged", func() bool { return lets(second, firstClient) && said("cannot be used") == 2 })
	second.write(at("ca"))
	await(t, "the second authority is used", func() bool { return lets(second, secondClient) })
	if lets(second, firstClient) {
		t.Error("a client of the former authority is let in")
	}
	if err := os.Remove(at("cert")); err != nil {
		t.Fatal(err)
	}
	await(t, "the missing file is logged", func() bool { return lets(second, secondClient) && said("cannot be used") == 3 })
	if said("are read") != 2 {
		t.Errorf("%d changes were logged", said("are read"))
	}
}
