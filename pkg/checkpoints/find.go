package checkpoints

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"criserver/pkg/imagesvc"
	"criserver/pkg/sandbox/checkpoint"
	"criserver/pkg/sandbox/hostpath/probe"
)

// Find tells which image a container is to be made of. If name is a checkpoint, its files are in dir, which is the caller's to
// remove, and the image is the one that the container was of; else dir is "". Errors are those of imagesvc and checkpoint;
// imagesvc.ErrNotFound also if that image is not there.
func (s *Service) Find(ctx context.Context, name string) (img imagesvc.Image, dir checkpoint.Dir, err error) {
	if filepath.IsAbs(name) {
		return s.restore(ctx, name, func(dir string) error { return s.unpack(ctx, name, dir) })
	}
	img, err = s.Images.Ready(ctx, name)
	if err != nil || !mayBeCheckpoint(img) {
		return img, "", err
	}
	annotations, err := s.Images.Annotations(img)
	if err != nil {
		return img, "", err
	}
	for _, key := range checkpoint.Annotations {
		if annotations[key] == "" {
			continue
		}
		if !s.FromImages {
			return img, "", fmt.Errorf("image: %s is a checkpoint (annotation %s): to restore it is %w: "+
				"it decides by itself what its processes may do; runtime.restore_images in the configuration allows it", name, key, ErrForbidden)
		}
		return s.restore(ctx, name, func(dir string) error { return s.Images.CopyFiles(ctx, img, dir) })
	}
	return img, "", nil
}

// mayBeCheckpoint spares other images the look at their manifests: a checkpoint has one layer, and nothing to be executed.
func mayBeCheckpoint(img imagesvc.Image) bool {
	return len(img.DiffIDs) == 1 && len(img.Config.Config.Entrypoint) == 0 && len(img.Config.Config.Cmd) == 0
}

func (s *Service) restore(ctx context.Context, name string, fill func(dir string) error) (img imagesvc.Image, dir checkpoint.Dir, err error) {
	if dir, err = checkpoint.StageDir(s.Tools.Root); err != nil {
		return img, "", err
	}
	if err = fill(string(dir)); err == nil {
		img, err = s.base(ctx, dir)
	}
	if err != nil {
		return img, "", errors.Join(fmt.Errorf("restore from %s: %w", name, err), dir.Remove())
	}
	return img, dir, nil
}

// unpack reads an archive. It may be compressed, as Podman's are.
func (s *Service) unpack(ctx context.Context, name, dir string) error {
	f, err := s.Files.Open(ctx, name)
	if err == nil {
		defer f.Close()
		err = s.Images.UnpackFiles(ctx, f, dir)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: no such file", imagesvc.ErrNotFound)
	case errors.Is(err, probe.ErrIrregular):
		return fmt.Errorf("%w: it is no regular file", checkpoint.ErrInvalid)
	}
	return err
}

// base finds the image of the container. Another one of the same name will not do: the container has files of this one open.
func (s *Service) base(ctx context.Context, dir checkpoint.Dir) (imagesvc.Image, error) {
	c, err := dir.Config()
	if err != nil {
		return imagesvc.Image{}, err
	}
	name := cmp.Or(c.RootfsImageName, c.RootfsImage)
	img, err := s.Images.Ready(ctx, cmp.Or(c.RootfsImageRef, name))
	if err != nil {
		err = fmt.Errorf("pull the image of the container first, %s: %w", cmp.Or(name, c.RootfsImageRef), err)
	}
	return img, err
}
