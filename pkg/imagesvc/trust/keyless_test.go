package trust_test

import (
	"crypto/ecdsa"
	"crypto/x509"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"criserver/pkg/imagesvc/trust"
)

var (
	yes, no = true, false
	// someoneKeyless is who signs.
	someoneKeyless = trust.Keyless{Identity: someone, Issuer: someIssuer}
)

// keylessBy is a scope without SCTs, which the certificates of the tests' deployment do not have.
func keylessBy(root string, who ...trust.Keyless) trust.Scope {
	return trust.Scope{Name: "quay.io", Require: trust.Signed, Keyless: who, TrustedRoot: root, SCT: &no}
}

// forms are the ways that a certificate signs an image.
var forms = map[string]func(t *testing.T, d deployment, m *memory, image digest.Digest){
	"tag": func(t *testing.T, d deployment, m *memory, image digest.Digest) {
		m.addOld(t, image, d.old(t, m, image))
	},
	"statement": func(t *testing.T, d deployment, m *memory, image digest.Digest) {
		m.addNew(t, image, mustBundle(t, d.statement(t, statementOf(image, signType), false)))
	},
	"statement in a log without times": func(t *testing.T, d deployment, m *memory, image digest.Digest) {
		m.addNew(t, image, mustBundle(t, d.statement(t, statementOf(image, signType), true)))
	},
	"message": func(t *testing.T, d deployment, m *memory, image digest.Digest) {
		m.addNew(t, image, mustBundle(t, d.message(t, m.manifests[image])))
	},
}

func TestKeylessAccepts(t *testing.T) {
	d := newDeployment(t)
	scopes := map[string]func(*trust.Scope){
		"defaults":             func(*trust.Scope) {},
		"log and timestamp":    func(s *trust.Scope) { s.TimestampAuthority = true },
		"timestamp, no log":    func(s *trust.Scope) { s.TimestampAuthority, s.TransparencyLog = true, &no },
		"still valid, nothing": func(s *trust.Scope) { s.TransparencyLog = &no },
		"regular expressions": func(s *trust.Scope) {
			s.Keyless = []trust.Keyless{{IdentityRegexp: `https://github\.com/org/.*`, IssuerRegexp: `https://token\..*\.com`}}
		},
		"any of some": func(s *trust.Scope) {
			s.Keys = []string{newSigner(t, "rsa").file(t)}
			s.Keyless = []trust.Keyless{{Identity: "dev@example.com", Issuer: someIssuer}, someoneKeyless}
		},
	}
	for name, change := range scopes {
		scope := keylessBy(d.root(t), someoneKeyless)
		change(&scope)
		p := newPolicy(t, scope)
		for form, sign := range forms {
			t.Run(name+", "+form, func(t *testing.T) {
				m, image := newMemory(t)
				sign(t, d, m, image)
				wantAccepted(t, p, image, m)
			})
		}
	}
}

func TestKeylessRejects(t *testing.T) {
	d := newDeployment(t)
	scopes := map[string]struct {
		scope trust.Scope
		text  string
	}{
		"wrong identity": {keylessBy(d.root(t), trust.Keyless{Identity: "dev@example.com", Issuer: someIssuer}), someone},
		"wrong issuer":   {keylessBy(d.root(t), trust.Keyless{Identity: someone, Issuer: "https://accounts.example"}), someIssuer},
		"expression that matches a part of the identity": {
			keylessBy(d.root(t), trust.Keyless{IdentityRegexp: "https://github.com/org/", Issuer: someIssuer}), someone,
		},
		"expression that matches a part of the issuer": {
			keylessBy(d.root(t), trust.Keyless{Identity: someone, IssuerRegexp: "githubusercontent.com|x"}), someIssuer,
		},
		"somebody else's root": {keylessBy(newDeployment(t).root(t), someoneKeyless), "failed to verify"},
		"no SCT": {trust.Scope{
			Name: "quay.io", Require: trust.Signed, Keyless: []trust.Keyless{someoneKeyless}, TrustedRoot: d.root(t),
		}, "signed certificate timestamp"},
		"a key": {signedBy(newSigner(t, "ecdsa").file(t)), "is not by key"},
	}
	for name, c := range scopes {
		p := newPolicy(t, c.scope)
		for form, sign := range forms {
			t.Run(name+", "+form, func(t *testing.T) {
				m, image := newMemory(t)
				sign(t, d, m, image)
				wantRejected(t, p, image, m, "1 signature was found and does not count", c.text)
			})
		}
	}
}

