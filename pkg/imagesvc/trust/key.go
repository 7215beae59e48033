package trust

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
)

// minRSA is the smallest RSA key in bits that is taken (NIST SP 800-131A).
const minRSA = 2048

// key verifies signatures of a public key in each of the ways that signers have used it, which depend on the signer's age
// and on the form of the signature: larger ECDSA curves with SHA-256 or with the hash of their size, Ed25519 over the
// message or over its hash. It never ends.
type key struct {
	public crypto.PublicKey
	ways   []signature.Verifier
}

func newKey(public crypto.PublicKey) (*key, error) {
	hashes := []crypto.Hash{crypto.SHA256}
	switch k := public.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSA {
			return nil, fmt.Errorf("an RSA key of %d bits is too weak, it needs %d", k.N.BitLen(), minRSA)
		}
	case *ecdsa.PublicKey:
		switch k.Curve.Params().BitSize {
		case 384:
			hashes = append(hashes, crypto.SHA384)
		case 521:
			hashes = append(hashes, crypto.SHA512)
		}
	case ed25519.PublicKey:
		prehashed, err := signature.LoadED25519phVerifier(k)
		if err != nil {
			return nil, err
		}
		pure, err := signature.LoadED25519Verifier(k)
		return &key{public: k, ways: []signature.Verifier{pure, prehashed}}, err
	default:
		return nil, fmt.Errorf("%T is not a key of ECDSA, RSA or Ed25519", public)
	}
	out := &key{public: public}
	for _, h := range hashes {
		v, err := signature.LoadVerifier(public, h)
		if err != nil {
			return nil, err
		}
		out.ways = append(out.ways, v)
	}
	return out, nil
}

// PublicKey implements signature.Verifier.
func (k *key) PublicKey(...signature.PublicKeyOption) (crypto.PublicKey, error) { return k.public, nil }

// VerifySignature implements signature.Verifier.
func (k *key) VerifySignature(sig, message io.Reader, opts ...signature.VerifyOption) error {
	s, err := io.ReadAll(sig)
	if err != nil {
		return err
	}
	m, err := io.ReadAll(message)
	if err != nil {
		return err
	}
	for _, way := range k.ways {
		if way.VerifySignature(bytes.NewReader(s), bytes.NewReader(m), opts...) == nil {
			return nil
		}
	}
	return errors.New("the signature is not of this key and content")
}

// ValidAtTime implements root.TimeConstrainedVerifier.
func (k *key) ValidAtTime(time.Time) bool { return true }
