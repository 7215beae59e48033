package trust_test

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/trust"
)

func BenchmarkCheck(b *testing.B) {
	s, d := newSigner(b, "ecdsa"), newDeployment(b)
	keyed, keyless := signedBy(s.file(b)), keylessBy(d.root(b), someoneKeyless)
	for _, tag := range []bool{true, false} {
		form := map[bool]string{true: "tag", false: "statement"}[tag]
		m, image := newMemory(b)
		if tag {
			m.addOld(b, image, s.old(b, m, image), d.old(b, m, image))
		} else {
			m.addNew(b, image, s.statement(b, statementOf(image, signType)))
			m.addNew(b, image, mustBundle(b, d.statement(b, statementOf(image, signType), false)))
		}
		for name, p := range map[string]func(*testing.B){
			"key":     func(b *testing.B) { check(b, m, image, keyed) },
			"keyless": func(b *testing.B) { check(b, m, image, keyless) },
		} {
			b.Run(name+"/"+form, p)
		}
	}
}

func check(b *testing.B, m *memory, image digest.Digest, scope trust.Scope) {
	b.Helper()
	p := newPolicy(b, scope)
	b.ReportAllocs()
	for b.Loop() {
		if err := p.Check(b.Context(), repository, image, m); err != nil {
			b.Fatal(err)
		}
	}
}
