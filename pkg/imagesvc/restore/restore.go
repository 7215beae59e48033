// Package restore makes records of images anew: of the documents that are kept, or that a registry has.
package restore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"criserver/pkg/imagesvc/catalog"
	"criserver/pkg/imagesvc/content"
	"criserver/pkg/imagesvc/document"
	"criserver/pkg/imagesvc/download"
	"criserver/pkg/imagesvc/lease"
	"criserver/pkg/imagesvc/origin"
	"criserver/pkg/imagesvc/registry"
)

// Restorer is where images are kept, and come from.
type Restorer struct {
	Catalog   *catalog.Catalog
	Content   *content.Store
	Leases    *lease.Leases
	Downloads *download.Store
	// Registry is the client of this moment.
	Registry func() *registry.Client
}

// Documents reads the documents of an image that are kept, by the digest of its manifest. content.ErrNotFound, content.ErrDamaged, document.ErrInvalid.
func (r *Restorer) Documents(ctx context.Context, manifest digest.Digest) (*document.Image, error) {
	data, err := r.Content.Read(manifest)
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("decode manifest %s: %w", manifest, err)
	}
	config, err := r.Content.Read(m.Config.Digest)
	if err != nil {
		return nil, err
	}
	desc := ocispec.Descriptor{MediaType: cmp.Or(document.MediaType(data), ocispec.MediaTypeImageManifest), Digest: manifest, Size: int64(len(data))}
	return document.Read(ctx, &origin.Local{Document: registry.Manifest{Descriptor: desc, Data: data}, Config: config})
}

// maxDocument is more than a manifest that is kept takes of the disk, in bytes.
const maxDocument = 8 << 20

// kept finds the kept documents of images whose records do not tell which those are. One search is for all.
func (r *Restorer) kept(ctx context.Context, ids []digest.Digest) map[digest.Digest]*document.Image {
	out := map[digest.Digest]*document.Image{}
	if len(ids) == 0 {
		return out
	}
	for _, d := range r.Content.Small(maxDocument) {
		if docs, err := r.Documents(ctx, d); err == nil && slices.Contains(ids, docs.ID()) {
			out[docs.ID()] = docs
		}
	}
	return out
}

// Spare keeps what belongs to images whose records are unsound, and tells of these.
func (r *Restorer) Spare(ctx context.Context) {
	unsound := r.Catalog.Unsound()
	var ids []digest.Digest
	for _, u := range unsound {
		ids = append(ids, u.ID())
	}
	kept := r.kept(ctx, ids)
	for _, u := range unsound {
		if docs := kept[u.ID()]; docs != nil {
			r.Catalog.Spare(u.Key, Parts(docs))
		}
		logrus.WithFields(logrus.Fields{"record": u.Key, "problem": u.Problem}).
			Error("the record of an image is damaged; the image is out of sight until the record is repaired, or it is pulled again")
	}
}

// Repair writes a record anew: what the documents say, which are fetched if they are not kept, and the names that are sure. It
// returns what the record says now, and what was done.
func (r *Restorer) Repair(ctx context.Context, u catalog.Unsound) (catalog.Image, string, error) {
	id, action := u.ID(), "written again from what is kept"
	if err := id.Validate(); err != nil {
		return catalog.Image{}, "", fmt.Errorf("it does not tell which image it is of: %w", err)
	}
	docs, err := r.Documents(ctx, u.Image.Manifest)
	if err != nil || docs.ID() != id {
		docs = r.kept(ctx, []digest.Digest{id})[id]
	}
	if docs == nil {
		src, err := r.Source(ctx, id, slices.Concat(u.Image.Digests, u.Image.Tags))
		if err != nil {
			return catalog.Image{}, "", err
		}
		docs, action = src.Docs, "written again from what was fetched"
	}
	release, err := r.Leases.Hold(ctx, Parts(docs))
	if err != nil {
		return catalog.Image{}, "", err
	}
	defer release()
	if err := r.Keep(docs); err != nil {
		return catalog.Image{}, "", err
	}
	img := r.Image(docs)
	img.Tags, img.Digests = u.Image.Tags, u.Image.Digests
	if !u.Named {
		if img.Tags, img.Digests, err = r.confirmed(ctx, u.Image, id); err != nil {
			return img, "", err
		}
		action += fmt.Sprintf("; its names are those that a registry confirms: %s", orNone(slices.Concat(img.Tags, img.Digests)))
	}
	if !u.Image.Pulled.IsZero() {
		img.Pulled = u.Image.Pulled
	}
	return img, action, r.Catalog.Replace(ctx, u.Key, img)
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none; it has them again when it is pulled, or tagged"
	}
	return strings.Join(list, ", ")
}

