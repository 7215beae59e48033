package trust

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// Annotations of a layer of the old form, which is the signed payload (cosign's specs/SIGNATURE_SPEC.md).
const (
	annotationSignature   = "dev.cosignproject.cosign/signature"                   // base64
	annotationCertificate = "dev.sigstore.cosign/certificate"                      // PEM
	annotationChain       = "dev.sigstore.cosign/chain"                            // PEM, from intermediates to the root
	annotationBundle      = "dev.sigstore.cosign/bundle"                           // JSON: the log's promise
	annotationTimestamp   = "dev.sigstore.cosign/rfc3161timestamp"                 // JSON
	typeSimpleSigning     = "cosign container image signature"                     // of a payload
	bundleOfPromises      = "application/vnd.dev.sigstore.bundle+json;version=0.1" // the last that needs no proof of inclusion
)

// payload is what is signed in the old form (containers-signature(5)).
type payload struct {
	Critical struct {
		// Identity has a docker-reference, the name of what was signed, which is not looked at, as cosign does not: an
		// image stays signed when it is copied to another repository. Scopes have identities of their own for a reason.
		Image struct {
			Digest digest.Digest `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
}

// simpleSigning is a signature of the old form.
type simpleSigning struct {
	payload     []byte
	signature   []byte
	annotations map[string]string
}

// readSimpleSigning reads a layer whose payload speaks of the image.
func readSimpleSigning(image digest.Digest, layer ocispec.Descriptor, content []byte) (candidate, error) {
	var p payload
	if err := json.Unmarshal(content, &p); err != nil {
		return nil, fmt.Errorf("decode payload: %w", err)
	}
	if p.Critical.Type != typeSimpleSigning {
		return nil, fmt.Errorf("payload is a %q, not a %q", p.Critical.Type, typeSimpleSigning)
	}
	if p.Critical.Image.Digest != image {
		return nil, fmt.Errorf("it is for another image, %q", p.Critical.Image.Digest)
	}
	encoded, found := layer.Annotations[annotationSignature]
	if !found {
		return nil, fmt.Errorf("annotation %s is missing", annotationSignature)
	}
	sig, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", annotationSignature, err)
	}
	return &simpleSigning{payload: content, signature: sig, annotations: layer.Annotations}, nil
}

func (s *simpleSigning) overManifest() bool { return false }

func (s *simpleSigning) accept(*verify.VerificationResult) error { return nil } // the payload was looked at already

// entity makes a bundle of the annotations, with what the identity is verified by and no more.
func (s *simpleSigning) entity(id *identity, _ []byte) (verify.SignedEntity, verify.ArtifactPolicyOption, error) {
	sum := sha256.Sum256(s.payload)
	material := &protobundle.VerificationMaterial{}
	pb := &protobundle.Bundle{
		MediaType: bundleOfPromises, VerificationMaterial: material,
		Content: &protobundle.Bundle_MessageSignature{MessageSignature: &protocommon.MessageSignature{
			MessageDigest: &protocommon.HashOutput{Algorithm: protocommon.HashAlgorithm_SHA2_256, Digest: sum[:]},
			Signature:     s.signature,
		}},
	}
	if id.logged {
		entry, err := s.logEntry()
		if err != nil {
			return nil, nil, err
		}
		material.TlogEntries = []*protorekor.TransparencyLogEntry{entry}
	}
	if err := s.addTimestamp(material); err != nil {
		return nil, nil, err
	}
	var intermediates []*x509.Certificate
	if id.keyed {
		material.Content = &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{}}
	} else {
		leaf, err := s.certificate()
		if err != nil {
			return nil, nil, err
		}
		material.Content = &protobundle.VerificationMaterial_X509CertificateChain{X509CertificateChain: leaf}
		if intermediates, err = s.intermediates(); err != nil {
			return nil, nil, err
		}
	}
	b, err := bundle.NewBundle(pb)
	if err != nil {
		return nil, nil, err
	}
	return &chained{Bundle: b, intermediates: intermediates}, verify.WithArtifact(bytes.NewReader(s.payload)), nil
}

var errNoCertificate = errors.New("it has no certificate, so it was made with a key")

func (s *simpleSigning) certificate() (*protocommon.X509CertificateChain, error) {
	text := s.annotations[annotationCertificate]
	if text == "" {
		return nil, errNoCertificate
	}
	certs, err := cryptoutils.UnmarshalCertificatesFromPEM([]byte(text))
	if err != nil || len(certs) == 0 {
		return nil, fmt.Errorf("annotation %s is not a certificate", annotationCertificate)
	}
	leaf := &protocommon.X509Certificate{RawBytes: certs[0].Raw}
	return &protocommon.X509CertificateChain{Certificates: []*protocommon.X509Certificate{leaf}}, nil
}

// intermediates help to find the way from the certificate to a trusted root, and are not trusted for it.
func (s *simpleSigning) intermediates() ([]*x509.Certificate, error) {
	text := s.annotations[annotationChain]
	if text == "" {
		return nil, nil
	}
	certs, err := cryptoutils.UnmarshalCertificatesFromPEM([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", annotationChain, err)
	}
	return certs, nil
}

// logEntry reads the promise of a log to include the signature.
func (s *simpleSigning) logEntry() (*protorekor.TransparencyLogEntry, error) {
	text := s.annotations[annotationBundle]
	if text == "" {
		return nil, errors.New("it is not in a transparency log, or does not say so")
	}
	var promise struct {
		SignedEntryTimestamp []byte
		Payload              struct {
			Body                     []byte
			IntegratedTime, LogIndex int64
			LogID                    string
		}
	}
	if err := json.Unmarshal([]byte(text), &promise); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", annotationBundle, err)
	}
	id, err := hex.DecodeString(promise.Payload.LogID)
	if err != nil {
		return nil, fmt.Errorf("annotation %s: logID: %w", annotationBundle, err)
	}
	var kind struct{ APIVersion, Kind string }
	if err := json.Unmarshal(promise.Payload.Body, &kind); err != nil {
		return nil, fmt.Errorf("annotation %s: body: %w", annotationBundle, err)
	}
	return &protorekor.TransparencyLogEntry{
		LogIndex: promise.Payload.LogIndex, LogId: &protocommon.LogId{KeyId: id},
		KindVersion:       &protorekor.KindVersion{Kind: kind.Kind, Version: kind.APIVersion},
		IntegratedTime:    promise.Payload.IntegratedTime,
		InclusionPromise:  &protorekor.InclusionPromise{SignedEntryTimestamp: promise.SignedEntryTimestamp},
		CanonicalizedBody: promise.Payload.Body,
	}, nil
}

func (s *simpleSigning) addTimestamp(m *protobundle.VerificationMaterial) error {
	text := s.annotations[annotationTimestamp]
	if text == "" {
		return nil
	}
	var response struct{ SignedRFC3161Timestamp []byte }
	if err := json.Unmarshal([]byte(text), &response); err != nil {
		return fmt.Errorf("annotation %s: %w", annotationTimestamp, err)
	}
	m.TimestampVerificationData = &protobundle.TimestampVerificationData{
		Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: response.SignedRFC3161Timestamp}},
	}
	return nil
}

// chained is a bundle with intermediate certificates, which bundles of its version cannot have.
type chained struct {
	*bundle.Bundle
	intermediates []*x509.Certificate
}

// VerificationContent implements verify.SignedEntity.
func (c *chained) VerificationContent() (verify.VerificationContent, error) {
	content, err := c.Bundle.VerificationContent()
	if err != nil || len(c.intermediates) == 0 {
		return content, err
	}
	return &chainedContent{VerificationContent: content, intermediates: c.intermediates}, nil
}

type chainedContent struct {
	verify.VerificationContent
	intermediates []*x509.Certificate
}

// Intermediates implements verify.VerificationContent.
func (c *chainedContent) Intermediates() []*x509.Certificate { return c.intermediates }
