package trust

import (
	"crypto/ed25519"
	"encoding/json"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

var fuzzed = digest.FromString("image")

// Whatever is pushed beside an image, it is no signature, and no way to stop the daemon.
func FuzzBundle(f *testing.F) {
	const material = `"verificationMaterial":{"publicKey":{"hint":"x"}}`
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json",` + material + `,"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":"AAAA"},"signature":"AAAA"}}`))
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json",` + material + `,"dsseEnvelope":{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"AAAA"}]}}`))
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle+json;version=0.2","verificationMaterial":{"x509CertificateChain":{"certificates":[{"rawBytes":"AAAA"}]},"tlogEntries":[{"logIndex":"1","logId":{"keyId":"AAAA"},"kindVersion":{"kind":"dsse","version":"0.0.1"},"canonicalizedBody":"e30="}]}}`))
	f.Add([]byte(`{"dsseEnvelope":null}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		refuse(t, func() (candidate, error) { return readBundle(fuzzed, content) })
	})
}

func FuzzSimpleSigning(f *testing.F) {
	payload, err := json.Marshal(map[string]any{"critical": map[string]any{
		"image": map[string]any{"docker-manifest-digest": fuzzed}, "type": typeSimpleSigning,
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload, "AAAA", "", "", `{"SignedEntryTimestamp":"AAAA","Payload":{"body":"e30=","integratedTime":1,"logIndex":1,"logID":"00"}}`, `{"SignedRFC3161Timestamp":"AAAA"}`)
	f.Add(payload, "AAAA", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "x", "{", "null")
	f.Add([]byte(`{"critical":null}`), "", "", "", "", "")
	f.Fuzz(func(t *testing.T, content []byte, sig, cert, chain, log, timestamp string) {
		layer := ocispec.Descriptor{Annotations: map[string]string{
			annotationSignature: sig, annotationCertificate: cert, annotationChain: chain, annotationBundle: log, annotationTimestamp: timestamp,
		}}
		refuse(t, func() (candidate, error) { return readSimpleSigning(fuzzed, layer, content) })
	})
}

// refuse wants an error of the reading, or else of every identity.
func refuse(t *testing.T, read func() (candidate, error)) {
	var c candidate
	if guarded(func() (err error) { c, err = read(); return err }) != nil {
		return
	}
	who, err := verify.NewShortCertificateIdentity("", ".*", "", ".*")
	if err != nil {
		t.Fatal(err)
	}
	k := nobody(t)
	for _, id := range []*identity{
		{keyed: true, verifier: k, policy: verify.WithKey()}, {keyed: true, logged: true, verifier: k, policy: verify.WithKey()},
		{logged: true, verifier: k, policy: verify.WithCertificateIdentity(who)},
	} {
		if guarded(func() error { return verifyBy(c, id, []byte("manifest")) }) == nil {
			t.Fatal("accepted")
		}
	}
}

// nobody has a key that nobody signs with.
func nobody(t *testing.T) *verify.Verifier {
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := newKey(public)
	if err != nil {
		t.Fatal(err)
	}
	v, err := verify.NewVerifier(root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) { return k, nil }), verify.WithNoObserverTimestamps())
	if err != nil {
		t.Fatal(err)
	}
	return v
}
