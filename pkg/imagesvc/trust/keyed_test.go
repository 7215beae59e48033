package trust_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/trust"
)

func newPolicy(t testing.TB, scopes ...trust.Scope) *trust.Policy {
	t.Helper()
	p, err := trust.New(trust.Config{Scopes: scopes})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func signedBy(keys ...string) trust.Scope {
	return trust.Scope{Name: "quay.io/org", Require: trust.Signed, Keys: keys}
}

func wantAccepted(t testing.TB, p *trust.Policy, d digest.Digest, src trust.Source) {
	t.Helper()
	if err := p.Check(t.Context(), repository, d, src); err != nil {
		t.Error(err)
	}
}

// wantRejected wants all texts in the error.
func wantRejected(t testing.TB, p *trust.Policy, d digest.Digest, src trust.Source, texts ...string) {
	t.Helper()
	err := p.Check(t.Context(), repository, d, src)
	if !errors.Is(err, trust.ErrRejected) {
		t.Fatalf("got %v, want it rejected", err)
	}
	for _, text := range append(texts, d.String(), repository) {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("no %q in: %v", text, err)
		}
	}
}

var keyKinds = []string{"ecdsa", "ecdsa p384", "ecdsa p384 sha256", "rsa", "ed25519"}

func TestKeyAccepts(t *testing.T) {
	for _, kind := range keyKinds {
		t.Run(kind, func(t *testing.T) {
			s := newSigner(t, kind)
			p := newPolicy(t, signedBy(newSigner(t, "ecdsa").file(t), s.file(t)))
			t.Run("tag", func(t *testing.T) {
				m, d := newMemory(t)
				m.addOld(t, d, newSigner(t, kind).old(t, m, d), s.old(t, m, d))
				wantAccepted(t, p, d, m)
			})
			t.Run("old form as a referrer", func(t *testing.T) {
				m, d := newMemory(t)
				m.addReferrer(t, d, "application/vnd.dev.cosign.artifact.sig.v1+json", s.old(t, m, d))
				wantAccepted(t, p, d, m)
			})
			t.Run("statement", func(t *testing.T) {
				m, d := newMemory(t)
				m.addNew(t, d, newSigner(t, kind).statement(t, statementOf(d, signType)))
				m.addNew(t, d, s.statement(t, statementOf(d, signType)))
				wantAccepted(t, p, d, m)
			})
			t.Run("message", func(t *testing.T) {
				m, d := newMemory(t)
				m.addNew(t, d, s.message(t, m.manifests[d]))
				wantAccepted(t, p, d, m)
			})
		})
	}
}

// A registry without referrers has the type of the empty configuration in the list that cosign keeps.
func TestReferrerWithTheTypeOfItsConfiguration(t *testing.T) {
	s := newSigner(t, "ecdsa")
	m, d := newMemory(t)
	m.addNew(t, d, s.statement(t, statementOf(d, signType))).ArtifactType = ocispec.MediaTypeEmptyJSON
	wantAccepted(t, newPolicy(t, signedBy(s.file(t))), d, m)
}

