package admin

import (
	"context"
	"errors"
	"strings"
	"testing"

	"criserver/pkg/imagesvc"
	"criserver/pkg/sandbox"
	"criserver/pkg/sandbox/ledger"
)

func TestCommit(t *testing.T) {
	img := testImage()
	var steps []string
	status := sandbox.ContainerStatus{ID: "0123456789abcdef", ImageID: img.ID.String()}
	var freezeErr, thawErr, commitErr error
	var options imagesvc.CommitOptions
	c, _ := serve(t, &Funcs{
		ResolveFunc: resolve,
		ContainerFunc: func(id string) (sandbox.ContainerStatus, error) {
			if id != "0123" {
				return sandbox.ContainerStatus{}, sandbox.ErrNotFound
			}
			return status, nil
		},
		FreezeFunc: func(_ context.Context, id string) (func(context.Context) error, error) {
			steps = append(steps, "freeze "+id)
			return func(ctx context.Context) error {
				steps = append(steps, "thaw")
				return errors.Join(ctx.Err(), thawErr)
			}, freezeErr
		},
		CommitFunc: func(_ context.Context, o imagesvc.CommitOptions) (imagesvc.Image, error) {
			steps, options = append(steps, "commit"), o
			return img, commitErr
		},
	})
	frozen := []string{"freeze 0123456789abcdef", "commit", "thaw"}
	boom := errors.New("boom")
	for name, tc := range map[string]struct {
		phase                ledger.ContainerPhase
		image                string
		noPause              bool
		freeze, commit, thaw error
		steps                []string
		err                  error
		text                 string
	}{
		"running":            {phase: sandbox.ContainerRunning, steps: frozen},
		"running, no pause":  {phase: sandbox.ContainerRunning, noPause: true, steps: []string{"commit"}},
		"created":            {phase: sandbox.ContainerCreated, steps: []string{"commit"}},
		"exited":             {phase: sandbox.ContainerExited, steps: []string{"commit"}},
		"creating":           {phase: sandbox.ContainerCreating, err: sandbox.ErrState, text: "creating"},
		"removing":           {phase: sandbox.ContainerRemoving, err: sandbox.ErrState, text: "removing"},
		"image gone":         {phase: sandbox.ContainerExited, image: "sha256:x", err: imagesvc.ErrNotFound, text: "pull a:1 again"},
		"cannot be frozen":   {phase: sandbox.ContainerRunning, freeze: sandbox.ErrUnavailable, steps: frozen[:1], err: sandbox.ErrUnavailable},
		"commit fails":       {phase: sandbox.ContainerRunning, commit: imagesvc.ErrInvalid, steps: frozen, err: imagesvc.ErrInvalid},
		"cannot be thawed":   {phase: sandbox.ContainerRunning, thaw: boom, steps: frozen, text: "is still paused: boom"},
		"neither of the two": {phase: sandbox.ContainerRunning, commit: imagesvc.ErrInvalid, thaw: boom, steps: frozen, err: imagesvc.ErrInvalid, text: "boom"},
	} {
		steps, freezeErr, commitErr, thawErr = nil, tc.freeze, tc.commit, tc.thaw
		status.Phase, status.ImageID, status.Config.ImageName = tc.phase, img.ID.String(), "a:1"
		if tc.image != "" {
			status.ImageID = tc.image
		}
		got, err := c.Commit(within(t), CommitRequest{
			Container: "0123", Name: "n:1", Author: "me", Comment: "why", Changes: []string{"CMD x"}, NoPause: tc.noPause,
		})
		if tc.err != nil && !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil && tc.text == "") || err != nil && !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: got %v", name, err)
		}
		if err == nil {
			check(t, name, got, err, wireImage())
			check(t, name, options, err, imagesvc.CommitOptions{
				Snapshot: status.ID, Base: img.ID, Name: "n:1", Author: "me", Comment: "why", Changes: []string{"CMD x"},
			})
		}
		check(t, name+": steps", steps, nil, tc.steps)
	}
	if _, err := c.Commit(within(t), CommitRequest{Container: "nosuch", Name: "n"}); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestThawAfterTheClientHasGone(t *testing.T) {
	started, thawed := make(chan struct{}), make(chan error, 1)
	img := testImage()
	c, _ := serve(t, &Funcs{
		ResolveFunc: resolve,
		ContainerFunc: func(string) (sandbox.ContainerStatus, error) {
			return sandbox.ContainerStatus{ID: "c", ImageID: img.ID.String(), Phase: sandbox.ContainerRunning}, nil
		},
		FreezeFunc: func(context.Context, string) (func(context.Context) error, error) {
			return func(ctx context.Context) error { thawed <- ctx.Err(); return nil }, nil
		},
		CommitFunc: func(ctx context.Context, _ imagesvc.CommitOptions) (imagesvc.Image, error) {
			close(started)
			<-ctx.Done()
			return imagesvc.Image{}, ctx.Err()
		},
	})
	ctx, cancel := context.WithCancel(within(t))
	go func() { <-started; cancel() }()
	if _, err := c.Commit(ctx, CommitRequest{Container: "c", Name: "n"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := <-thawed; err != nil {
		t.Errorf("thawed with %v", err)
	}
}
