package trust_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	sigdsse "github.com/sigstore/sigstore/pkg/signature/dsse"
	"google.golang.org/protobuf/encoding/protojson"
)

// Who signs in tests.
const (
	someone    = "https://github.com/org/app/.github/workflows/release.yml@refs/heads/main"
	someIssuer = "https://token.actions.githubusercontent.com"
	intoto     = "application/vnd.in-toto+json"
	signType   = "https://sigstore.dev/cosign/sign/v1"
)

// payloadOf is what cosign signs in the old form.
func payloadOf(d digest.Digest) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":"quay.io/other/name"},"image":{"docker-manifest-digest":%q},`+
		`"type":"cosign container image signature"},"optional":null}`, d.String())
}

// statementOf is what cosign signs in the new form.
func statementOf(d digest.Digest, predicateType string) []byte {
	return fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{%q:%q}}],"predicateType":%q,"predicate":{}}`,
		d.Algorithm(), d.Encoded(), predicateType)
}

// signer is a key.
type signer struct {
	private crypto.Signer
	hash    crypto.Hash
}

func newSigner(t testing.TB, kind string) signer {
	t.Helper()
	s := signer{hash: crypto.SHA256}
	var err error
	switch kind {
	case "ecdsa":
		s.private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ecdsa p384 sha256":
		s.private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ecdsa p384":
		s.hash = crypto.SHA384
		s.private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "rsa":
		s.private, err = rsa.GenerateKey(rand.Reader, 2048)
	case "rsa 1024":
		t.Setenv("GODEBUG", "rsa1024min=0")
		s.private, err = rsa.GenerateKey(rand.Reader, 1024)
	case "ed25519":
		_, s.private, err = ed25519.GenerateKey(rand.Reader)
	default:
		t.Fatalf("no kind %q", kind)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s signer) load(t testing.TB) signature.Signer {
	t.Helper()
	loaded, err := signature.LoadSigner(s.private, s.hash)
	if err != nil {
		t.Fatal(err)
	}
	return loaded
}

func (s signer) sign(t testing.TB, content []byte) []byte {
	t.Helper()
	sig, err := s.load(t).SignMessage(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// file writes the public key.
func (s signer) file(t testing.TB) string {
	t.Helper()
	return writeFile(t, "key.pub", s.pem(t))
}

func (s signer) pem(t testing.TB) []byte {
	t.Helper()
	data, err := cryptoutils.MarshalPublicKeyToPEM(s.private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func writeFile(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// annotations are those of a layer of the old form without anything but the signature.
func annotations(sig []byte) map[string]string {
	return map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)}
}

// old signs in the old form.
func (s signer) old(t testing.TB, m *memory, d digest.Digest) ocispec.Descriptor {
	t.Helper()
	return m.addBlob(simpleSigningType, payloadOf(d), annotations(s.sign(t, payloadOf(d))))
}

// statement signs in the new form.
func (s signer) statement(t testing.TB, content []byte) []byte {
	t.Helper()
	return mustBundle(t, s.statementBundle(t, content))
}

func (s signer) statementBundle(t testing.TB, content []byte) *protobundle.Bundle {
	t.Helper()
	e, err := dsse.NewEnvelopeSigner(&sigdsse.SignerAdapter{SignatureSigner: s.load(t), Pub: s.private.Public()})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := e.SignPayload(context.Background(), intoto, content)
	if err != nil {
		t.Fatal(err)
	}
	return &protobundle.Bundle{
		MediaType: bundleType, Content: envelope(t, signed),
		VerificationMaterial: &protobundle.VerificationMaterial{Content: keyHint()},
	}
}

// message signs the manifest itself.
func (s signer) message(t testing.TB, manifest []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(manifest)
	return mustBundle(t, &protobundle.Bundle{
		MediaType: bundleType, Content: messageSignature(sum[:], s.sign(t, manifest)),
		VerificationMaterial: &protobundle.VerificationMaterial{Content: keyHint()},
	})
}

func keyHint() *protobundle.VerificationMaterial_PublicKey {
	return &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{Hint: "any"}}
}

func messageSignature(sum, sig []byte) *protobundle.Bundle_MessageSignature {
	return &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
		MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: sum}, Signature: sig,
	}}
}

func envelope(t testing.TB, e *dsse.Envelope) *protobundle.Bundle_DsseEnvelope {
	t.Helper()
	content, err := e.DecodeB64Payload()
	if err != nil {
		t.Fatal(err)
	}
	sig, err := base64.StdEncoding.DecodeString(e.Signatures[0].Sig)
	if err != nil {
		t.Fatal(err)
	}
	return &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
		Payload: content, PayloadType: e.PayloadType, Signatures: []*protodsse.Signature{{Sig: sig}},
	}}
}

func mustBundle(t testing.TB, b *protobundle.Bundle) []byte {
	t.Helper()
	data, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// deployment is a sigstore: an authority, logs and timestamps.
type deployment struct{ *ca.VirtualSigstore }

func newDeployment(t testing.TB) deployment {
	t.Helper()
	v, err := ca.NewVirtualSigstore()
	if err != nil {
		t.Fatal(err)
	}
	return deployment{v}
}

// root writes what trusts the deployment.
func (d deployment) root(t testing.TB) string {
	t.Helper()
	return trustedRoot(t, d.FulcioCertificateAuthorities(), d)
}

// rootFile writes a trusted root, which was made without an error.
func rootFile(t testing.TB, tr *root.TrustedRoot, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	data, err := tr.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, "trusted_root.json", data)
}

func trustedRoot(t testing.TB, authorities []root.CertificateAuthority, d deployment) string {
	t.Helper()
	tr, err := root.NewTrustedRoot(root.TrustedRootMediaType01, authorities, rawIDs(t, d.CTLogs()), d.TimestampingAuthorities(), rawIDs(t, d.RekorLogs()))
	return rootFile(t, tr, err)
}

// rawIDs: the deployment has them in hexadecimal where the file has bytes.
func rawIDs(t testing.TB, logs map[string]*root.TransparencyLog) map[string]*root.TransparencyLog {
	t.Helper()
	for id, l := range logs {
		raw, err := hex.DecodeString(id)
		if err != nil {
			t.Fatal(err)
		}
		l.ID, l.SignatureHashFunc = raw, crypto.SHA256
	}
	return logs
}

// logged makes the entry of a signature in the log, with a promise, and a proof that it is in.
func (d deployment) logged(t testing.TB, content, sig, verifier []byte) *protorekor.TransparencyLogEntry {
	t.Helper()
	sum := sha256.Sum256(content)
	body, err := json.Marshal(map[string]any{"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": map[string]any{
		"data":      map[string]any{"hash": map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])}},
		"signature": map[string]any{"content": sig, "publicKey": map[string]any{"content": verifier}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return d.promised(t, "hashedrekord", body, time.Now().Add(5*time.Minute))
}

func (d deployment) promised(t testing.TB, kind string, body []byte, at time.Time) *protorekor.TransparencyLogEntry {
	t.Helper()
	id, err := d.RekorLogID()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := hex.DecodeString(id)
	if err != nil {
		t.Fatal(err)
	}
	promise, err := d.RekorSignPayload(tlog.RekorPayload{
		Body: base64.StdEncoding.EncodeToString(body), IntegratedTime: at.Unix(), LogIndex: 7, LogID: id,
	})
	if err != nil {
		t.Fatal(err)
	}
	proof, err := d.GetInclusionProof(body)
	if err != nil {
		t.Fatal(err)
	}
	rootHash, err := hex.DecodeString(*proof.RootHash)
	if err != nil {
		t.Fatal(err)
	}
	return &protorekor.TransparencyLogEntry{
		LogIndex: 7, LogId: &protocommon.LogId{KeyId: raw}, KindVersion: &protorekor.KindVersion{Kind: kind, Version: "0.0.1"},
		IntegratedTime: at.Unix(), InclusionPromise: &protorekor.InclusionPromise{SignedEntryTimestamp: promise},
		InclusionProof: &protorekor.InclusionProof{
			LogIndex: *proof.LogIndex, RootHash: rootHash, TreeSize: *proof.TreeSize, Checkpoint: &protorekor.Checkpoint{Envelope: *proof.Checkpoint},
		},
		CanonicalizedBody: body,
	}
}

// promiseOf is the annotation that cosign makes of an entry in the log.
func promiseOf(t testing.TB, e *protorekor.TransparencyLogEntry) string {
	t.Helper()
	data, err := json.Marshal(map[string]any{
		"SignedEntryTimestamp": e.InclusionPromise.SignedEntryTimestamp,
		"Payload": map[string]any{
			"body": e.CanonicalizedBody, "integratedTime": e.IntegratedTime, "logIndex": e.LogIndex, "logID": hex.EncodeToString(e.LogId.KeyId),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// old signs in the old form by a certificate for someone, with all annotations that there are.
func (d deployment) old(t testing.TB, m *memory, image digest.Digest) ocispec.Descriptor {
	t.Helper()
	content := payloadOf(image)
	e, err := d.Sign(someone, someIssuer, content)
	if err != nil {
		t.Fatal(err)
	}
	sig, cert := signatureOf(t, e), certOf(t, e)
	a := annotations(sig)
	a["dev.sigstore.cosign/certificate"] = string(cert)
	a["dev.sigstore.cosign/bundle"] = promiseOf(t, d.logged(t, content, sig, cert))
	stamps, err := e.Timestamps()
	if err != nil {
		t.Fatal(err)
	}
	a["dev.sigstore.cosign/rfc3161timestamp"] = fmt.Sprintf(`{"SignedRFC3161Timestamp":%q}`, base64.StdEncoding.EncodeToString(stamps[0]))
	return m.addBlob(simpleSigningType, content, a)
}

func signatureOf(t testing.TB, e *ca.TestEntity) []byte {
	t.Helper()
	c, err := e.SignatureContent()
	if err != nil {
		t.Fatal(err)
	}
	return c.Signature()
}

func certOf(t testing.TB, e *ca.TestEntity) []byte {
	t.Helper()
	c, err := e.VerificationContent()
	if err != nil {
		t.Fatal(err)
	}
	data, err := cryptoutils.MarshalCertificateToPEM(c.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// statement signs in the new form by a certificate for someone. newLog is of a log without times of its own.
func (d deployment) statement(t testing.TB, content []byte, newLog bool) *protobundle.Bundle {
	t.Helper()
	var e *ca.TestEntity
	var err error
	if newLog {
		e, err = d.AttestHashedRekordV2(someone, someIssuer, content)
	} else {
		e, err = d.AttestAtTime(someone, someIssuer, content, time.Now().Add(5*time.Minute), true)
	}
	if err != nil {
		t.Fatal(err)
	}
	entries, err := e.TlogEntries()
	if err != nil {
		t.Fatal(err)
	}
	entry := entries[0].TransparencyLogEntry()
	if newLog {
		entry.IntegratedTime = 0
	} else {
		entry = d.promised(t, "dsse", entry.CanonicalizedBody, time.Unix(entry.IntegratedTime, 0))
	}
	c, err := e.SignatureContent()
	if err != nil {
		t.Fatal(err)
	}
	return &protobundle.Bundle{
		MediaType: bundleType, Content: envelope(t, c.EnvelopeContent().RawEnvelope()), VerificationMaterial: d.material(t, e, entry),
	}
}

// message signs the manifest itself by a certificate for someone.
func (d deployment) message(t testing.TB, manifest []byte) *protobundle.Bundle {
	t.Helper()
	e, err := d.Sign(someone, someIssuer, manifest)
	if err != nil {
		t.Fatal(err)
	}
	sum, sig := sha256.Sum256(manifest), signatureOf(t, e)
	return &protobundle.Bundle{
		MediaType: bundleType, Content: messageSignature(sum[:], sig),
		VerificationMaterial: d.material(t, e, d.logged(t, manifest, sig, certOf(t, e))),
	}
}

func (d deployment) material(t testing.TB, e *ca.TestEntity, entry *protorekor.TransparencyLogEntry) *protobundle.VerificationMaterial {
	t.Helper()
	c, err := e.VerificationContent()
	if err != nil {
		t.Fatal(err)
	}
	stamps, err := e.Timestamps()
	if err != nil {
		t.Fatal(err)
	}
	return &protobundle.VerificationMaterial{
		Content:     &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: c.Certificate().Raw}},
		TlogEntries: []*protorekor.TransparencyLogEntry{entry},
		TimestampVerificationData: &protobundle.TimestampVerificationData{
			Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: stamps[0]}},
		},
	}
}

// withoutLogs writes what trusts the authorities of a deployment alone.
func withoutLogs(t testing.TB, d deployment) string {
	t.Helper()
	tr, err := root.NewTrustedRoot(root.TrustedRootMediaType01, d.FulcioCertificateAuthorities(), nil, nil, nil)
	return rootFile(t, tr, err)
}
