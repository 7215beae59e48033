package imagesvc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
	"criserver/pkg/snapshot"
)

// TestGarbage has pulls, removals, containers, exports and collections at the same time: what anybody uses is never collected,
// and when nobody uses anything, nothing is left.
func TestGarbage(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	m := registrytest.NewMemory(t)
	const images, layers = 5, 6
	pool := make([]registrytest.Layer, layers)
	for i := range pool {
		pool[i] = layer(t, fmt.Sprint("layer", i))
	}
	for i := range images {
		m.Add("a/b", fmt.Sprint("v", i), image(pool[i], pool[(i+1)%layers], pool[(i+3)%layers]))
	}
	n := newNode(t, direct(m))
	n.CleanUp(t.Context())
	var all sync.WaitGroup
	for worker := range 6 {
		rng := rand.New(rand.NewPCG(seed, uint64(worker)))
		all.Go(func() {
			for step := range 40 {
				name := fmt.Sprintf("%s/a/b:v%d", m.Host, rng.IntN(images))
				var err error
				switch rng.IntN(6) {
				case 0, 1:
					_, err = n.Pull(t.Context(), name, registry.Auth{})
				case 2:
					err = n.Remove(t.Context(), name)
				case 3:
					err = n.Collect(t.Context())
				case 4:
					err = n.Export(t.Context(), io.Discard, []string{name}, imagesvc.FormatOCI)
				case 5:
					err = n.container(t.Context(), name, fmt.Sprintf("c%d-%d", worker, step))
				}
				if err != nil && !errors.Is(err, imagesvc.ErrNotFound) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	all.Wait()
	for _, img := range n.List() {
		for i := range img.DiffIDs {
			if _, err := n.layers.Layer(t.Context(), img.DiffIDs[:i+1]); err != nil {
				t.Errorf("of an image that is listed: %v", err)
			}
		}
		if err := n.Remove(t.Context(), img.ID.String()); err != nil {
			t.Error(err)
		}
	}
	n.wantClean(t)
}

// container uses an image as a container does. It is imagesvc.ErrNotFound if the image is not there, or goes before the
// container has its snapshot.
func (n *node) container(ctx context.Context, name, key string) error {
	img, err := n.Resolve(name)
	if err != nil {
		return err
	}
	mounts, err := n.layers.Prepare(ctx, key, img.DiffIDs)
	if errors.Is(err, snapshot.ErrNotFound) {
		return imagesvc.ErrNotFound
	}
	if err != nil {
		return err
	}
	target, err := os.MkdirTemp("", "garbage")
	if err != nil {
		return err
	}
	defer os.Remove(target)
	if err := snapshot.MountAll(mounts, target); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	defer func() { _ = snapshot.Unmount(target) }()
	time.Sleep(time.Millisecond) // others go on
	files, err := os.ReadDir(target)
	if err != nil || len(files) < 3 {
		return fmt.Errorf("a container of 3 layers sees %d files: %w", len(files), err)
	}
	for _, f := range files {
		if data, err := os.ReadFile(filepath.Join(target, f.Name())); err != nil || len(data) == 0 {
			return fmt.Errorf("file %s of %d bytes: %w", f.Name(), len(data), err)
		}
	}
	return errors.Join(snapshot.Unmount(target), n.layers.Remove(ctx, key))
}
