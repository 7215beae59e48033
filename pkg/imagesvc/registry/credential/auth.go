// Package credential finds who to be at a registry: what the configuration says for its host, docker's configuration files
// with their helper programs, and the credential provider plugins of the kubelet. It sends nothing anywhere; who asks
// decides which host sees what it was given.
//
// No value of the package prints a secret, and none of its errors tells one.
package credential

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"
)

// Auth is a credential in one of the four forms of the CRI's AuthConfig. It is secret.
type Auth struct {
	Username, Password string
	// Auth is base64 of "username:password", used if Username is empty.
	Auth string
	// ServerAddress is the host or URL of the registry that the credential is for; "" is the image's.
	ServerAddress string
	// IdentityToken is an OAuth2 refresh token.
	IdentityToken string
	// RegistryToken is a bearer token to be sent to the registry as it is.
	RegistryToken string
}

// String keeps secrets out of formatted output.
func (a Auth) String() string {
	if a == (Auth{}) {
		return "no credential"
	}
	return "a credential"
}

// Format is String for every verb, %d too.
func (a Auth) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, a.String()) }

// MarshalJSON is String for JSON.
func (a Auth) MarshalJSON() ([]byte, error) { return json.Marshal(a.String()) }

// errForm does not have the decoder's text, which would tell of the secret.
var errForm = errors.New("field auth is not base64 of \"username:password\"")

// Credential decodes the form. source tells people where it comes from.
func (a Auth) Credential(source string) (Credential, error) {
	c := Credential{Source: source, username: a.Username, password: a.Password, refresh: a.IdentityToken, access: a.RegistryToken}
	if c.username != "" || a.Auth == "" {
		return c, nil
	}
	decoded, err := base64.StdEncoding.DecodeString(a.Auth)
	user, password, ok := strings.Cut(string(decoded), ":")
	if err != nil || !ok {
		return Credential{}, errForm
	}
	// Docker's configuration files are known to pad it.
	c.username, c.password = user, strings.Trim(password, "\x00")
	return c, nil
}

// Secrets are the parts that must not appear in any message.
func (a Auth) Secrets() []string {
	return []string{a.Password, a.Auth, a.IdentityToken, a.RegistryToken}
}

// Credential is one way to be let in.
type Credential struct {
	// Source tells people where it comes from: "docker config /root/.docker/config.json".
	Source string

	username, password string
	refresh, access    string
}

// IsZero tells that there is nothing in it.
func (c Credential) IsZero() bool { return c.Value() == auth.EmptyCredential }

// HasPassword tells whether it can be used to ask for a token by OAuth2's password grant.
func (c Credential) HasPassword() bool { return c.username != "" && c.password != "" }

// Value is the credential for the client that sends it. It is secret.
func (c Credential) Value() auth.Credential {
	return auth.Credential{Username: c.username, Password: c.password, RefreshToken: c.refresh, AccessToken: c.access}
}

// Secrets are the parts that must not appear in any message.
func (c Credential) Secrets() []string { return []string{c.password, c.refresh, c.access} }

// String is the source.
func (c Credential) String() string { return "a credential of " + c.Source }

// Format is String for every verb.
func (c Credential) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// MarshalJSON is String for JSON.
func (c Credential) MarshalJSON() ([]byte, error) { return json.Marshal(c.String()) }