func TestKeyRejects(t *testing.T) {
	s := newSigner(t, "ecdsa")
	other := digest.FromString("another image")
	for name, c := range map[string]struct {
		arrange func(t *testing.T, m *memory, d digest.Digest)
		texts   []string
	}{
		"unsigned": {func(*testing.T, *memory, digest.Digest) {}, []string{"no signature was found", `scope "quay.io/org" requires a signature by key "`}},
		"wrong key": {func(t *testing.T, m *memory, d digest.Digest) {
			m.addOld(t, d, newSigner(t, "ecdsa").old(t, m, d))
		}, []string{"1 signature was found and does not count", "not of this key and content", "signature 1 of the .sig tag is not by key"}},
		"wrong key of another kind": {func(t *testing.T, m *memory, d digest.Digest) {
			m.addOld(t, d, newSigner(t, "ed25519").old(t, m, d))
		}, []string{"not of this key and content"}},
		"wrong key, statement": {func(t *testing.T, m *memory, d digest.Digest) {
			m.addNew(t, d, newSigner(t, "ecdsa").statement(t, statementOf(d, signType)))
		}, []string{"1 signature was found and does not count", "referrer"}},
		"for another digest": {func(t *testing.T, m *memory, d digest.Digest) {
			m.addOld(t, d, s.old(t, m, other))
		}, []string{"for another image", other.String()}},
		"for another digest, statement": {func(t *testing.T, m *memory, d digest.Digest) {
			m.addNew(t, d, s.statement(t, statementOf(other, signType)))
		}, []string{"does not match any digest in statement"}},
		"for another manifest, message": {func(t *testing.T, m *memory, d digest.Digest) {
			m.addNew(t, d, s.message(t, []byte("another manifest")))
		}, []string{"not of this key and content"}},
		"tampered payload": {func(t *testing.T, m *memory, d digest.Digest) {
			sig := s.sign(t, payloadOf(other))
			m.addOld(t, d, m.addBlob(simpleSigningType, payloadOf(d), annotations(sig)))
		}, []string{"not of this key and content"}},
		"tampered statement": {func(t *testing.T, m *memory, d digest.Digest) {
			b := s.statementBundle(t, statementOf(other, signType))
			b.GetDsseEnvelope().Payload = statementOf(d, signType)
			m.addNew(t, d, mustBundle(t, b))
		}, []string{"could not verify envelope"}},
		"attestation of something else": {func(t *testing.T, m *memory, d digest.Digest) {
			m.addNew(t, d, s.statement(t, statementOf(d, "https://cosign.sigstore.dev/attestation/vuln/v1")))
		}, []string{"vuln/v1", "not a signature"}},
		"payload of another type": {func(t *testing.T, m *memory, d digest.Digest) {
			content := []byte(strings.Replace(string(payloadOf(d)), "cosign container image signature", "scan result", 1))
			m.addOld(t, d, m.addBlob(simpleSigningType, content, annotations(s.sign(t, content))))
		}, []string{`payload is a "scan result"`}},
		"signature of another format": {func(t *testing.T, m *memory, d digest.Digest) {
			m.addOld(t, d, m.addBlob(simpleSigningType, payloadOf(d), map[string]string{"dev.cosignproject.cosign/signature": "§"}))
		}, []string{"dev.cosignproject.cosign/signature", "base64"}},
		"no signature annotation": {func(t *testing.T, m *memory, d digest.Digest) {
			m.addOld(t, d, m.addBlob(simpleSigningType, payloadOf(d), nil))
		}, []string{"annotation dev.cosignproject.cosign/signature is missing"}},
		"malformed payload": {func(t *testing.T, m *memory, d digest.Digest) {
			m.addOld(t, d, m.addBlob(simpleSigningType, []byte("{"), annotations([]byte("sig"))))
		}, []string{"decode payload"}},
		"malformed manifest": {func(_ *testing.T, m *memory, d digest.Digest) {
			m.tags[sigTag(d)] = []byte("<html>")
		}, []string{"the .sig tag: decode manifest"}},
		"malformed bundle": {func(t *testing.T, m *memory, d digest.Digest) {
			m.addNew(t, d, []byte(`{"mediaType":"`+bundleType+`"}`))
		}, []string{"missing bundle content"}},
		"malformed digest": {func(t *testing.T, m *memory, d digest.Digest) {
			m.addOld(t, d, ocispec.Descriptor{MediaType: simpleSigningType, Digest: "sha256:../../etc/passwd", Size: 4})
		}, []string{"invalid checksum digest"}},
		"oversized payload": {func(t *testing.T, m *memory, d digest.Digest) {
			layer := s.old(t, m, d)
			layer.Size = 1<<20 + 1
			m.addOld(t, d, layer)
		}, []string{"1048577 bytes, at most 1048576"}},
		"negative size": {func(t *testing.T, m *memory, d digest.Digest) {
			layer := s.old(t, m, d)
			layer.Size = -1
			m.addOld(t, d, layer)
		}, []string{"-1 bytes"}},
		"oversized manifest": {func(_ *testing.T, m *memory, d digest.Digest) {
			m.tags[sigTag(d)] = make([]byte, 4<<20+1)
		}, []string{"4194305 bytes, at most 4194304"}},
		"oversized referrer": {func(t *testing.T, m *memory, d digest.Digest) {
			m.addNew(t, d, s.statement(t, statementOf(d, signType))).Size = 4<<20 + 1
		}, []string{"4194305 bytes, at most 4194304"}},
		"behind too many others": {func(t *testing.T, m *memory, d digest.Digest) {
			bad := newSigner(t, "ecdsa")
			for range 64 {
				m.addOld(t, d, bad.old(t, m, d))
			}
			m.addOld(t, d, s.old(t, m, d))
		}, []string{"65 signatures were found and none counts of the first 64", "and 56 more reasons"}},
	} {
		t.Run(name, func(t *testing.T) {
			m, d := newMemory(t)
			c.arrange(t, m, d)
			wantRejected(t, newPolicy(t, signedBy(s.file(t))), d, m, c.texts...)
		})
	}
}

