package config

import (
	"bytes"
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"criserver/pkg/imagesvc/trust"
)

const trustFile = `
[[trust.policy]]
scope = "_default"
require = "reject"

[[trust.policy]]
scope = "quay.io/org"
require = "signed"
keys = ["/etc/criserver/org.pub"]
trusted_root = "/etc/criserver/trusted_root.json"
transparency_log = true
timestamp_authority = true
sct = false
keyless = [{identity_regexp = "https://github\\.com/org/.*", issuer = "https://idp.example"}]

[[trust.policy]]
scope = "ghcr.io"
require = "signed"
trusted_root = "/etc/criserver/trusted_root.json"

[[trust.policy.keyless]]
identity = "dev@example.com"
issuer_regexp = "https://.*\\.example"
`

func TestTrust(t *testing.T) {
	c, err := Load(write(t, map[string]string{"config.toml": trustFile}), true)
	if err != nil {
		t.Fatal(err)
	}
	yes, no := true, false
	want := trust.Config{Scopes: []trust.Scope{
		{Name: "_default", Require: trust.Reject},
		{
			Name: "quay.io/org", Require: trust.Signed, Keys: []string{"/etc/criserver/org.pub"},
			Keyless:     []trust.Keyless{{IdentityRegexp: `https://github\.com/org/.*`, Issuer: "https://idp.example"}},
			TrustedRoot: "/etc/criserver/trusted_root.json", TransparencyLog: &yes, TimestampAuthority: true, SCT: &no,
		},
		{
			Name: "ghcr.io", Require: trust.Signed, TrustedRoot: "/etc/criserver/trusted_root.json",
			Keyless: []trust.Keyless{{Identity: "dev@example.com", IssuerRegexp: `https://.*\.example`}},
		},
	}}
	if got := c.Trust.Config(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	var b bytes.Buffer
	if err := c.WriteTOML(&b); err != nil {
		t.Fatal(err)
	}
	again, err := Load(write(t, map[string]string{"config.toml": b.String()}), true)
	if err != nil {
		t.Fatalf("%v in\n%s", err, &b)
	}
	if !reflect.DeepEqual(again.Trust, c.Trust) {
		t.Errorf("got %+v from\n%s", again.Trust, &b)
	}
}

func TestTrustOfTheDefaultIsNone(t *testing.T) {
	if got := Default().Trust.Config(); len(got.Scopes) > 0 {
		t.Errorf("got %+v", got)
	}
}

// The example in the sample file is one.
func TestTrustExample(t *testing.T) {
	f, _ := reflect.TypeFor[Config]().FieldByName("Trust")
	_, example, found := strings.Cut(f.Tag.Get("comment"), "\n")
	if !found {
		t.Fatal("there is none")
	}
	c, err := Load(write(t, map[string]string{"config.toml": example}), true)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Trust.Policies) != 1 || c.Trust.Policies[0].SCT == nil || len(c.Trust.Policies[0].Keyless) != 1 {
		t.Errorf("got %+v", c.Trust)
	}
}

// Without the policy that it speaks of in the middle, so that numbers count.
func TestTrustProblems(t *testing.T) {
	const before, after = "[[trust.policy]]\nscope = \"a.example\"\nrequire = \"accept\"\n", "\n[[trust.policy]]\nscope = \"z.example\"\nrequire = \"accept\"\n"
	for policy, want := range map[string]string{
		"scope = \"x.example\"":                                                                                                     ":4: trust.policy.1.require: \"\" is not one of accept, reject, signed",
		"scope = \"x.example\"\nrequire = \"sign\"":                                                                                 ":6: trust.policy.1.require: \"sign\" is not one of",
		"scope = \"nginx\"\nrequire = \"reject\"":                                                                                   ":5: trust.policy.1.scope: \"nginx\" does not begin with a registry's host",
		"require = \"reject\"\nscope = \"a.example\"":                                                                               ":6: trust.policy.1.scope: there is another policy of scope \"a.example\"",
		"scope = \"x.example\"\nrequire = \"signed\"":                                                                               ":4: trust.policy.1: signatures are required, but by nobody",
		"scope = \"x.example\"\nrequire = \"accept\"\nkeys = [\"/k\"]":                                                              ":4: trust.policy.1: it has identities, but requirement \"accept\"",
		"scope = \"x.example\"\nrequire = \"signed\"\nkeys = [\"k\"]":                                                               ":7: trust.policy.1.keys: \"k\" is not an absolute path",
		"scope = \"x.example\"\nrequire = \"signed\"\nkeys = [\"/k\"]\ntrusted_root=\"r\"":                                          ":8: trust.policy.1.trusted_root: \"r\" is not an absolute path",
		"scope = \"x.example\"\nrequire = \"signed\"\nkeyless = [{identity = \"i\", issuer = \"i\"}]":                               ":4: trust.policy.1: keyless identities, logs and timestamps need a trusted root",
		"scope = \"x.example\"\nrequire = \"signed\"\nkeyless = [{identity = \"i\"}]\ntrusted_root = \"/r\"":                        ":4: trust.policy.1: a keyless identity needs either an issuer",
		"scope = \"x.example\"\nrequire = \"signed\"\nkeyless = [{identity_regexp = \"(\", issuer = \"i\"}]\ntrusted_root = \"/r\"": ":4: trust.policy.1: error parsing regexp",
		"scope = \"x.example\"\nrequire = \"signed\"\ntypo = 1":                                                                     ":7: trust.policy.typo: unknown key",
	} {
		path := write(t, map[string]string{"config.toml": before + "[[trust.policy]]\n" + policy + after})
		_, err := Load(path, true)
		if err == nil || !strings.Contains(err.Error(), path+want) {
			t.Errorf("of\n%s\ngot %v, want %s", policy, err, want)
		}
	}
}

func TestTrustProblemIsInTheLastFile(t *testing.T) {
	path := write(t, map[string]string{
		"config.toml":         trustFile,
		"config.d/10-my.toml": "[[trust.policy]]\nscope = \"quay.io\"\nrequire = \"signed\"\n",
	})
	_, err := Load(path, true)
	var p *Problem
	if !errors.As(err, &p) || filepath.Base(p.File) != "10-my.toml" || p.Line != 1 || p.Key != "trust.policy.0" {
		t.Errorf("got %v", err)
	}
}