// confirmed are those of an image's names by which its registries have it. An error says that one could not be asked.
func (r *Restorer) confirmed(ctx context.Context, img catalog.Image, id digest.Digest) (tags, digests []string, err error) {
	has := func(name string) bool {
		src, nameErr := r.named(ctx, name)
		if nameErr != nil && !errors.Is(nameErr, registry.ErrNotFound) {
			err = errors.Join(err, nameErr)
		}
		return nameErr == nil && src.Docs.ID() == id
	}
	for _, name := range img.Tags {
		if has(name) {
			tags = append(tags, name)
		}
	}
	for _, name := range img.Digests {
		if has(name) {
			digests = append(digests, name)
		}
	}
	return tags, digests, err
}

// Keep writes manifest and configuration into the content store.
func (r *Restorer) Keep(docs *document.Image) error {
	if err := r.Content.Write(docs.Manifest.Digest, docs.Manifest.Data); err != nil {
		return err
	}
	return r.Content.Write(docs.Parsed.Config.Digest, docs.RawConfig)
}

// Image is what the documents say of an image, and which of its blobs are kept.
func (r *Restorer) Image(docs *document.Image) catalog.Image {
	img := catalog.Image{
		ID: docs.ID(), Manifest: docs.Manifest.Digest, ConfigBlob: docs.Parsed.Config.Digest, Artifact: docs.Artifact,
		Size: docs.Size(), Config: docs.Config, DiffIDs: docs.Layers, Annotations: docs.Parsed.Annotations,
		Pulled: time.Now().Round(0),
	}
	for _, l := range docs.Parsed.Layers {
		if r.Content.Has(l.Digest) {
			img.Blobs = append(img.Blobs, l.Digest)
		}
	}
	slices.Sort(img.Blobs)
	img.Blobs = slices.Compact(img.Blobs)
	return img
}

// Parts are all that an image needs of the disk.
func Parts(docs *document.Image) []digest.Digest {
	all := slices.Concat([]digest.Digest{docs.Parsed.Config.Digest, docs.Manifest.Digest}, docs.Layers)
	for _, l := range docs.Parsed.Layers {
		all = append(all, l.Digest)
	}
	return all
}

// errNoSource: an image has no name by which a registry could be asked for it.
var errNoSource = errors.New("no registry is known to have it; pull or import the image again")

// Source is an image as a registry has it now.
type Source struct {
	From *origin.Remote
	Docs *document.Image
}

// Source asks the registries of an image's names for it.
func (r *Restorer) Source(ctx context.Context, id digest.Digest, names []string) (*Source, error) {
	errs := []error{}
	for _, name := range names {
		src, err := r.named(ctx, name)
		if err == nil && src.Docs.ID() != id {
			err = fmt.Errorf("%s is another image now", name)
		}
		if err == nil {
			return src, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, errNoSource
	}
	return nil, errors.Join(errs...)
}

// named is the image that a registry has under a name.
func (r *Restorer) named(ctx context.Context, name string) (*Source, error) {
	ref, err := registry.Parse(name)
	if err != nil {
		return nil, err
	}
	repo, err := r.Registry().Repository(ref, registry.Auth{})
	if err != nil {
		return nil, err
	}
	from := &origin.Remote{Repository: repo, Downloads: r.Downloads}
	docs, err := document.Read(ctx, from)
	return &Source{from, docs}, err
}
