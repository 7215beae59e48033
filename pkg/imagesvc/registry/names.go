package registry

import (
	"fmt"

	"criserver/pkg/imagesvc/registry/names"
)

// What callers see of package names.
type (
	Reference  = names.Reference
	ShortNames = names.ShortNames
)

// Modes of ShortNames, see package names.
const (
	ShortDocker = names.ShortDocker
	ShortRefuse = names.ShortRefuse
	ShortSearch = names.ShortSearch
)

// Parse is the function of package names.
func Parse(s string) (Reference, error) { return names.Parse(s) }

// ParseTagged is Parse for a name that an image is given, which must have a tag; what is done with the image is for the error.
func ParseTagged(s, done string) (Reference, error) {
	ref, err := Parse(s)
	if err == nil && ref.Tag() == "" {
		err = fmt.Errorf("name %q: %w: a tag is needed, the digest comes of what is %s", s, ErrInvalid, done)
	}
	return ref, err
}

// ParseNames is names.ParseAll.
func ParseNames(s string, rules ShortNames) ([]Reference, error) { return names.ParseAll(s, rules) }

// Names is ParseNames by the client's configuration.
func (c *Client) Names(s string) ([]Reference, error) { return ParseNames(s, c.config.ShortNames) }

// AuthFor is the credential that came with a name. One without an address is for what the kubelet took the name for, and of
// short names it knows docker's meaning only: no other registry sees it.
func AuthFor(name string, a Auth) Auth {
	if a.ServerAddress == "" && names.IsShort(name) && a != (Auth{}) {
		a.ServerAddress = "docker.io"
	}
	return a
}
