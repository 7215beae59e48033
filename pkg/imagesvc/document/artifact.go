package document

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FileID names the layer of one file of an artifact: two artifacts that have the same file under the same name share it.
func FileID(name string, blob digest.Digest) digest.Digest {
	return digest.FromString("criserver artifact file\n" + name + "\n" + blob.String())
}

// maxFileName bounds the length of a file's path in an artifact.
const maxFileName = 1024

// nameFiles gives each layer of an artifact the file name that it is mounted under: its title (image-spec, annotations.md),
// or the hexadecimal digits of its digest.
func (img *Image) nameFiles() error {
	seen := map[string]bool{}
	for _, l := range img.Parsed.Layers {
		name := l.Annotations[ocispec.AnnotationTitle]
		if name == "" {
			name = l.Digest.Encoded()
		}
		clean := filepath.Clean(name)
		if !filepath.IsLocal(clean) || clean == "." || len(clean) > maxFileName || strings.ContainsRune(clean, 0) {
			return fmt.Errorf("%w: title %q of %s is no path of a file", ErrInvalid, name, l.Digest)
		}
		for _, part := range strings.Split(clean, "/") {
			if strings.HasPrefix(part, ".wh.") {
				return fmt.Errorf("%w: title %q of %s has the form of a whiteout", ErrInvalid, name, l.Digest)
			}
		}
		if seen[clean] {
			return fmt.Errorf("%w: two files have the title %q", ErrInvalid, name)
		}
		seen[clean] = true
		img.Files = append(img.Files, clean)
		img.Layers = append(img.Layers, FileID(clean, l.Digest))
	}
	return nil
}
