package trust

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/distribution/reference"

	"criserver/pkg/imagesvc/opfile"
)

// DefaultScope is another name of "", the scope of all images.
const DefaultScope = "_default"

// scope is a Scope with what its files say.
type scope struct {
	Scope
	// name is Name, but "" for the default.
	name string
	// current is replaced when a file has changed.
	current atomic.Pointer[loaded]
}

// loaded is what the files of a scope said when they had these stamps.
type loaded struct {
	stamps     []opfile.Stamp
	identities []*identity
}

func newScope(c Scope) (*scope, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := &scope{Scope: c, name: c.Name}
	if s.name == DefaultScope {
		s.name = ""
	}
	_, err := s.identities()
	return s, err
}

// String is the name in quotes.
func (s *scope) String() string { return quoted(s.name) }

func quoted(name string) string {
	if name == "" {
		name = DefaultScope
	}
	return strconv.Quote(name)
}

// Validate checks all but the files.
func (c Scope) Validate() error {
	if err := CheckName(c.Name); err != nil {
		return err
	}
	identities := len(c.Keys) + len(c.Keyless)
	switch c.Require {
	case Accept, Reject:
		if identities > 0 {
			return fmt.Errorf("it has identities, but requirement %q, which does not look at signatures", c.Require)
		}
	case Signed:
		if identities == 0 {
			return errors.New("signatures are required, but by nobody: name a key or a keyless identity")
		}
	default:
		return fmt.Errorf("requirement %q is not one of %s, %s, %s", c.Require, Accept, Reject, Signed)
	}
	if c.TrustedRoot == "" && (len(c.Keyless) > 0 || c.TimestampAuthority || c.TransparencyLog != nil && *c.TransparencyLog) {
		return errors.New("keyless identities, logs and timestamps need a trusted root")
	}
	for _, k := range c.Keyless {
		if err := k.validate(); err != nil {
			return err
		}
	}
	return nil
}

func (k Keyless) validate() error {
	if (k.Identity == "") == (k.IdentityRegexp == "") {
		return errors.New("a keyless identity needs either an identity or a regular expression for it")
	}
	if (k.Issuer == "") == (k.IssuerRegexp == "") {
		return errors.New("a keyless identity needs either an issuer or a regular expression for it")
	}
	for _, re := range []string{k.IdentityRegexp, k.IssuerRegexp} {
		if _, err := regexp.Compile(re); err != nil {
			return err
		}
	}
	return nil
}

// CheckName says why no image could be in a scope of this name: a scope that is never found would let all through.
func CheckName(name string) error {
	if name == "" || name == DefaultScope {
		return nil
	}
	host, path, hasPath := strings.Cut(name, "/")
	if !strings.ContainsAny(host, ".:") && host != "localhost" {
		return fmt.Errorf("%q does not begin with a registry's host: Docker Hub's is docker.io, and its nginx is docker.io/library/nginx", name)
	}
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		return fmt.Errorf("%q: images of Docker Hub are known as docker.io", name)
	}
	full := name
	if !hasPath {
		full += "/any"
	}
	named, err := reference.WithName(full)
	if err != nil || reference.Domain(named) != host || hasPath && reference.Path(named) != path {
		return fmt.Errorf("%q is not a registry, or the beginning of a repository's name, such as quay.io/org", name)
	}
	return nil
}

// identities returns those of the files as they are now.
func (s *scope) identities() ([]*identity, error) {
	if s.Require != Signed {
		return nil, nil
	}
	// Before the files are read: what changes while they are is seen the next time.
	stamps := s.stamps()
	if now := s.current.Load(); now != nil && slices.Equal(now.stamps, stamps) {
		return now.identities, nil
	}
	identities, err := load(s.Scope)
	if err != nil {
		return nil, err // which is not kept: it may have been the disk's, not the file's
	}
	s.current.Store(&loaded{stamps: stamps, identities: identities})
	return identities, nil
}

func (s *scope) stamps() []opfile.Stamp {
	var stamps []opfile.Stamp
	for _, file := range append(slices.Clone(s.Keys), s.TrustedRoot) {
		stamp, _ := opfile.StampOf(file) // of a file that is not there, reading it tells
		stamps = append(stamps, stamp)
	}
	return stamps
}
