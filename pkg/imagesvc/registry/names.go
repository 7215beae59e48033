package registry

import (
	"context"
	"errors"

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

// ParseNames is names.ParseAll.
func ParseNames(s string, rules ShortNames) ([]Reference, error) { return names.ParseAll(s, rules) }

// Names is ParseNames by the client's configuration.
func (c *Client) Names(s string) ([]Reference, error) { return ParseNames(s, c.config.ShortNames) }

// PassOver tells whether the search for a short name may go on behind a registry from which the pull failed. A registry that is
// out of order, or refuses, or has some of the image only, may be the one that is meant: the next one's image of that name must
// not stand in for its. A digest tells that itself.
func (c *Client) PassOver(ctx context.Context, ref Reference, a Auth, err error) bool {
	if ref.Digest() != "" {
		return errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnauthorized) || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrStalled)
	}
	if !errors.Is(err, ErrNotFound) {
		return false
	}
	// It may be a layer that was not found.
	repo, err := c.Repository(ref, a)
	if err == nil {
		_, err = repo.Digest(ctx)
	}
	return errors.Is(err, ErrNotFound)
}

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