// A signature is rejected when anything that its certificate needs is taken away.
func TestKeylessRejectsWithout(t *testing.T) {
	d := newDeployment(t)
	noLog := keylessBy(d.root(t), someoneKeyless)
	noLog.TransparencyLog, noLog.TimestampAuthority = &no, true
	for name, c := range map[string]struct {
		scope      trust.Scope
		annotation string
		take       func(*protobundle.Bundle)
		old, text  string
	}{
		"log entry": {keylessBy(d.root(t), someoneKeyless), "dev.sigstore.cosign/bundle", func(b *protobundle.Bundle) {
			b.VerificationMaterial.TlogEntries = nil
		}, "not in a transparency log", "not enough verified log entries"},
		"timestamp": {noLog, "dev.sigstore.cosign/rfc3161timestamp", func(b *protobundle.Bundle) {
			b.VerificationMaterial.TimestampVerificationData = nil
		}, "threshold not met", "threshold not met"},
	} {
		t.Run(name, func(t *testing.T) {
			m, image := newMemory(t)
			layer := d.old(t, m, image)
			delete(layer.Annotations, c.annotation)
			m.addOld(t, image, layer)
			b := d.statement(t, statementOf(image, signType), false)
			c.take(b)
			m.addNew(t, image, mustBundle(t, b))
			wantRejected(t, newPolicy(t, c.scope), image, m, c.old, c.text)
		})
	}
	t.Run("certificate", func(t *testing.T) {
		m, image := newMemory(t)
		for _, cert := range []string{"", "no PEM"} {
			layer := d.old(t, m, image)
			layer.Annotations["dev.sigstore.cosign/certificate"] = cert
			m.addOld(t, image, layer)
		}
		m.addNew(t, image, newSigner(t, "ecdsa").statement(t, statementOf(image, signType)))
		scope := keylessBy(d.root(t), someoneKeyless)
		scope.TransparencyLog = &no
		wantRejected(t, newPolicy(t, scope), image, m, "3 signatures", "signature 1 of the .sig tag is not by identity", "made with a key", "is not a certificate", "referrer")
	})
}

func TestTamperedStatementOfACertificate(t *testing.T) {
	d := newDeployment(t)
	m, image := newMemory(t)
	b := d.statement(t, statementOf(digest.FromString("another image"), signType), false)
	b.GetDsseEnvelope().Payload = statementOf(image, signType)
	m.addNew(t, image, mustBundle(t, b))
	scope := keylessBy(d.root(t), someoneKeyless)
	wantRejected(t, newPolicy(t, scope), image, m, "does not match")
	scope.TransparencyLog = &no
	wantRejected(t, newPolicy(t, scope), image, m, "could not verify envelope")
}

// authority signs certificates for any time, which the virtual deployment does not.
type authority struct {
	root, intermediate *x509.Certificate
	key                *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) authority {
	t.Helper()
	rootCert, rootKey, err := ca.GenerateRootCa()
	if err != nil {
		t.Fatal(err)
	}
	intermediate, key, err := ca.GenerateFulcioIntermediate(rootCert, rootKey)
	if err != nil {
		t.Fatal(err)
	}
	return authority{rootCert, intermediate, key}
}

