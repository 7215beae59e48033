package imagesvc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/filetree"
	"criserver/pkg/imagesvc/layertar"
	"criserver/pkg/imagesvc/unpack"
	"criserver/pkg/snapshot"
)

// Annotations are those of the manifest that an image came with.
func (s *Service) Annotations(img Image) (map[string]string, error) {
	data, err := s.content.Read(img.Manifest)
	if err != nil {
		return nil, fmt.Errorf("manifest of image %s: %w", img.ID, err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("decode manifest of image %s: %w", img.ID, err)
	}
	return m.Annotations, nil
}

// FillLayer unpacks a tar of a layer into the writable layer of a snapshot that is not mounted. ErrInvalid, ErrNoSpace.
func (s *Service) FillLayer(ctx context.Context, key string, r io.Reader) error {
	filler, ok := s.layers.(snapshot.Filler)
	if !ok {
		return errors.New("the storage driver cannot fill the writable layer of a container")
	}
	err := filler.Fill(ctx, key, func(dir string) ([]string, error) {
		result, err := unpack.Apply(ctx, dir, r, s.config.Limits)
		return result.Implied, err
	})
	return s.noSpace(ctx, invalid(err))
}

// FillVolumes unpacks a tar, made by WriteVolumes, into the volumes of a snapshot. ErrInvalid, ErrNoSpace.
func (s *Service) FillVolumes(ctx context.Context, key string, r io.Reader) error {
	dir, err := s.volumes(ctx, key)
	if err != nil {
		return err
	}
	_, err = unpack.Apply(ctx, dir, r, s.config.Limits)
	return s.noSpace(ctx, invalid(err))
}

// WriteVolumes writes a tar of what is in the volumes of a snapshot, by their names. Who writes into them must not meanwhile.
// ErrNotFound: it has none.
func (s *Service) WriteVolumes(ctx context.Context, key string, w io.Writer) error {
	dir, err := s.volumes(ctx, key)
	if err != nil {
		return err
	}
	return layertar.Changes(ctx, dir, w)
}

func (s *Service) volumes(ctx context.Context, key string) (string, error) {
	driver, ok := s.layers.(snapshot.Volumes)
	if !ok {
		return "", fmt.Errorf("%w: the storage driver has no volumes", ErrNotFound)
	}
	dir, err := driver.Volumes(ctx, key)
	if errors.Is(err, snapshot.ErrNotFound) {
		err = fmt.Errorf("%w: container %s has no volumes", ErrNotFound, key)
	}
	return dir, err
}

// UnpackFiles unpacks a tar, which may be compressed, into the empty directory dir. It may have files and directories only:
// ErrInvalid, ErrNoSpace.
func (s *Service) UnpackFiles(ctx context.Context, r io.Reader, dir string) error {
	plain, err := unpack.Decompress(ctx, "", r, s.config.Limits)
	if err != nil {
		return invalid(err)
	}
	defer plain.Close()
	if _, err = unpack.Apply(ctx, dir, plain, s.config.Limits); err != nil {
		return s.noSpace(ctx, invalid(err))
	}
	return filetree.Check(dir)
}

// CopyFiles copies what is in the one layer of an image into the empty directory dir. It may be files and directories only:
// ErrInvalid, ErrNoSpace.
func (s *Service) CopyFiles(ctx context.Context, img Image, dir string) error {
	trees, ok := s.layers.(snapshot.Trees)
	if !ok {
		return errors.New("the storage driver cannot give the files of a layer")
	}
	if len(img.DiffIDs) != 1 {
		return fmt.Errorf("%w: image %s has %d layers, want one", ErrInvalid, img.ID, len(img.DiffIDs))
	}
	_, release, err := s.hold(ctx, img.ID.String())
	if err != nil {
		return err
	}
	defer release()
	tree, _, err := trees.Tree(ctx, img.DiffIDs[0])
	if err != nil {
		return err
	}
	if err := s.CopyTree(ctx, tree, dir); err != nil {
		return fmt.Errorf("image %s: %w", img.ID, err)
	}
	return nil
}

// CopyTree copies what is below a directory, which nobody changes, into an empty one. It may be files and directories only:
// ErrInvalid, ErrNoSpace.
func (s *Service) CopyTree(ctx context.Context, from, to string) error {
	if err := filetree.Check(from); err != nil {
		return err
	}
	return s.noSpace(ctx, filetree.Copy(ctx, from, to))
}
