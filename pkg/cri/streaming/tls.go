package streaming

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"slices"
	"time"
)

// generatedLife is how long a certificate is good that the server has made for itself.
const generatedLife = 365 * 24 * time.Hour

// Check says what of it cannot be used; files are read when the server starts.
func (t TLS) Check() error {
	if (t.Certificate == "") != (t.Key == "") {
		return errors.New("a certificate and its key belong together")
	}
	if t.Generate && t.Certificate != "" {
		return errors.New("a certificate is either given or generated")
	}
	if !t.enabled() && (t.ClientCA != "" || t.MinVersion != "" || len(t.Ciphers) > 0) {
		return errors.New("it has settings, but neither a certificate nor leave to generate one")
	}
	if _, err := t.version(); err != nil {
		return err
	}
	_, err := t.suites()
	return err
}

func (t TLS) enabled() bool { return t.Generate || t.Certificate != "" }

func (t TLS) version() (uint16, error) {
	switch t.MinVersion {
	case "", "1.2":
		return tls.VersionTLS12, nil
	case "1.3":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("minimum version %q is neither 1.2 nor 1.3", t.MinVersion)
}

func (t TLS) suites() ([]uint16, error) {
	var ids []uint16
	for _, name := range t.Ciphers {
		all := tls.CipherSuites()
		i := slices.IndexFunc(all, func(s *tls.CipherSuite) bool { return s.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("cipher suite %q is unknown or insecure", name)
		}
		ids = append(ids, all[i].ID)
	}
	return ids, nil
}

// config is nil without TLS. Given files are read again when they change.
func (t TLS) config(address string) (*tls.Config, error) {
	if err := t.Check(); err != nil {
		return nil, fmt.Errorf("streaming TLS: %w", err)
	}
	if !t.enabled() {
		return nil, nil
	}
	base := &tls.Config{NextProtos: []string{"http/1.1"}}
	base.MinVersion, _ = t.version()
	base.CipherSuites, _ = t.suites()
	if t.Generate {
		cert, err := generate(address)
		if err != nil {
			return nil, fmt.Errorf("streaming certificate: %w", err)
		}
		base.Certificates = []tls.Certificate{cert}
	}
	if t.Generate && t.ClientCA == "" {
		return base, nil
	}
	base.SessionTicketsDisabled = true // of a client that is let in no more there must not be one
	files := &tlsFiles{tls: t, base: base}
	if err := files.load(); err != nil {
		return nil, err
	}
	return &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return files.config(time.Now()), nil }}, nil
}

// generate makes a certificate that nobody else has signed.
func generate(address string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "criserver streaming"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(generatedLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, DNSNames: []string{"localhost"},
	}
	if ip := net.ParseIP(address); ip != nil {
		template.IPAddresses = append(template.IPAddresses, ip)
	} else if address != "" {
		template.DNSNames = append(template.DNSNames, address)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}

// noHTTP2: a connection is taken over by SPDY or WebSocket.
func noHTTP2() map[string]func(*http.Server, *tls.Conn, http.Handler) {
	return map[string]func(*http.Server, *tls.Conn, http.Handler){}
}
