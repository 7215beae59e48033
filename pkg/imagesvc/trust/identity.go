package trust

import (
	"errors"
	"fmt"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"criserver/pkg/imagesvc/opfile"
)

// maxFile bounds what is read of a file that was named by mistake.
const maxFile = 4 << 20

// identity is one who may sign.
type identity struct {
	// name is for people: `key "/etc/criserver/org.pub"`.
	name string
	// keyed: by a key, not by a certificate.
	keyed bool
	// logged: signatures must be in a log.
	logged   bool
	verifier *verify.Verifier
	policy   verify.PolicyOption
}

// load reads the files of a scope.
func load(c Scope) ([]*identity, error) {
	var trusted root.TrustedMaterial = &root.BaseTrustedMaterial{}
	if c.TrustedRoot != "" {
		data, err := opfile.Read(c.TrustedRoot, maxFile)
		if err != nil {
			return nil, fmt.Errorf("read trusted root: %w", err)
		}
		r, err := root.NewTrustedRootFromJSON(data)
		if err != nil {
			return nil, fmt.Errorf("trusted root %s: %w", c.TrustedRoot, err)
		}
		if err := covers(r, c); err != nil {
			return nil, fmt.Errorf("trusted root %s: %w", c.TrustedRoot, err)
		}
		trusted = r
	}
	var all []*identity
	for _, file := range c.Keys {
		id, err := newKeyed(c, file, trusted)
		if err != nil {
			return nil, err
		}
		all = append(all, id)
	}
	for _, k := range c.Keyless {
		id, err := newKeyless(c, k, trusted)
		if err != nil {
			return nil, err
		}
		all = append(all, id)
	}
	return all, nil
}

// covers says what a trusted root lacks for a scope, since every signature would be refused later.
func covers(r *root.TrustedRoot, c Scope) error {
	switch {
	case len(c.Keyless) > 0 && len(r.FulcioCertificateAuthorities()) == 0:
		return errors.New("it has no certificate authority")
	case len(c.Keyless) > 0 && c.wantsSCT() && len(r.CTLogs()) == 0:
		return errors.New("it has no certificate transparency log, and SCTs are required")
	case (len(c.Keyless) > 0 && c.wantsLog(false) || len(c.Keys) > 0 && c.wantsLog(true)) && len(r.RekorLogs()) == 0:
		return errors.New("it has no transparency log, and one is required")
	case c.TimestampAuthority && len(r.TimestampingAuthorities()) == 0:
		return errors.New("it has no timestamp authority, and one is required")
	}
	return nil
}

func (c Scope) wantsLog(keyed bool) bool {
	if c.TransparencyLog == nil {
		return !keyed
	}
	return *c.TransparencyLog
}

func (c Scope) wantsSCT() bool { return c.SCT == nil || *c.SCT }

func newKeyed(c Scope, file string, trusted root.TrustedMaterial) (*identity, error) {
	data, err := opfile.Read(file, maxFile)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	public, err := cryptoutils.UnmarshalPEMToPublicKey(data)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", file, err)
	}
	k, err := newKey(public)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", file, err)
	}
	// Whatever name a signature gives its key, it is tried.
	only := func(string) (root.TimeConstrainedVerifier, error) { return k, nil }
	material := root.TrustedMaterialCollection{trusted, root.NewTrustedPublicKeyMaterial(only)}
	id := &identity{name: fmt.Sprintf("key %q", file), keyed: true, logged: c.wantsLog(true), policy: verify.WithKey()}
	var options []verify.VerifierOption
	if id.logged {
		options = append(options, verify.WithTransparencyLog(1))
	}
	if c.TimestampAuthority {
		options = append(options, verify.WithSignedTimestamps(1))
	} else {
		options = append(options, verify.WithNoObserverTimestamps()) // a key has no end
	}
	id.verifier, err = verify.NewVerifier(material, options...)
	return id, err
}

func newKeyless(c Scope, k Keyless, trusted root.TrustedMaterial) (*identity, error) {
	san, err := verify.NewSANMatcher(k.Identity, whole(k.IdentityRegexp))
	if err != nil {
		return nil, err
	}
	issuer, err := verify.NewIssuerMatcher(k.Issuer, whole(k.IssuerRegexp))
	if err != nil {
		return nil, err
	}
	who, err := verify.NewCertificateIdentity(san, issuer, certificate.Extensions{})
	if err != nil {
		return nil, err
	}
	id := &identity{name: k.String(), logged: c.wantsLog(false), policy: verify.WithCertificateIdentity(who)}
	var options []verify.VerifierOption
	if c.wantsSCT() {
		options = append(options, verify.WithSignedCertificateTimestamps(1))
	}
	if id.logged {
		options = append(options, verify.WithTransparencyLog(1))
	}
	switch {
	case c.TimestampAuthority:
		options = append(options, verify.WithSignedTimestamps(1))
	case id.logged:
		// Entries of the newer logs have no time of their own, and come with an authority's instead.
		options = append(options, verify.WithObserverTimestamps(1))
	default:
		options = append(options, verify.WithCurrentTime())
	}
	id.verifier, err = verify.NewVerifier(trusted, options...)
	return id, err
}

// String is how errors name the identity.
func (k Keyless) String() string {
	who, by := fmt.Sprintf("%q", k.Identity), fmt.Sprintf("%q", k.Issuer)
	if k.Identity == "" {
		who = "matching " + fmt.Sprintf("%q", k.IdentityRegexp)
	}
	if k.Issuer == "" {
		by = "matching " + fmt.Sprintf("%q", k.IssuerRegexp)
	}
	return "identity " + who + " of issuer " + by
}

// whole makes a regular expression match all or nothing. Of "", which is none, it makes none.
func whole(re string) string {
	if re == "" {
		return ""
	}
	return "^(?:" + re + ")$"
}
