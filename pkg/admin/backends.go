package admin

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/sandbox"
)

// Images holds images; see imagesvc.Service for the contracts.
type Images interface {
	List() []imagesvc.Image
	Resolve(name string) (imagesvc.Image, error)
	Remove(ctx context.Context, name string) error
	Tag(ctx context.Context, source, target string) (imagesvc.Image, error)
}

// Transfers moves images between the node and registries.
type Transfers interface {
	Pull(ctx context.Context, name string, auth registry.Auth) (id string, err error)
	// Progress returns the pulls of a full name that are under way; "" is all.
	Progress(name string) []imagesvc.Progress
	// Push may call report from several goroutines at the same time; report does not block.
	Push(ctx context.Context, source, target string, auth registry.Auth, report func(imagesvc.LayerProgress)) (digest.Digest, error)
}

// Archives moves images between the node and files.
type Archives interface {
	Import(ctx context.Context, r io.Reader, o imagesvc.ImportOptions) ([]imagesvc.Image, error)
	Export(ctx context.Context, w io.Writer, names []string, f imagesvc.Format) error
}

// Committer makes an image of a container's writable layer.
type Committer interface {
	Commit(ctx context.Context, o imagesvc.CommitOptions) (imagesvc.Image, error)
}

// Checker looks for damage, and repairs what can be.
type Checker interface {
	Check(ctx context.Context, repair bool) ([]imagesvc.Finding, error)
}

// Explainer tells where an image would be pulled from, and why, in a value for encoding/json: an object whose "endpoints" are
// in the order in which they would be asked.
type Explainer interface {
	Explain(ctx context.Context, name string, probe bool) (any, error)
}

// Containers are those of the node; see sandbox.Service for the contracts.
type Containers interface {
	Container(id string) (sandbox.ContainerStatus, error)
	Containers() []sandbox.ContainerStatus
}

// Freezer stops the processes of a running container until thaw is called, which must be once.
type Freezer interface {
	Freeze(ctx context.Context, id string) (thaw func(context.Context) error, err error)
}

// Backends is what the server calls. None is nil; a Funcs stands in for what there is not.
type Backends struct {
	Images     Images
	Transfers  Transfers
	Archives   Archives
	Committer  Committer
	Checker    Checker
	Explainer  Explainer
	Containers Containers
	Freezer    Freezer
}

// Funcs has each interface of Backends made of functions. A nil one answers ErrUnsupported, or nothing where there is no
// error to return.
type Funcs struct {
	ListFunc       func() []imagesvc.Image
	ResolveFunc    func(name string) (imagesvc.Image, error)
	RemoveFunc     func(ctx context.Context, name string) error
	TagFunc        func(ctx context.Context, source, target string) (imagesvc.Image, error)
	PullFunc       func(ctx context.Context, name string, auth registry.Auth) (string, error)
	ProgressFunc   func(name string) []imagesvc.Progress
	PushFunc       func(ctx context.Context, source, target string, auth registry.Auth, report func(imagesvc.LayerProgress)) (digest.Digest, error)
	ImportFunc     func(ctx context.Context, r io.Reader, o imagesvc.ImportOptions) ([]imagesvc.Image, error)
	ExportFunc     func(ctx context.Context, w io.Writer, names []string, f imagesvc.Format) error
	CommitFunc     func(ctx context.Context, o imagesvc.CommitOptions) (imagesvc.Image, error)
	CheckFunc      func(ctx context.Context, repair bool) ([]imagesvc.Finding, error)
	ExplainFunc    func(ctx context.Context, name string, probe bool) (any, error)
	ContainerFunc  func(id string) (sandbox.ContainerStatus, error)
	ContainersFunc func() []sandbox.ContainerStatus
	FreezeFunc     func(ctx context.Context, id string) (func(context.Context) error, error)
}

// Backends makes f all of the backends.
func (f *Funcs) Backends() Backends {
	return Backends{Images: f, Transfers: f, Archives: f, Committer: f, Checker: f, Explainer: f, Containers: f, Freezer: f}
}

