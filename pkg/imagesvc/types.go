package imagesvc

import (
	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/progress"
)

// Progress, LayerProgress and LayerState are what callers see of package progress.
type (
	Progress      = progress.Pull
	LayerProgress = progress.Layer
	LayerState    = progress.State
)

// The states of a layer, see package progress.
const (
	LayerWaiting    = progress.Waiting
	LayerFetching   = progress.Fetching
	LayerCommitting = progress.Committing
	LayerDone       = progress.Done
	LayerExists     = progress.Exists
)

// Format is the form of an archive of images.
type Format string

// Archives are written in one of these forms; they are read in both, whichever it is.
const (
	// FormatOCI is a tar of an OCI image layout (image-spec, image-layout.md).
	FormatOCI Format = "oci"
	// FormatDocker is what "docker save" writes and every version of "docker load" reads.
	FormatDocker Format = "docker"
)

// ImportOptions say how an archive is taken in.
type ImportOptions struct {
	// Name is the reference to give to the image of an archive that names none, or one image under another name. It is
	// ErrInvalid with an archive of several images. "": the names are those of the archive.
	Name string
}

// CommitOptions say what image to make of a container's writable layer.
type CommitOptions struct {
	// Snapshot is the key of the container's snapshot, Base the ID of the image that it was made of.
	Snapshot string
	Base     digest.Digest
	// Name is the reference of the new image.
	Name            string
	Author, Comment string
	// Changes are instructions to change the configuration, in the form of a Dockerfile's: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL,
	// STOPSIGNAL, USER, VOLUME, WORKDIR.
	Changes []string
}

// Finding is something that Check found wrong.
type Finding struct {
	// Kind of the thing: "layer", "blob" or "record".
	Kind string `json:"kind"`
	// Name of the thing: a digest; of a record its key, which should be one.
	Name string `json:"name"`
	// Images are the IDs of the images that need it.
	Images []digest.Digest `json:"images,omitempty"`
	// Problem says what is wrong.
	Problem string `json:"problem"`
	// Repaired says that it is right again; Action tells what was done, or why nothing could be.
	Repaired bool   `json:"repaired"`
	Action   string `json:"action,omitempty"`
}
