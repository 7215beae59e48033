package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/ctxreader"
	"criserver/pkg/imagesvc/mediatype"
	"criserver/pkg/imagesvc/verify"
)

// Format is what Write writes.
type Format string

const (
	// OCI is a tar of an OCI image layout, for skopeo and podman (oci-archive), umoci, buildkit, and "ctr image import".
	// Old skopeo and podman find an image there by its tag only if its manifest is OCI's, not Docker's schema 2; if it is the
	// only one, they need no tag.
	OCI Format = "oci"
	// Docker is that with docker's manifest.json, which every "docker load" since 1.10 reads, and skopeo and podman
	// (docker-archive); a docker that keeps its images in containerd reads the layout, and so keeps the digest of the manifest.
	Docker Format = "docker"
)

// ImageSource is an image to write.
type ImageSource struct {
	// Names are full references. Docker's part of an archive has none by digest, which "docker load" refuses.
	Names []string
	// Manifest describes ManifestData, and Config ConfigData. Config and Layers are those of the manifest, in its order.
	Manifest     ocispec.Descriptor
	ManifestData []byte
	Config       ocispec.Descriptor
	ConfigData   []byte
	Layers       []LayerSource
}

// LayerSource is where a layer comes from.
type LayerSource struct {
	// Desc is of the blob that Open gives: its size is written before it. For Docker it is a plain tar or gzip; no docker before
	// 23 reads zstd.
	Desc ocispec.Descriptor
	// Open is called once at most, after all before it were closed.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// Write writes an archive of images into a stream, as an uncompressed tar. The same images give the same bytes. Layers that
// images share are written once; the same manifest under several sources is one image with the names of all. ErrInvalid,
// before anything is written, if documents and descriptors do not fit each other. A layer that is not what its descriptor says
// is an error of verify's kinds. After any error what was written is no whole tar, and Read refuses it.
func Write(ctx context.Context, w io.Writer, format Format, images []ImageSource) error {
	p := plan{at: map[digest.Digest]int{}, blobs: map[digest.Digest]entry{}}
	for _, img := range images {
		if err := p.include(format, img); err != nil {
			return fmt.Errorf("image %s: %w", img.Manifest.Digest, err)
		}
	}
	entries, err := p.entries(format)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	buf := make([]byte, 256<<10)
	for _, e := range entries {
		if err := e.write(ctx, tw, buf); err != nil {
			return fmt.Errorf("write %s of the archive: %w", e.name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("write the end of the archive: %w", err)
	}
	return nil
}

// entry is a file of the tar; a directory if it has no open.
type entry struct {
	name   string
	digest digest.Digest
	size   int64
	open   func(ctx context.Context) (io.ReadCloser, error)
}

func inMemory(name string, data []byte) entry {
	return entry{name: name, digest: digest.FromBytes(data), size: int64(len(data)), open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}}
}

func (e entry) write(ctx context.Context, tw *tar.Writer, buf []byte) error {
	hdr := &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: e.size, ModTime: time.Unix(0, 0)}
	if e.open == nil {
		hdr.Typeflag, hdr.Mode = tar.TypeDir, 0o755
	}
	if err := tw.WriteHeader(hdr); err != nil || e.open == nil {
		return err
	}
	r, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	v := verify.NewReader(ctxreader.New(ctx, r), e.digest, e.size)
	_, err = io.CopyBuffer(tw, v, buf)
	// What is wrong with the content comes before what the tar says of its length.
	if wrong := v.Err(); wrong != nil && !errors.Is(wrong, io.EOF) {
		return wrong
	}
	return err
}

// plan is what an archive will hold.
type plan struct {
	images []planned
	at     map[digest.Digest]int // by manifest
	blobs  map[digest.Digest]entry
}

type planned struct {
	root   ocispec.Descriptor
	names  []string
	config string // names of files
	layers []string
}

// include checks an image and adds what it is made of.
func (p *plan) include(format Format, img ImageSource) error {
	if err := img.check(format); err != nil {
		return err
	}
	i, ok := p.at[img.Manifest.Digest]
	if !ok {
		i = len(p.images)
		p.at[img.Manifest.Digest] = i
		d := img.Manifest
		p.images = append(p.images, planned{
			root:   ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: d.Platform},
			config: blobFile(img.Config.Digest),
			layers: []string{},
		})
		for _, l := range img.Layers {
			p.images[i].layers = append(p.images[i].layers, blobFile(l.Desc.Digest))
		}
	}
	for _, name := range img.Names {
		full, err := fullName(name)
		if err != nil {
			return err
		}
		if !slices.Contains(p.images[i].names, full) {
			p.images[i].names = append(p.images[i].names, full)
		}
	}
	p.add(img.Manifest, inMemory("", img.ManifestData).open)
	p.add(img.Config, inMemory("", img.ConfigData).open)
	for _, l := range img.Layers {
		p.add(l.Desc, l.Open)
	}
	return nil
}

