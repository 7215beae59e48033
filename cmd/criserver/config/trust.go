package config

import (
	"fmt"

	"criserver/pkg/imagesvc/trust"
)

// Trust is which images may be used, by their signatures.
type Trust struct {
	Policies []TrustPolicy `toml:"policy,omitempty" comment:"One for each scope; the longest scope that an image is in counts, alone."`
}

// TrustPolicy is what is required of the images of a scope, see trust.Scope.
type TrustPolicy struct {
	Scope              string         `toml:"scope"`
	Require            string         `toml:"require"`
	Keys               []string       `toml:"keys,omitempty"`
	Keyless            []TrustKeyless `toml:"keyless,omitempty,inline"`
	TrustedRoot        string         `toml:"trusted_root,omitempty"`
	TransparencyLog    *bool          `toml:"transparency_log,omitempty"`
	TimestampAuthority bool           `toml:"timestamp_authority,omitempty"`
	SCT                *bool          `toml:"sct,omitempty"`
}

// TrustKeyless is whom a certificate was given to, see trust.Keyless.
type TrustKeyless struct {
	Identity       string `toml:"identity,omitempty"`
	IdentityRegexp string `toml:"identity_regexp,omitempty"`
	Issuer         string `toml:"issuer,omitempty"`
	IssuerRegexp   string `toml:"issuer_regexp,omitempty"`
}

// Config is what trust.New takes.
func (t Trust) Config() trust.Config {
	var c trust.Config
	for _, p := range t.Policies {
		c.Scopes = append(c.Scopes, p.scope())
	}
	return c
}

func (p TrustPolicy) scope() trust.Scope {
	s := trust.Scope{
		Name: p.Scope, Require: trust.Requirement(p.Require), Keys: p.Keys, TrustedRoot: p.TrustedRoot,
		TransparencyLog: p.TransparencyLog, TimestampAuthority: p.TimestampAuthority, SCT: p.SCT,
	}
	for _, k := range p.Keyless {
		s.Keyless = append(s.Keyless, trust.Keyless(k))
	}
	return s
}

func (v *validator) trust(t Trust) {
	seen := map[string]bool{}
	for i, p := range t.Policies {
		key := fmt.Sprintf("trust.policy.%d", i)
		name := p.Scope
		if name == "" {
			name = trust.DefaultScope
		}
		v.check(!seen[name], key+".scope", "there is another policy of scope %q", name)
		seen[name] = true
		for _, path := range p.Keys {
			v.absolute(key+".keys", path)
		}
		if p.TrustedRoot != "" {
			v.absolute(key+".trusted_root", p.TrustedRoot)
		}
		if err := trust.CheckName(p.Scope); err != nil {
			v.check(false, key+".scope", "%v", err)
			continue
		}
		const accept, reject, signed = string(trust.Accept), string(trust.Reject), string(trust.Signed)
		if p.Require != accept && p.Require != reject && p.Require != signed {
			v.oneOf(key+".require", p.Require, accept, reject, signed)
			continue
		}
		err := p.scope().Validate()
		v.check(err == nil, key, "%v", err)
	}
}
