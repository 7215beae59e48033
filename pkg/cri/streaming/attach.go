package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"criserver/pkg/sandbox/monitor"
)

// Attach implements the library's Runtime; the container is the key of an operation.
func (r *runtime) Attach(ctx context.Context, key string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	op, err := operationOf(key)
	if err != nil {
		return err
	}
	if op.Attach == nil {
		return errors.New("the operation is none of attach")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stdout, err := newOutput(ctx, cancel, out)
	if err != nil {
		return err
	}
	defer stdout.close()
	stderr, err := newOutput(ctx, cancel, errOut)
	if err != nil {
		return err
	}
	defer stderr.close()
	a, err := r.monitor.Attach(ctx, monitor.AttachRequest{ID: op.Attach.Container, Stdin: in != nil}, stdout.w, stderr.w)
	if err != nil {
		return err
	}
	defer a.Close()
	_, _ = stdout.w.Close(), stderr.w.Close() // the monitor has its own: the end is when it closes them
	if a.Input != nil {
		defer a.Input.Close()
		if a.Terminal {
			go follow(a.Input, resize)
		}
		if in != nil {
			go feed(a, in)
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
		return fmt.Errorf("the output of container %s was not read", op.Attach.Container)
	}
	if !stdout.finish() || !stderr.finish() {
		hangUp(ctx)
	}
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
