package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"time"
)

// Attachment is a client's connection to the streams of a container.
type Attachment struct {
	// Input is the container's stdin, or the master of its terminal; nil if there is none, or it was not asked for. It is
	// the caller's.
	Input    *os.File
	Terminal bool

	conn *net.UnixConn
}

// Attach connects to a container. What it prints from now on goes to stdout and stderr, which stay the caller's.
// ErrNotFound, ErrNotRunning.
func (c *Client) Attach(ctx context.Context, r AttachRequest, stdout, stderr *os.File) (*Attachment, error) {
	conn, err := c.send(ctx, MethodAttach, r, stdout, stderr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	a := &Attachment{conn: conn}
	if err := a.begin(); err != nil {
		conn.Close()
		return nil, wireError(ctx, err)
	}
	return a, nil
}

func (a *Attachment) begin() error {
	var resp Response
	files, err := ReadFrame(a.conn, &resp)
	if err != nil {
		return err
	}
	if resp.Code != "" {
		CloseFiles(files)
		return &remoteError{message: resp.Message, err: codes[resp.Code]}
	}
	var answer AttachResponse
	if err := json.Unmarshal(resp.Result, &answer); err != nil {
		CloseFiles(files)
		return fmt.Errorf("decode crimonitor's answer: %w", err)
	}
	a.Terminal = answer.Terminal
	if len(files) > 0 {
		a.Input = files[0]
		CloseFiles(files[1:])
	}
	return nil
}

// Wait returns when the output has ended and all of it has been written, or the monitor has dropped this client.
func (a *Attachment) Wait(ctx context.Context) (AttachEnd, error) {
	defer context.AfterFunc(ctx, func() { _ = a.conn.SetDeadline(time.Unix(1, 0)) })()
	var end AttachEnd
	if _, err := ReadFrame(a.conn, &end); err != nil {
		return end, wireError(ctx, err)
	}
	return end, nil
}

// EndInput says that the client's input has ended, and the container's with it if that is to be so (CreateRequest.StdinOnce).
// The client has closed Input before.
func (a *Attachment) EndInput() error {
	_, err := a.conn.Write([]byte{endInput})
	return err
}

// endInput is the one thing that a client sends after its request.
const endInput = 'E'

// Close detaches. What was sent before is not lost; Input stays open.
func (a *Attachment) Close() error { return a.conn.Close() }
