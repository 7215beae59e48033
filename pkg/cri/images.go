package cri

import (
	"context"
	"errors"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
)

func (s *imageService) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if err := checkImageSpec("image", r.GetImage()); err != nil {
		return nil, err
	}
	id, err := s.b.Images.Pull(ctx, r.GetImage().GetImage(), decodeAuth(r.GetAuth()))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: id}, nil
}

func (s *imageService) ListImages(_ context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	resp := &runtimeapi.ListImagesResponse{}
	if name := r.GetFilter().GetImage().GetImage(); name != "" {
		img, err := s.b.Images.Resolve(name)
		if errors.Is(err, imagesvc.ErrNotFound) {
			return resp, nil
		}
		if err != nil {
			return nil, err
		}
		resp.Images = append(resp.Images, encodeImage(img))
		return resp, nil
	}
	for _, img := range s.b.Images.List() {
		resp.Images = append(resp.Images, encodeImage(img))
	}
	return resp, nil
}

func (s *imageService) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if err := checkImageSpec("image", r.GetImage()); err != nil {
		return nil, err
	}
	img, err := s.b.Images.Resolve(r.GetImage().GetImage())
	if errors.Is(err, imagesvc.ErrNotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil // absent is no error, see api.proto
	}
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: encodeImage(img)}
	if r.GetVerbose() {
		resp.Info = verbose(imageInfo(img))
	}
	return resp, nil
}

func (s *imageService) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if err := checkImageSpec("image", r.GetImage()); err != nil {
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
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: info.Path},
		UsedBytes:  &runtimeapi.UInt64Value{Value: uint64(info.UsedBytes)},
		InodesUsed: &runtimeapi.UInt64Value{Value: uint64(info.Inodes)},
	}}}, nil
}

func decodeAuth(a *runtimeapi.AuthConfig) registry.Auth {
	return registry.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
}

func checkImageSpec(field string, spec *runtimeapi.ImageSpec) error {
	if spec.GetImage() == "" {
		return invalid(field, "no image is named")
	}
	if h := spec.GetRuntimeHandler(); h != "" {
		return invalid(field+".runtime_handler", "%q is not configured", h)
	}
	return nil
}
