package names

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
)

// Modes of ShortNames.
const (
	// ShortDocker completes short names as docker does: "busybox" is "docker.io/library/busybox". "" is the same.
	ShortDocker = "docker"
	// ShortRefuse takes full names only.
	ShortRefuse = "refuse"
	// ShortSearch looks in a list of registries.
	ShortSearch = "search"
)

// ShortNames says what names stand for that do not begin with a registry, such as "busybox" or "team/app".
type ShortNames struct {
	Mode string
	// Search are registries, or repositories' beginnings in them ("registry.example/library"), in the order in which they
	// are tried.
	Search []string
	// Aliases are full names without tag by short name, whatever the mode.
	Aliases map[string]string
}

// Check says what is wrong with the rules. ErrInvalid.
func (s ShortNames) Check() error {
	switch s.Mode {
	case "", ShortDocker, ShortRefuse:
	case ShortSearch:
		if len(s.Search) == 0 {
			return fmt.Errorf("short names: %w: there is no registry to search", ErrInvalid)
		}
	default:
		return fmt.Errorf("short names: %w: mode %q", ErrInvalid, s.Mode)
	}
	for _, registry := range s.Search {
		if err := CheckSearch(registry); err != nil {
			return fmt.Errorf("short names: %w", err)
		}
	}
	for short, full := range s.Aliases {
		if err := CheckAlias(short, full); err != nil {
			return fmt.Errorf("short names: %w", err)
		}
	}
	return nil
}

// CheckSearch tells whether a registry can be searched. ErrInvalid.
func CheckSearch(registry string) error {
	if IsShort(registry + "/x") {
		return fmt.Errorf("%q: %w: not a registry's host, such as \"registry.example\"", registry, ErrInvalid)
	}
	_, err := Parse(registry + "/x")
	return err
}

// CheckAlias tells whether a short name can stand for a full one. ErrInvalid.
func CheckAlias(short, full string) error {
	if named, err := reference.ParseNormalizedNamed(short); err != nil || !IsShort(short) || !reference.IsNameOnly(named) {
		return fmt.Errorf("alias %q: %w: not a short name without a tag", short, ErrInvalid)
	}
	if named, err := reference.ParseNormalizedNamed(full); err != nil || IsShort(full) || !reference.IsNameOnly(named) {
		return fmt.Errorf("alias %q: %w: %q is not a name with a registry and without a tag", short, ErrInvalid, full)
	}
	return nil
}

// IsShort tells whether the first part of a name is not a registry, as docker tells: "localhost/app" is not short.
func IsShort(name string) bool {
	host, _, ok := strings.Cut(name, "/")
	return !ok || !strings.ContainsAny(host, ".:") && host != "localhost" && host == strings.ToLower(host)
}

// ParseAll returns what a name may stand for, to be tried in that order. Of a full name that is Parse's result.
// ErrInvalid.
func ParseAll(s string, rules ShortNames) ([]Reference, error) {
	plain, err := Parse(s)
	if err != nil || !IsShort(s) {
		return []Reference{plain}, err
	}
	name, _, _ := strings.Cut(s, "@")
	if i := strings.LastIndexByte(name, ':'); i >= 0 {
		name = name[:i]
	}
	rest := s[len(name):]
	if full, ok := rules.Aliases[name]; ok {
		return parseEach(full + rest)
	}
	switch rules.Mode {
	case ShortRefuse:
		return nil, fmt.Errorf("image name %q: %w: short names are refused here, write the whole name with its registry, such as %q",
			s, ErrInvalid, plain.String())
	case ShortSearch:
		var names []string
		for _, registry := range rules.Search {
			names = append(names, registry+"/"+s)
		}
		return parseEach(names...)
	}
	return []Reference{plain}, nil
}

// ParseTagged returns the one name that an image is given by s, which must have a tag. done is what is done with the image, for
// the error. ErrInvalid, also for a short name that may stand for several.
func ParseTagged(s, done string, rules ShortNames) (Reference, error) {
	refs, err := ParseAll(s, rules)
	switch {
	case err != nil:
		return Reference{}, err
	case len(refs) > 1:
		return Reference{}, fmt.Errorf("name %q: %w: it may stand for several, write the whole name with its registry, such as %q",
			s, ErrInvalid, refs[0].String())
	case refs[0].Tag() == "":
		return Reference{}, fmt.Errorf("name %q: %w: a tag is needed, the digest comes of what is %s", s, ErrInvalid, done)
	}
	return refs[0], nil
}

func parseEach(names ...string) ([]Reference, error) {
	var refs []Reference
	for _, name := range names {
		ref, err := Parse(name)
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}
