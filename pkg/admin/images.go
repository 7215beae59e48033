package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/sandbox"
)

// named refuses a request that leaves out a name.
func named(field, value string) error {
	if value == "" {
		return fmt.Errorf("%w: %s is missing", ErrInvalid, field)
	}
	return nil
}

func (s *Server) list(w *answer, _ *http.Request) error {
	return encode(w, ListResponse{Images: encodeImages(s.b.Images.List())})
}

func (s *Server) inspect(_ context.Context, r InspectRequest) (Image, error) {
	if err := named("name", r.Name); err != nil {
		return Image{}, err
	}
	img, err := s.b.Images.Resolve(r.Name)
	if err != nil {
		return Image{}, err
	}
	out := encodeImage(img)
	out.Config, out.Layers, out.Annotations = &img.Config, img.DiffIDs, img.Annotations
	out.Containers = s.users(img)
	return out, nil
}

// users are the containers made of an image.
func (s *Server) users(img imagesvc.Image) []string {
	var ids []string
	for _, c := range s.b.Containers.Containers() {
		if c.ImageID == img.ID.String() && c.Phase != sandbox.ContainerRemoving {
			ids = append(ids, c.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// remove is more careful than the CRI's RemoveImage, which the kubelet calls when it knows what it does.
func (s *Server) remove(ctx context.Context, r RemoveRequest) (RemoveResponse, error) {
	out := RemoveResponse{Names: []string{}}
	if err := named("name", r.Name); err != nil {
		return out, err
	}
	img, err := s.b.Images.Resolve(r.Name)
	if errors.Is(err, imagesvc.ErrNotFound) && r.Force {
		return out, s.b.Images.Remove(ctx, r.Name) // one that is not whole is out of Resolve's sight
	}
	if err != nil {
		return out, err
	}
	if !r.Force {
		if err := s.removable(img, r.Name); err != nil {
			return out, err
		}
	}
	out.ID, out.Names = img.ID, append(append(out.Names, img.Tags...), img.Digests...)
	return out, s.b.Images.Remove(ctx, img.ID.String()) // not by name, which may be another image's by now
}

// removable tells why an image should not go.
func (s *Server) removable(img imagesvc.Image, name string) error {
	if users := s.users(img); len(users) > 0 {
		return fmt.Errorf("%q: %w, containers: %d, such as %.12s; remove them first, or force it", name, ErrInUse, len(users), users[0])
	}
	var full string // "" for an ID that cannot be a name
	if ref, err := registry.Parse(name); err == nil {
		full = ref.String()
	}
	byName := slices.Contains(img.Tags, full) || slices.Contains(img.Digests, full)
	others := slices.DeleteFunc(slices.Clone(img.Tags), func(tag string) bool { return tag == full })
	if byName && len(others) > 0 {
		return fmt.Errorf("%q: %w under other names, which would go with it: %s; remove it by its ID, or force it",
			name, ErrInUse, strings.Join(others, ", "))
	}
	return nil
}

func (s *Server) tag(ctx context.Context, r TagRequest) (Image, error) {
	if err := errors.Join(named("source", r.Source), named("target", r.Target)); err != nil {
		return Image{}, err
	}
	img, err := s.b.Images.Tag(ctx, r.Source, r.Target)
	return encodeImage(img), err
}

func (s *Server) explain(ctx context.Context, r ExplainRequest) (any, error) {
	if err := named("name", r.Name); err != nil {
		return nil, err
	}
	return s.b.Explainer.Explain(ctx, r.Name, r.Probe)
}
