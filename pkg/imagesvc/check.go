package imagesvc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"criserver/pkg/imagesvc/layertar"
	"criserver/pkg/imagesvc/outgoing"
	"criserver/pkg/snapshot"
)

// Kinds of a Finding.
const (
	FindingLayer  = "layer"
	FindingBlob   = "blob"
	FindingRecord = "record"
)

// checking is a check under way: what there is to check, by digest, with the images that need it.
type checking struct {
	s       *Service
	repair  bool
	images  map[digest.Digest]Image
	layers  map[digest.Digest][]digest.Digest
	blobs   map[digest.Digest][]digest.Digest
	results []Finding
}

// Check reads every layer, manifest, configuration and record of every image and compares them with what they should be: the files
// of a layer with what its tar said of them, content included, and a record with what manifest and configuration say. It returns
// what is wrong, in a stable order. With repair, what is wrong is made anew, from what is kept or a registry, with the credentials
// of the configuration; nothing else is touched, and what cannot be had stays as it is. Containers keep what they have mounted.
func (s *Service) Check(ctx context.Context, repair bool) ([]Finding, error) {
	return s.checkImages(ctx, s.catalog.All, repair)
}

// Mend repairs the images that are out of sight: the kubelet asks only for those that it needs, and sees none of them to remove.
func (s *Service) Mend(ctx context.Context) {
	if len(s.catalog.Hidden()) == 0 && len(s.catalog.Unsound()) == 0 {
		return
	}
	found, err := s.checkImages(ctx, s.catalog.Hidden, true)
	if err != nil && ctx.Err() == nil {
		logrus.WithError(err).Warn("images that are not whole could not be repaired")
	}
	for _, f := range found {
		logrus.WithFields(logrus.Fields{"images": f.Images, f.Kind: f.Name, "problem": f.Problem, "action": f.Action, "repaired": f.Repaired}).
			Warn("part of an image that is not whole")
	}
}

// checkImages is Check of some images.
func (s *Service) checkImages(ctx context.Context, some func() map[digest.Digest]Image, repair bool) ([]Finding, error) {
	c := &checking{s: s, repair: repair, images: map[digest.Digest]Image{}, layers: map[digest.Digest][]digest.Digest{}, blobs: map[digest.Digest][]digest.Digest{}}
	if err := c.unsound(ctx); err != nil {
		return c.results, fmt.Errorf("check images: %w", err)
	}
	var all []digest.Digest
	for id, img := range some() {
		c.images[id] = img
		all = append(all, img.Parts()...)
	}
	release, err := s.leases.Hold(ctx, distinct(all))
	if err != nil {
		return nil, fmt.Errorf("check images: %w", err)
	}
	defer release()
	now := some()
	maps.DeleteFunc(c.images, func(id digest.Digest, _ Image) bool { _, still := now[id]; return !still }) // removed meanwhile
	for _, id := range slices.Sorted(maps.Keys(c.images)) {
		img := c.images[id]
		for _, d := range distinct(slices.Concat([]digest.Digest{img.ConfigBlob, img.Manifest}, img.Blobs)) {
			c.blobs[d] = append(c.blobs[d], id)
		}
	}
	// Blobs first: manifests tell where to get layers from.
	for _, d := range slices.Sorted(maps.Keys(c.blobs)) {
		if err := c.blob(ctx, d); err != nil {
			return c.results, fmt.Errorf("check images: %w", err)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.images)) {
		if err := c.record(ctx, id); err != nil {
			return c.results, fmt.Errorf("check images: %w", err)
		}
		for _, d := range distinct(c.images[id].DiffIDs) {
			c.layers[d] = append(c.layers[d], id)
		}
	}
	for _, d := range slices.Sorted(maps.Keys(c.layers)) {
		if err := c.layer(ctx, d); err != nil {
			return c.results, fmt.Errorf("check images: %w", err)
		}
	}
	s.rehabilitate(ctx)
	return c.results, nil
}

func distinct(list []digest.Digest) []digest.Digest {
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list)
}

// found notes what is wrong, and repairs it if that is wanted.
func (c *checking) found(ctx context.Context, f Finding, repair func(context.Context) (string, error)) error {
	if c.repair {
		action, err := repair(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		f.Repaired, f.Action = err == nil, action
		if err != nil {
			f.Action = "cannot be repaired: " + err.Error()
		}
	}
	c.results = append(c.results, f)
	return nil
}

// blob checks a manifest, a configuration or a kept layer.
func (c *checking) blob(ctx context.Context, d digest.Digest) error {
	err := c.s.content.Verify(ctx, d)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	f := Finding{Kind: FindingBlob, Name: d.String(), Images: c.blobs[d], Problem: err.Error()}
	return c.found(ctx, f, func(ctx context.Context) (string, error) { return c.repairBlob(ctx, d) })
}

// layer checks an unpacked layer.
func (c *checking) layer(ctx context.Context, d digest.Digest) error {
	problem, err := c.checkLayer(ctx, d)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		problem = err.Error()
	case problem == "":
		return nil
	}
	f := Finding{Kind: FindingLayer, Name: d.String(), Images: c.layers[d], Problem: problem}
	return c.found(ctx, f, func(ctx context.Context) (string, error) { return c.repairLayer(ctx, d) })
}

// maxProblems is how many files of one layer are named.
const maxProblems = 5

// checkLayer tells what is wrong with a layer, "" for nothing. With nothing kept to compare it with, it is only looked for.
func (c *checking) checkLayer(ctx context.Context, d digest.Digest) (string, error) {
	tree, err := c.s.store().Tree(ctx, d)
	if errors.Is(err, snapshot.ErrNotFound) {
		return "it is missing", nil
	}
	if err != nil { // snapshot.ErrDamaged too
		return "", err
	}
	problems, err := tree.Verify(ctx)
	if errors.Is(err, layertar.ErrNone) {
		for _, id := range c.layers[d] {
			_, desc, err := c.layerOf(c.images[id], d)
			switch {
			case err != nil:
				continue
			case c.images[id].Artifact:
				return outgoing.CheckFile(ctx, tree, desc)
			case !c.s.content.Has(desc.Digest):
				return "neither its tar metadata nor its blob is kept", nil
			}
		}
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var texts []string
	for i, p := range problems {
		if i == maxProblems {
			texts = append(texts, fmt.Sprintf("and %d more", len(problems)-i))
			break
		}
		texts = append(texts, p.String())
	}
	return strings.Join(texts, "; "), nil
}

// rehabilitate shows images that are whole again, and hides those that are not.
func (s *Service) rehabilitate(ctx context.Context) {
	for _, img := range s.catalog.All() {
		_ = s.look(ctx, img) // which logs it
	}
}

// layerOf finds a layer in the manifest of an image.
func (c *checking) layerOf(img Image, d digest.Digest) (i int, desc ocispec.Descriptor, err error) {
	data, err := c.s.content.Read(img.Manifest)
	if err != nil {
		return 0, desc, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return 0, desc, fmt.Errorf("decode manifest: %w", err)
	}
	if i = slices.Index(img.DiffIDs, d); i < 0 || i >= len(m.Layers) {
		return 0, desc, fmt.Errorf("layer %s is not in the manifest", d)
	}
	return i, m.Layers[i], nil
}
