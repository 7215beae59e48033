package registry

import "criserver/pkg/imagesvc/registry/names"

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

// ParseNames is names.ParseAll.
func ParseNames(s string, rules ShortNames) ([]Reference, error) { return names.ParseAll(s, rules) }

// Names is ParseNames by the client's configuration.
func (c *Client) Names(s string) ([]Reference, error) { return ParseNames(s, c.config.ShortNames) }

// Tagged is names.ParseTagged by the client's configuration.
func (c *Client) Tagged(s, done string) (Reference, error) {
	return names.ParseTagged(s, done, c.config.ShortNames)
}

// AuthFor is the credential that came with a name. One without an address is for what the kubelet took the name for, and of
// short names it knows docker's meaning only: no other registry sees it.
func AuthFor(name string, a Auth) Auth {
	if a.ServerAddress == "" && names.IsShort(name) && a != (Auth{}) {
		a.ServerAddress = "docker.io"
	}
	return a
}