func TestKeyWantsLog(t *testing.T) {
	d, s := newDeployment(t), newSigner(t, "ecdsa")

	scope := trust.Scope{Name: "", Require: trust.Signed, Keys: []string{s.file(t)}, TrustedRoot: d.root(t), TransparencyLog: &yes}
	p := newPolicy(t, scope)
	m, image := newMemory(t)
	content := payloadOf(image)
	sig := s.sign(t, content)
	layer := func(e string) ocispec.Descriptor {
		a := annotations(sig)
		a["dev.sigstore.cosign/bundle"] = e
		return m.addBlob(simpleSigningType, content, a)
	}

	m.addOld(t, image, layer(""))
	wantRejected(t, p, image, m, "not in a transparency log")
	m.addOld(t, image, layer(promiseOf(t, newDeployment(t).logged(t, content, sig, s.pem(t)))))
	wantRejected(t, p, image, m, "not enough verified log entries")
	m.addOld(t, image, layer(promiseOf(t, d.logged(t, content, s.sign(t, content), s.pem(t)))))
	wantRejected(t, p, image, m, "signature does not match")
	for _, broken := range []string{"{", `{"Payload":{"logID":"zz"}}`, `{"Payload":{"body":"e30=","logID":"00"}}`, `{"Payload":{"body":"","logID":""}}`} {
		m.addOld(t, image, layer(broken))
	}
	wantRejected(t, p, image, m, "7 signatures")
	m.addOld(t, image, layer(promiseOf(t, d.logged(t, content, sig, s.pem(t)))))
	wantAccepted(t, p, image, m)
}

func TestErrorsOfTheRegistry(t *testing.T) {
	s := newSigner(t, "ecdsa")
	p := newPolicy(t, signedBy(s.file(t)))
	for _, what := range []string{"tag", "referrers", "manifest", "blob"} {
		t.Run(what, func(t *testing.T) {
			m, d := newMemory(t)
			m.addOld(t, d, newSigner(t, "ecdsa").old(t, m, d))
			m.addNew(t, d, newSigner(t, "ecdsa").statement(t, statementOf(d, signType)))
			m.fail = func(now string) error {
				if now == what {
					return fmt.Errorf("registry: %w", errGone)
				}
				return nil
			}
			err := p.Check(t.Context(), repository, d, m)
			if !errors.Is(err, errGone) || errors.Is(err, trust.ErrRejected) {
				t.Errorf("got %v, want the registry's error", err)
			}
			if what == "blob" {
				return // nothing can be good
			}
			m.addOld(t, d, s.old(t, m, d))
			m.addNew(t, d, s.statement(t, statementOf(d, signType)))
			wantAccepted(t, p, d, m)
		})
	}
	t.Run("the manifest is another", func(t *testing.T) {
		m, d := newMemory(t)
		m.addNew(t, d, s.message(t, []byte("evil")))
		m.manifests[d] = []byte("evil")
		if err := p.Check(t.Context(), repository, d, m); err == nil || errors.Is(err, trust.ErrRejected) {
			t.Errorf("got %v", err)
		}
	})
}

func TestRegistryThatIsDownIsNotAskedForAll(t *testing.T) {
	s := newSigner(t, "ecdsa")
	m, d := newMemory(t)
	for range 20 {
		m.addOld(t, d, s.old(t, m, d))
		m.addNew(t, d, s.statement(t, statementOf(d, signType)))
	}
	m.fail = func(now string) error {
		if now == "blob" {
			return errGone
		}
		return nil
	}
	err := newPolicy(t, signedBy(s.file(t))).Check(t.Context(), repository, d, m)
	if !errors.Is(err, errGone) || m.fetched > 6 || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v after %d fetches", err, m.fetched)
	}

	ctx, cancel := context.WithCancel(t.Context())
	m.fetched = 0
	m.fail = func(now string) error {
		if now == "blob" {
			cancel()
			return ctx.Err()
		}
		return nil
	}
	err = newPolicy(t, signedBy(s.file(t))).Check(ctx, repository, d, m)
	if !errors.Is(err, context.Canceled) || m.fetched > 3 {
		t.Errorf("got %v after %d fetches", err, m.fetched)
	}
	m.fail = nil // a source that does not look at ctx
	err = newPolicy(t, signedBy(newSigner(t, "ecdsa").file(t))).Check(ctx, repository, d, m)
	if !errors.Is(err, context.Canceled) || errors.Is(err, trust.ErrRejected) {
		t.Errorf("got %v", err)
	}
}

func TestTextIsOneLine(t *testing.T) {
	s := newSigner(t, "ecdsa")
	m, d := newMemory(t)
	evil := strings.Repeat("a\x1b[2J\n\u202e", 1000)
	content := []byte(strings.Replace(string(payloadOf(d)), d.String(), base64.StdEncoding.EncodeToString([]byte(evil)), 1))
	m.addOld(t, d, m.addBlob(simpleSigningType, content, nil))
	m.addReferrer(t, d, bundleType, ocispec.Descriptor{MediaType: bundleType, Digest: digest.Digest(evil)})
	err := newPolicy(t, signedBy(s.file(t))).Check(t.Context(), repository, d, m)
	if err == nil || len(err.Error()) > 3000 || strings.ContainsAny(err.Error(), "\n\x1b\u202e") {
		t.Errorf("got %d bytes: %q", len(fmt.Sprint(err)), err)
	}
}
