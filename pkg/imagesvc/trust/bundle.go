package trust

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"google.golang.org/protobuf/encoding/protojson"
)

// signPredicate is the type of the statement "I sign this image" (cosign's pkg/types). Statements of other types, which
// are put into bundles as well, say something of the image that may be nothing good: that a scan found a weakness.
const signPredicate = "https://sigstore.dev/cosign/sign/v1"

// sigstoreBundle is a signature of the new form: over an in-toto statement that names the image's digest, or over the
// image's manifest.
type sigstoreBundle struct {
	*bundle.Bundle
	image digest.Digest
}

func readBundle(image digest.Digest, content []byte) (candidate, error) {
	b := &bundle.Bundle{Bundle: &protobundle.Bundle{}}
	if err := protojson.Unmarshal(content, b.Bundle); err != nil {
		return nil, fmt.Errorf("decode bundle: %w", err)
	}
	var options []bundle.Option
	if b.MinVersion("v0.3") && b.GetVerificationMaterial().GetX509CertificateChain() != nil {
		// Of private authorities, whose intermediates help to find the way to a trusted root.
		options = append(options, bundle.AllowCertificateChain())
	}
	b, err := bundle.NewBundle(b.Bundle, options...)
	if err != nil {
		return nil, err
	}
	return &sigstoreBundle{Bundle: b, image: image}, nil
}

// overManifest is so of message signatures, whose hash may be of another algorithm than the image's digest.
func (b *sigstoreBundle) overManifest() bool { return b.GetMessageSignature() != nil }

func (b *sigstoreBundle) entity(id *identity, manifest []byte) (verify.SignedEntity, verify.ArtifactPolicyOption, error) {
	if !id.keyed && b.VerificationMaterial.GetPublicKey() != nil {
		return nil, nil, errNoCertificate
	}
	if b.overManifest() {
		return b.Bundle, verify.WithArtifact(bytes.NewReader(manifest)), nil
	}
	sum, err := hex.DecodeString(b.image.Encoded())
	return b.Bundle, verify.WithArtifactDigest(b.image.Algorithm().String(), sum), err
}

func (b *sigstoreBundle) accept(r *verify.VerificationResult) error {
	if b.overManifest() {
		return nil
	}
	if r.Statement == nil {
		return errors.New("it has no statement")
	}
	if got := r.Statement.GetPredicateType(); got != signPredicate {
		return fmt.Errorf("it is a statement of type %q, not a signature, %q", got, signPredicate)
	}
	return nil
}