func (p *plan) add(d ocispec.Descriptor, open func(ctx context.Context) (io.ReadCloser, error)) {
	if _, ok := p.blobs[d.Digest]; !ok {
		p.blobs[d.Digest] = entry{name: blobFile(d.Digest), digest: d.Digest, size: d.Size, open: open}
	}
}

// check says why an image cannot be written.
func (img *ImageSource) check(format Format) error {
	if err := checkData(img.Manifest, img.ManifestData); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	if err := checkData(img.Config, img.ConfigData); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	mediaType, err := typeOf(img.ManifestData)
	if err != nil {
		return err
	}
	if !mediatype.IsManifest(mediaType) || !mediatype.IsManifest(img.Manifest.MediaType) {
		return fmt.Errorf("%w: media type %q is no manifest", ErrInvalid, img.Manifest.MediaType)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(img.ManifestData, &m); err != nil {
		return fmt.Errorf("decode manifest: %w: %w", ErrInvalid, err)
	}
	if !sameBlob(m.Config, img.Config) || !slices.EqualFunc(m.Layers, img.Layers, func(d ocispec.Descriptor, l LayerSource) bool {
		return sameBlob(d, l.Desc)
	}) {
		return fmt.Errorf("%w: what is to be written is not what the manifest names", ErrInvalid)
	}
	for _, l := range img.Layers {
		if err := checkDescriptor(l.Desc); err != nil {
			return err
		}
		if l.Open == nil {
			return fmt.Errorf("%w: layer %s has no content", ErrInvalid, l.Desc.Digest)
		}
		if format == Docker && strings.HasSuffix(l.Desc.MediaType, "zstd") {
			return fmt.Errorf("%w: layer %s is compressed by zstd, which \"docker load\" cannot be relied on to read", ErrInvalid, l.Desc.Digest)
		}
	}
	return nil
}

func checkData(d ocispec.Descriptor, data []byte) error {
	if err := checkDescriptor(d); err != nil {
		return err
	}
	if d.Size != int64(len(data)) || d.Digest.Algorithm().FromBytes(data) != d.Digest {
		return fmt.Errorf("%w: its data are not those of %s with %d bytes", ErrInvalid, d.Digest, d.Size)
	}
	return nil
}

func sameBlob(a, b ocispec.Descriptor) bool { return a.Digest == b.Digest && a.Size == b.Size }

// blobFile is the name of a blob in the archive.
func blobFile(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// entries are the tables of contents, so that who reads a stream knows first what comes, and then the blobs.
func (p *plan) entries(format Format) ([]entry, error) {
	if len(p.images) == 0 {
		return nil, fmt.Errorf("%w: there is no image to write", ErrInvalid)
	}
	docs := []struct {
		name    string
		content any
	}{
		{ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}},
		{ocispec.ImageIndexFile, p.index()},
	}
	switch format {
	case OCI:
	case Docker:
		docs = append(docs, struct {
			name    string
			content any
		}{manifestFile, p.items()})
	default:
		return nil, fmt.Errorf("%w: there is no format %q", ErrInvalid, format)
	}
	var out []entry
	for _, d := range docs {
		data, err := json.Marshal(d.content)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", d.name, err)
		}
		out = append(out, inMemory(d.name, data))
	}
	out = append(out, entry{name: ocispec.ImageBlobsDir + "/"})
	var last digest.Algorithm
	for _, d := range slices.Sorted(maps.Keys(p.blobs)) {
		if alg := d.Algorithm(); alg != last {
			out = append(out, entry{name: path.Join(ocispec.ImageBlobsDir, alg.String()) + "/"})
			last = alg
		}
		out = append(out, p.blobs[d])
	}
	return out, nil
}

// index has one descriptor for each name, as containerd and skopeo want it.
func (p *plan) index() ocispec.Index {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, img := range p.images {
		if len(img.names) == 0 {
			index.Manifests = append(index.Manifests, img.root)
		}
		for _, name := range img.names {
			d := img.root
			d.Annotations = map[string]string{annotationName: name, ocispec.AnnotationRefName: tagOf(name)}
			index.Manifests = append(index.Manifests, d)
		}
	}
	return index
}

// items is docker's table of contents.
func (p *plan) items() []dockerItem {
	var items []dockerItem
	for _, img := range p.images {
		item := dockerItem{Config: img.config, RepoTags: []string{}, Layers: img.layers}
		for _, name := range img.names {
			if tag, ok := repoTag(name); ok {
				item.RepoTags = append(item.RepoTags, tag)
			}
		}
		items = append(items, item)
	}
	return items
}
