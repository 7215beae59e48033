package admin

import (
	"context"
	"errors"
	"fmt"

	"criserver/pkg/imagesvc"
	"criserver/pkg/sandbox"
)

// commitContainer makes an image of a container's layer. A running container is frozen meanwhile, so that the layer is of
// one moment.
func (s *Server) commitContainer(ctx context.Context, r CommitRequest) (img imagesvc.Image, err error) {
	c, err := s.b.Containers.Container(r.Container)
	if err != nil {
		return img, err
	}
	o, err := s.commitOptions(c, r)
	if err != nil {
		return img, fmt.Errorf("commit container %.12s: %w", c.ID, err)
	}
	if c.Phase != sandbox.ContainerRunning || r.NoPause {
		return s.b.Committer.Commit(ctx, o)
	}
	thaw, err := s.freeze(ctx, c.ID)
	if err != nil {
		return img, err
	}
	defer func() { err = errors.Join(err, thaw()) }()
	return s.b.Committer.Commit(ctx, o)
}

// freeze stops a container's processes until thaw is called, which works also when the client has gone.
func (s *Server) freeze(ctx context.Context, id string) (thaw func() error, err error) {
	release, err := s.b.Freezer.Freeze(ctx, id)
	if errors.Is(err, ErrUnsupported) {
		err = fmt.Errorf("%w; without a pause it can be committed", err)
	}
	if err != nil {
		return nil, fmt.Errorf("pause container %.12s: %w", id, err)
	}
	return func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawLimit)
		defer cancel()
		if err := release(ctx); err != nil {
			return fmt.Errorf("container %.12s is still paused: %w", id, err)
		}
		return nil
	}, nil
}

func (s *Server) commitOptions(c sandbox.ContainerStatus, r CommitRequest) (imagesvc.CommitOptions, error) {
	o := imagesvc.CommitOptions{Snapshot: c.ID, Name: r.Name, Author: r.Author, Comment: r.Comment, Changes: r.Changes}
	if c.Phase == sandbox.ContainerCreating || c.Phase == sandbox.ContainerRemoving {
		return o, fmt.Errorf("%w: it is %s", sandbox.ErrState, c.Phase)
	}
	base, err := s.b.Images.Resolve(c.ImageID)
	if errors.Is(err, imagesvc.ErrNotFound) {
		return o, fmt.Errorf("its image has been removed; pull %s again first: %w", c.Config.ImageName, err)
	}
	if err != nil {
		return o, err
	}
	o.Base = base.ID
	return o, nil
}
