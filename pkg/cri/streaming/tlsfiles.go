package streaming

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/pkg/imagesvc/opfile"
)

const (
	// lookEvery is how often it is looked at most whether the files have changed.
	lookEvery = time.Second
	// maxPEM is how large a file may be, in bytes.
	maxPEM = 1 << 20
)

// tlsFiles are the settings of TLS as the files say at the time of a handshake. Files may be exchanged one after the other: while they
// cannot be used, or not read, what they said before counts.
type tlsFiles struct {
	tls  TLS
	base *tls.Config // all that is not in files

	current atomic.Pointer[tls.Config]
	mu      sync.Mutex // held by the one who looks
	looked  time.Time
	// stamps are the files' when they were read last, failed tells that they could not be used.
	stamps map[string]opfile.Stamp
	failed bool
}

// config is for a handshake. Only one looks at the files, since they may hang: others go on with what is there.
func (f *tlsFiles) config(now time.Time) *tls.Config {
	if f.mu.TryLock() {
		if now.Sub(f.looked) >= lookEvery {
			f.look()
			f.looked = time.Now()
		}
		f.mu.Unlock()
	}
	return f.current.Load()
}

// look reads the files if they have changed, or could not be used the last time. The caller holds the lock.
func (f *tlsFiles) look() {
	changed := f.changed()
	if !changed && !f.failed {
		return
	}
	err := f.load()
	f.failed = err != nil
	switch {
	case err == nil:
		logrus.Info("streaming certificates have changed and are read")
	case changed: // it is said once of the same files
		logrus.WithError(err).Warn("streaming certificates have changed and cannot be used; the former ones are")
	}
}

// changed notes what the files are like, before they are read: what changes later is seen the next time.
func (f *tlsFiles) changed() bool {
	now := map[string]opfile.Stamp{}
	for _, path := range []string{f.tls.Certificate, f.tls.Key, f.tls.ClientCA} {
		if path == "" {
			continue
		}
		stamp, err := opfile.StampOf(path)
		if err != nil {
			stamp = opfile.Stamp{} // reading tells
		}
		now[path] = stamp
	}
	same := maps.Equal(f.stamps, now)
	f.stamps = now
	return !same
}

// load reads the files.
func (f *tlsFiles) load() error {
	if f.stamps == nil {
		f.changed()
	}
	c := f.base.Clone()
	if !f.tls.Generate {
		cert, err := readPair(f.tls.Certificate, f.tls.Key)
		if err != nil {
			return fmt.Errorf("streaming certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	if f.tls.ClientCA != "" {
		pem, err := opfile.Read(f.tls.ClientCA, maxPEM)
		if err != nil {
			return fmt.Errorf("authority of streaming clients: %w", err)
		}
		c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !c.ClientCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("authority of streaming clients: no certificate in %s", f.tls.ClientCA)
		}
	}
	f.current.Store(c)
	return nil
}

func readPair(certificate, key string) (tls.Certificate, error) {
	certPEM, err := opfile.Read(certificate, maxPEM)
	keyPEM, keyErr := opfile.Read(key, maxPEM)
	if err := errors.Join(err, keyErr); err != nil {
		return tls.Certificate{}, err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return cert, fmt.Errorf("%s with key %s: %w", certificate, key, err)
	}
	return cert, nil
}
