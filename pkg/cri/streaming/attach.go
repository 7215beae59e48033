package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"

	"criserver/pkg/sandbox/monitor"
)

// attach connects a client to a container, until one of them ends.
func (r *runtime) attach(ctx context.Context, op Attach, s streams) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stdout, err := newOutput(cancel, s.out)
	if err != nil {
		return err
	}
	defer stdout.close()
	stderr, err := newOutput(cancel, s.errOut)
	if err != nil {
		return err
	}
	defer stderr.close()
	a, err := r.monitor.Attach(ctx, monitor.AttachRequest{ID: op.Container, Stdin: s.in != nil}, stdout.w, stderr.w)
	if err != nil {
		return err
	}
	defer a.Close()
	_, _ = stdout.w.Close(), stderr.w.Close() // the monitor has its own: the end is when it closes them
	if a.Input != nil {
		defer a.Input.Close()
		if a.Terminal {
			go follow(a.Input, s.resize)
		}
		if s.in != nil {
			go feed(a, s.in)
		}
	}
	end, err := a.Wait(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return errors.New("the client has gone")
	case err != nil:
		return err
	case end.Lagged:
		hangUp(ctx)
		return fmt.Errorf("the output of container %s was not read", op.Container)
	}
	stdout.finish(ctx)
	stderr.finish(ctx)
	return nil
}

// feed gives the container what the client types. The end of that is the end of the container's input, if it wants that.
func feed(a *monitor.Attachment, in io.Reader) {
	_, _ = io.Copy(a.Input, in)
	if !a.Terminal {
		_ = a.Input.Close()
		_ = a.EndInput()
	}
}
