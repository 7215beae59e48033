package registry

import (
	"fmt"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Reference names an image in a registry. Tag or Digest is set, or both; then the digest counts.
type Reference struct {
	// Host is the registry's, such as "docker.io" or "127.0.0.1:5000".
	Host string
	// Repository is the path without the host, such as "library/busybox".
	Repository string
	Tag        string
	Digest     digest.Digest
}

// Parse reads a reference as people write it: "busybox" is docker.io/library/busybox:latest. ErrInvalid: it is none.
func Parse(s string) (Reference, error) {
	named, err := reference.ParseDockerRef(s)
	if err != nil {
		return Reference{}, fmt.Errorf("%w %q: %w", ErrInvalid, s, err)
	}
	r := Reference{Host: reference.Domain(named), Repository: reference.Path(named)}
	if d, ok := named.(reference.Digested); ok {
		r.Digest = d.Digest()
	}
	// ParseDockerRef drops the tag beside a digest; it is kept to name the image in lists.
	if full, err := reference.ParseNormalizedNamed(s); err == nil {
		if t, ok := full.(reference.Tagged); ok {
			r.Tag = t.Tag()
		}
	}
	if r.Tag == "" && r.Digest == "" {
		r.Tag = "latest"
	}
	return r, nil
}

// Name is the host and repository.
func (r Reference) Name() string { return r.Host + "/" + r.Repository }

// Tagged is the name with its tag, "" if there is none.
func (r Reference) Tagged() string {
	if r.Tag == "" {
		return ""
	}
	return r.Name() + ":" + r.Tag
}

// String is the whole reference.
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest.String()
	}
	return s
}

// target is what to ask a registry for.
func (r Reference) target() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}
