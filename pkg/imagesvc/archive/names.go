package archive

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/registry/names"
)

// annotationName is where containerd, and after it docker and buildkit, put the full name: that of OCI is for the tag, though
// skopeo and podman put full names there.
const annotationName = "io.containerd.image.name"

var tagForm = regexp.MustCompile("^" + reference.TagRegexp.String() + "$")

// fullName completes a name as docker does.
func fullName(s string) (string, error) {
	ref, err := names.Parse(s)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return ref.String(), nil
}

// namesOf reads the annotations of a descriptor in an index.json.
func namesOf(annotations map[string]string) (full []string, tag string, err error) {
	if name := annotations[annotationName]; name != "" {
		full, err := fullName(name)
		if err != nil {
			return nil, "", err
		}
		return []string{full}, "", nil
	}
	ref := annotations[ocispec.AnnotationRefName]
	if strings.ContainsAny(ref, "/:@") {
		// OCI allows all kinds of things here (image-spec, annotations.md): what is no name names nothing.
		if full, err := fullName(ref); err == nil {
			return []string{full}, "", nil
		}
	}
	if tagForm.MatchString(ref) {
		return nil, ref, nil
	}
	return nil, "", nil
}

// tagOf is what stands for a name in OCI's annotation: the tag, and of a name by digest, as containerd does it, all of it.
func tagOf(name string) string {
	if ref, err := names.Parse(name); err == nil && ref.Tag() != "" {
		return ref.Tag()
	}
	return name
}

// repoTag is a name as docker writes it, "busybox:latest". Docker's archives have no names by digest.
func repoTag(name string) (string, bool) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", false
	}
	_, ok := named.(reference.Tagged)
	return reference.FamiliarString(named), ok
}