// leaf is a certificate for someone, and its key.
func (a authority) leaf(t testing.TB, from time.Time) (signer, *x509.Certificate) {
	t.Helper()
	s := newSigner(t, "ecdsa")
	cert, err := ca.GenerateLeafCert(someone, someIssuer, from, s.private, a.intermediate, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return s, cert
}

// old signs in the old form by a certificate that is valid for ten minutes.
func (a authority) old(t testing.TB, m *memory, image digest.Digest, from time.Time, chain bool) map[string]string {
	t.Helper()
	s, leaf := a.leaf(t, from)
	layer := annotations(s.sign(t, payloadOf(image)))
	layer["dev.sigstore.cosign/certificate"] = string(mustPEM(t, leaf))
	if chain {
		layer["dev.sigstore.cosign/chain"] = string(mustPEM(t, a.intermediate)) + string(mustPEM(t, a.root))
	}
	m.addOld(t, image, m.addBlob(simpleSigningType, payloadOf(image), layer))
	return layer
}

func mustPEM(t testing.TB, c *x509.Certificate) []byte {
	t.Helper()
	data, err := cryptoutils.MarshalCertificateToPEM(c)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestExpiredCertificate(t *testing.T) {
	a, d := newAuthority(t), newDeployment(t)
	whole := []root.CertificateAuthority{&root.FulcioCertificateAuthority{
		Root: a.root, Intermediates: []*x509.Certificate{a.intermediate}, ValidityPeriodStart: time.Now().Add(-time.Hour), URI: "https://ca.example",
	}}
	scope := keylessBy(trustedRoot(t, whole, d), someoneKeyless)
	logged := newPolicy(t, scope)
	scope.TransparencyLog = &no
	now := newPolicy(t, scope)

	m, image := newMemory(t)
	a.old(t, m, image, time.Now().Add(-11*time.Minute), false)
	wantRejected(t, logged, image, m, "not in a transparency log")
	wantRejected(t, now, image, m, "leaf certificate verification failed")

	m, image = newMemory(t)
	a.old(t, m, image, time.Now().Add(-time.Minute), false)
	wantAccepted(t, now, image, m)
}

// policy trusts the authority's root, and wants no log.
func (a authority) policy(t *testing.T) *trust.Policy {
	t.Helper()
	scope := keylessBy(trustedRoot(t, []root.CertificateAuthority{&root.FulcioCertificateAuthority{
		Root: a.root, ValidityPeriodStart: time.Now().Add(-time.Hour), URI: "https://ca.example",
	}}, newDeployment(t)), someoneKeyless)
	scope.TransparencyLog = &no
	return newPolicy(t, scope)
}

// The chain of a signature leads to a root, but is not one.
func TestChain(t *testing.T) {
	a := newAuthority(t)
	p := a.policy(t)
	m, image := newMemory(t)
	a.old(t, m, image, time.Now().Add(-time.Minute), false)
	wantRejected(t, p, image, m, "leaf certificate verification failed")
	newAuthority(t).old(t, m, image, time.Now().Add(-time.Minute), true)
	wantRejected(t, p, image, m, "leaf certificate verification failed", "2 signatures")
	a.old(t, m, image, time.Now().Add(-time.Minute), true)["dev.sigstore.cosign/chain"] = "no PEM"
	a.old(t, m, image, time.Now().Add(-time.Minute), true)
	wantAccepted(t, p, image, m)
}

// The new form has chains too, of private authorities.
func TestChainInABundle(t *testing.T) {
	a := newAuthority(t)
	p := a.policy(t)
	m, image := newMemory(t)
	for _, from := range []authority{newAuthority(t), a} {
		s, leaf := from.leaf(t, time.Now().Add(-time.Minute))
		b := s.statementBundle(t, statementOf(image, signType))
		b.VerificationMaterial.Content = &protobundle.VerificationMaterial_X509CertificateChain{X509CertificateChain: &protocommon.X509CertificateChain{
			Certificates: []*protocommon.X509Certificate{{RawBytes: leaf.Raw}, {RawBytes: from.intermediate.Raw}},
		}}
		m.addNew(t, image, mustBundle(t, b))
		if from.root != a.root {
			wantRejected(t, p, image, m, "leaf certificate verification failed")
		}
	}
	wantAccepted(t, p, image, m)
}
