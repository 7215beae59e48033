package admin

import (
	"encoding/json"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
)

// Image is an image of the node.
type Image struct {
	// ID is the digest of the configuration.
	ID       digest.Digest `json:"id"`
	Manifest digest.Digest `json:"manifest,omitempty"`
	// Tags and Digests are full names; neither is null.
	Tags    []string `json:"tags"`
	Digests []string `json:"digests"`
	// Size is that of the download in bytes.
	Size    int64     `json:"size"`
	Created time.Time `json:"created,omitzero"`
	Pulled  time.Time `json:"pulled,omitzero"`
	// Pinned tells that the kubelet does not remove it to free space.
	Pinned bool `json:"pinned"`

	// What follows is left out of lists.

	Config      *ocispec.Image    `json:"config,omitempty"`
	Layers      []digest.Digest   `json:"layers,omitempty"` // diffIDs, lowest first
	Annotations map[string]string `json:"annotations,omitempty"`
	// Containers are the IDs of those that are made of it.
	Containers []string `json:"containers,omitempty"`
}

// Auth is a credential for a registry. The zero value leaves it to the daemon's configuration.
type Auth struct {
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
	// IdentityToken is an OAuth2 refresh token, in the place of the others.
	IdentityToken string `json:"identityToken,omitempty"`
}

func (a Auth) decode() registry.Auth {
	return registry.Auth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken}
}

// String keeps secrets out of formatted output.
func (a Auth) String() string { return a.decode().String() }

// GoString is String for %#v.
func (a Auth) GoString() string { return a.String() }

// ListResponse has all images, the newest first.
type ListResponse struct {
	Images []Image `json:"images"`
}

// InspectRequest asks for one image, by name, ID or a unique prefix of its ID.
type InspectRequest struct {
	Name string `json:"name"`
}

// RemoveRequest removes an image with all its names.
type RemoveRequest struct {
	Name string `json:"name"`
	// Force removes it although containers use it or it has other names, and takes an image that is not there for removed.
	Force bool `json:"force,omitempty"`
}

// RemoveResponse tells what is gone; all is empty when Force found nothing in sight.
type RemoveResponse struct {
	ID    digest.Digest `json:"id,omitempty"`
	Names []string      `json:"names"`
}

// TagRequest gives the image that Source names the name Target too.
type TagRequest struct {
	Source string `json:"source"`
	Target string `json:"target"`
}

// PullRequest pulls an image.
type PullRequest struct {
	Name string `json:"name"`
	Auth Auth   `json:"auth,omitzero"`
}

// PullResponse has the ID of the image.
type PullResponse struct {
	ID string `json:"id"`
}

// PushRequest pushes the image Source to the name Target; "" is Source.
type PushRequest struct {
	Source string `json:"source"`
	Target string `json:"target,omitempty"`
	Auth   Auth   `json:"auth,omitzero"`
}

// PushResponse has the digest of the manifest in the registry.
type PushResponse struct {
	Digest digest.Digest `json:"digest"`
}

// ImportResponse has the images of the archive.
type ImportResponse struct {
	Images []Image `json:"images"`
}

// ExportRequest asks for an archive of images. Format "" is imagesvc.FormatOCI.
type ExportRequest struct {
	Names  []string        `json:"names"`
	Format imagesvc.Format `json:"format,omitempty"`
}

// CommitRequest makes an image of a container's writable layer.
type CommitRequest struct {
	// Container is an ID, or a unique prefix of one.
	Container string `json:"container"`
	// Name, Author, Comment and Changes are as in imagesvc.CommitOptions.
	Name    string   `json:"name"`
	Author  string   `json:"author,omitempty"`
	Comment string   `json:"comment,omitempty"`
	Changes []string `json:"changes,omitempty"`
	// NoPause lets the container's processes run while its files are read.
	NoPause bool `json:"noPause,omitempty"`
}

// CheckRequest looks for damage of layers, blobs and records.
type CheckRequest struct {
	Repair bool `json:"repair,omitempty"`
}

// CheckResponse has what is, or was, wrong.
type CheckResponse struct {
	Findings []imagesvc.Finding `json:"findings"`
}

// ExplainRequest asks where an image would be pulled from, and why. Probe asks the endpoints too.
type ExplainRequest struct {
	Name  string `json:"name"`
	Probe bool   `json:"probe,omitempty"`
}

// Event is a line of the answer to a long operation: progress, or, as the last one, its result or error.
type Event struct {
	// Layers are all layers of a pull or push as they are, each time.
	Layers []imagesvc.LayerProgress `json:"layers,omitempty"`
	// Read counts the bytes of the archive that an import has taken in.
	Read int64 `json:"read,omitempty"`

	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

func encodeImage(img imagesvc.Image) Image {
	out := Image{
		ID: img.ID, Manifest: img.Manifest, Tags: append([]string{}, img.Tags...), Digests: append([]string{}, img.Digests...),
		Size: img.Size, Pulled: img.Pulled, Pinned: img.Pinned,
	}
	if img.Config.Created != nil {
		out.Created = *img.Config.Created
	}
	return out
}

func encodeImages(images []imagesvc.Image) []Image {
	out := make([]Image, 0, len(images))
	for _, img := range images {
		out = append(out, encodeImage(img))
	}
	return out
}
