package trust_test

import (
	"testing"

	"github.com/sigstore/sigstore-go/pkg/testing/data"

	"criserver/pkg/imagesvc/trust"
)

// Sigstore's public deployment, with all that it requires: a certificate of Fulcio with its SCT, and an entry in Rekor.
// What was signed is no image but its provenance says the same of it in the same way, so that it is refused for nothing
// but that: being no signature.
func TestPublicDeployment(t *testing.T) {
	const (
		workflow = "https://github.com/sigstore/sigstore-js/.github/workflows/release.yml@refs/heads/main"
		what     = "sha512:46d4e2f74c4877316640000a6fdf8a8b59f1e0847667973e9859f774dd31b8f1e0937813b777fb66a2ac67d50540fe34640966eee9fc2ccca387082b4c85cd3c"
	)
	public, err := data.TrustedRoot(t, "public-good.json").MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	signed, err := data.Bundle(t, "sigstore.js@2.0.0-provenance.sigstore.json").MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	scope := trust.Scope{
		Require: trust.Signed, Keyless: []trust.Keyless{{Identity: workflow, Issuer: someIssuer}},
		TrustedRoot: writeFile(t, "trusted_root.json", public),
	}
	m, _ := newMemory(t)
	m.addNew(t, what, signed)
	wantRejected(t, newPolicy(t, scope), what, m, `it is a statement of type "https://slsa.dev/provenance/v1", not a signature`)
	scope.Keyless[0].Issuer = "https://accounts.example"
	wantRejected(t, newPolicy(t, scope), what, m, "expected issuer value")
	scope.Keyless[0].Issuer = someIssuer
	m.referrers[0].Annotations = map[string]string{"dev.sigstore.bundle.predicateType": "https://slsa.dev/provenance/v1"}
	wantRejected(t, newPolicy(t, scope), what, m, "no signature was found")
	scope.TrustedRoot = newDeployment(t).root(t)
	m.referrers[0].Annotations = nil
	wantRejected(t, newPolicy(t, scope), what, m, "not enough verified log entries")
}
