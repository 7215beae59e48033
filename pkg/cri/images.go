package cri

import (
	"context"
	"errors"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/snapshot"
)

func (s *imageService) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if err := s.b.checkImage("image", r.GetImage()); err != nil {
		return nil, err
	}
	id, err := s.b.Images.Pull(ctx, r.GetImage().GetImage(), decodeAuth(r.GetAuth()))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: id}, nil
}

func (s *imageService) ListImages(_ context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	images, err := s.listImages(r.GetFilter())
	return &runtimeapi.ListImagesResponse{Images: images}, err
}

func (s *imageService) listImages(f *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	if err := s.b.CheckHandler(f.GetImage().GetRuntimeHandler()); err != nil {
		return nil, invalid("filter.image.runtime_handler", "%v", err)
	}
	images := s.b.Images.List()
	if name := f.GetImage().GetImage(); name != "" {
		img, err := s.b.Images.Resolve(name)
		switch {
		case errors.Is(err, imagesvc.ErrNotFound):
			return nil, nil
		case err != nil:
			return nil, err
		}
		images = []imagesvc.Image{img}
	}
	out := make([]*runtimeapi.Image, 0, len(images))
	for _, img := range images {
		out = append(out, encodeImage(img))
	}
	return out, nil
}

func (s *imageService) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if err := s.b.checkImage("image", r.GetImage()); err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{}
	img, err := s.b.Images.Resolve(r.GetImage().GetImage())
	switch {
	case err == nil:
		resp.Image = encodeImage(img)
	case !errors.Is(err, imagesvc.ErrNotFound): // absent is no error, see api.proto
		return nil, err
	}
	if r.GetVerbose() {
		resp.Info = map[string]string{}
		if resp.Image != nil {
			resp.Info = verbose(imageInfo(img))
		}
		if pulls := s.b.Images.Progress(r.GetImage().GetImage()); len(pulls) > 0 {
			resp.Info["pulls"] = verbose(pulls)["info"]
		}
	}
	return resp, nil
}

func (s *imageService) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if err := s.b.checkImage("image", r.GetImage()); err != nil {
		return nil, err
	}
	if err := s.b.Images.Remove(ctx, r.GetImage().GetImage()); err != nil && !errors.Is(err, imagesvc.ErrNotFound) {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

func (s *imageService) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	info, err := s.b.Images.FsInfo(ctx)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{filesystem(info.Path, info.Images, time.Now())},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{filesystem(info.Path, info.Containers.Usage, info.Containers.Measured)},
	}, nil
}

// filesystem tells what is used; a time of zero is now, as there is nothing that had to be measured.
func filesystem(path string, u snapshot.Usage, at time.Time) *runtimeapi.FilesystemUsage {
	if at.IsZero() {
		at = time.Now()
	}
	return &runtimeapi.FilesystemUsage{
		Timestamp:  at.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: path},
		UsedBytes:  &runtimeapi.UInt64Value{Value: uint64(u.Bytes)},
		InodesUsed: &runtimeapi.UInt64Value{Value: uint64(u.Inodes)},
	}
}

func decodeAuth(a *runtimeapi.AuthConfig) registry.Auth {
	return registry.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
}
