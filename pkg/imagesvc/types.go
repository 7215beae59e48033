package imagesvc

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// Progress is a pull that is under way, as far as it is known.
type Progress struct {
	// Ref is the full name that is pulled.
	Ref     string    `json:"ref"`
	Started time.Time `json:"started"`
	// Layers are those of the image, lowest first; empty until its manifest is there.
	Layers []LayerProgress `json:"layers"`
}

// LayerProgress is how far one layer is. All numbers count compressed bytes, so that they add up to the image's size.
type LayerProgress struct {
	// Digest is that of the blob in the manifest.
	Digest digest.Digest `json:"digest"`
	State  LayerState    `json:"state"`
	// Size is the whole blob, Fetched what of it is on this node, Unpacked what of it has been unpacked.
	Size     int64 `json:"size"`
	Fetched  int64 `json:"fetched"`
	Unpacked int64 `json:"unpacked"`
}

// LayerState is what happens to a layer.
type LayerState string

// A layer goes from waiting through fetching and committing to done; one that the node has already exists.
const (
	LayerWaiting    LayerState = "waiting"
	LayerFetching   LayerState = "fetching" // and, at the same time, unpacking
	LayerCommitting LayerState = "committing"
	LayerDone       LayerState = "done"
	LayerExists     LayerState = "exists"
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
	// BaseLayers are the layers of the base, which may have been removed from the list of images.
	BaseLayers []digest.Digest
	// Name is the reference of the new image.
	Name            string
	Author, Comment string
	// Changes are instructions to change the configuration, in the form of a Dockerfile's: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL,
	// STOPSIGNAL, USER, VOLUME, WORKDIR.
	Changes []string
}

// Finding is something that Check found wrong.
type Finding struct {
	// Kind of the thing: "layer", "blob", "record" or "download".
	Kind string `json:"kind"`
	// Name of the thing: a digest, or a key.
	Name string `json:"name"`
	// Images are the IDs of the images that need it.
	Images []digest.Digest `json:"images,omitempty"`
	// Problem says what is wrong.
	Problem string `json:"problem"`
	// Repaired says that it is right again; Action tells what was done, or why nothing could be.
	Repaired bool   `json:"repaired"`
	Action   string `json:"action,omitempty"`
}
