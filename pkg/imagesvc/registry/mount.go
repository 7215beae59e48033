package registry

import (
	"context"
	"fmt"
	"net/http"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Mount tells whether the repository has a blob, or has it now that it was asked to take it from one of the other repositories
// of the same registry ("library/busybox").
func (p *Pusher) Mount(ctx context.Context, d ocispec.Descriptor, from []string) (bool, error) {
	there, err := p.Exists(ctx, d.Digest)
	if there || err != nil {
		return there, err
	}
	err = p.repo.each(ctx, fmt.Sprintf("mount blob %s in %s", d.Digest, p.repo.ref.Name()), func(e *endpoint) error {
		u := &upload{pusher: p, desc: d}
		for _, repo := range from {
			if repo == p.repo.ref.Path() {
				continue
			}
			mounted, err := u.begin(ctx, e, repo)
			if u.session != nil {
				u.abandon(ctx, e)
			}
			if mounted || err != nil {
				there = mounted
				return err
			}
		}
		return nil
	})
	return there, err
}

// abandon tells the registry that no bytes will come (distribution-spec, "Cancel a blob upload"). It forgets uploads by itself
// too, after some time.
func (u *upload) abandon(ctx context.Context, e *endpoint) {
	req, err := http.NewRequestWithContext(u.pusher.scoped(ctx, e), http.MethodDelete, u.session.String(), http.NoBody)
	if err != nil {
		return
	}
	if resp, err := sent(e, req); err == nil {
		discard(resp)
	}
}