// List is in Images.
func (f *Funcs) List() []imagesvc.Image {
	if f.ListFunc == nil {
		return nil
	}
	return f.ListFunc()
}

// Resolve is in Images.
func (f *Funcs) Resolve(name string) (imagesvc.Image, error) {
	if f.ResolveFunc == nil {
		return imagesvc.Image{}, ErrUnsupported
	}
	return f.ResolveFunc(name)
}

// Remove is in Images.
func (f *Funcs) Remove(ctx context.Context, name string) error {
	if f.RemoveFunc == nil {
		return ErrUnsupported
	}
	return f.RemoveFunc(ctx, name)
}

// Tag is in Images.
func (f *Funcs) Tag(ctx context.Context, source, target string) (imagesvc.Image, error) {
	if f.TagFunc == nil {
		return imagesvc.Image{}, ErrUnsupported
	}
	return f.TagFunc(ctx, source, target)
}

// Pull is in Transfers.
func (f *Funcs) Pull(ctx context.Context, name string, auth registry.Auth) (string, error) {
	if f.PullFunc == nil {
		return "", ErrUnsupported
	}
	return f.PullFunc(ctx, name, auth)
}

// Progress is in Transfers.
func (f *Funcs) Progress(name string) []imagesvc.Progress {
	if f.ProgressFunc == nil {
		return nil
	}
	return f.ProgressFunc(name)
}

// Push is in Transfers.
func (f *Funcs) Push(
	ctx context.Context, source, target string, auth registry.Auth, report func(imagesvc.LayerProgress),
) (digest.Digest, error) {
	if f.PushFunc == nil {
		return "", ErrUnsupported
	}
	return f.PushFunc(ctx, source, target, auth, report)
}

// Import is in Archives.
func (f *Funcs) Import(ctx context.Context, r io.Reader, o imagesvc.ImportOptions) ([]imagesvc.Image, error) {
	if f.ImportFunc == nil {
		return nil, ErrUnsupported
	}
	return f.ImportFunc(ctx, r, o)
}

// Export is in Archives.
func (f *Funcs) Export(ctx context.Context, w io.Writer, names []string, format imagesvc.Format) error {
	if f.ExportFunc == nil {
		return ErrUnsupported
	}
	return f.ExportFunc(ctx, w, names, format)
}

// Commit is in Committer.
func (f *Funcs) Commit(ctx context.Context, o imagesvc.CommitOptions) (imagesvc.Image, error) {
	if f.CommitFunc == nil {
		return imagesvc.Image{}, ErrUnsupported
	}
	return f.CommitFunc(ctx, o)
}

// Check is in Checker.
func (f *Funcs) Check(ctx context.Context, repair bool) ([]imagesvc.Finding, error) {
	if f.CheckFunc == nil {
		return nil, ErrUnsupported
	}
	return f.CheckFunc(ctx, repair)
}

// Explain is in Explainer.
func (f *Funcs) Explain(ctx context.Context, name string, probe bool) (any, error) {
	if f.ExplainFunc == nil {
		return nil, ErrUnsupported
	}
	return f.ExplainFunc(ctx, name, probe)
}

// Container is in Containers.
func (f *Funcs) Container(id string) (sandbox.ContainerStatus, error) {
	if f.ContainerFunc == nil {
		return sandbox.ContainerStatus{}, ErrUnsupported
	}
	return f.ContainerFunc(id)
}

// Containers is in Containers.
func (f *Funcs) Containers() []sandbox.ContainerStatus {
	if f.ContainersFunc == nil {
		return nil
	}
	return f.ContainersFunc()
}

// Freeze is in Freezer.
func (f *Funcs) Freeze(ctx context.Context, id string) (func(context.Context) error, error) {
	if f.FreezeFunc == nil {
		return nil, ErrUnsupported
	}
	return f.FreezeFunc(ctx, id)
}
