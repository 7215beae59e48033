package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Client calls the crimonitor that listens on a socket. It holds no connection: any number of goroutines may use
// it, and it works again as soon as a monitor answers.
type Client struct {
	socket string
}

// NewClient returns a client for the monitor on the Unix socket at path.
func NewClient(path string) *Client {
	return &Client{socket: path}
}

// Info asks who answers. ErrProtocol: a monitor of another version.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var info Info
	err := c.call(ctx, MethodInfo, nil, &info)
	return info, err
}

// Create makes a container whose init process waits for Start, and returns its PID.
func (c *Client) Create(ctx context.Context, r CreateRequest) (int, error) {
	var resp CreateResponse
	err := c.call(ctx, MethodCreate, r, &resp)
	return resp.PID, err
}

// Start lets the workload of a created container go.
func (c *Client) Start(ctx context.Context, id string) (State, error) {
	var st State
	err := c.call(ctx, MethodStart, IDRequest{ID: id}, &st)
	return st, err
}

// Signal sends a signal. ErrNotRunning: the container has ended.
func (c *Client) Signal(ctx context.Context, r SignalRequest) error {
	return c.call(ctx, MethodSignal, r, nil)
}

// Exec runs a process and waits for its end. The files are its stdin, stdout and stderr; they stay the caller's.
// Cancelling ctx kills the process. ErrTimeout: r.Timeout ran out.
func (c *Client) Exec(ctx context.Context, r ExecRequest, stdin, stdout, stderr *os.File) (int, error) {
	var resp ExecResponse
	if err := c.call(ctx, MethodExec, r, &resp, stdin, stdout, stderr); err != nil {
		return 0, err
	}
	if resp.TimedOut {
		return 0, fmt.Errorf("after %s: %w", r.Timeout, ErrTimeout)
	}
	return resp.ExitCode, nil
}

// ExecTerminal is Exec for a process with a terminal, whose master goes to the socket console, see ReceiveConsole.
func (c *Client) ExecTerminal(ctx context.Context, r ExecRequest, console *os.File) (ExecResponse, error) {
	var resp ExecResponse
	err := c.call(ctx, MethodExec, r, &resp, console)
	return resp, err
}

// ExecStreams is Exec that tells all of the end.
func (c *Client) ExecStreams(ctx context.Context, r ExecRequest, stdin, stdout, stderr *os.File) (ExecResponse, error) {
	var resp ExecResponse
	err := c.call(ctx, MethodExec, r, &resp, stdin, stdout, stderr)
	return resp, err
}

// ReopenLog makes the monitor go on in a new file at the container's log path.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	return c.call(ctx, MethodReopen, IDRequest{ID: id}, nil)
}

// Restore makes a container that has no process before Start, which makes those of a dump.
func (c *Client) Restore(ctx context.Context, r RestoreRequest) error {
	return c.call(ctx, MethodRestore, r, nil)
}

// partLimit is how long the end of a dump that was given up is waited for.
const partLimit = 30 * time.Second

// Dump writes down the state of a container's processes. It also returns after the end of ctx only once nobody works on the
// container and its files any more. ErrNotRunning.
func (c *Client) Dump(ctx context.Context, r DumpRequest) error {
	conn, err := c.send(ctx, MethodDump, r)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { // half of a hang-up cancels the call too
		_ = conn.SetReadDeadline(time.Now().Add(partLimit))
		_ = conn.CloseWrite()
	})()
	err = receive(ctx, conn, nil)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// Delete kills what is left of a container and forgets it: processes, cgroup, runtime state. It is idempotent, and
// works for a container whose own monitor died (then bundle must name its directory).
func (c *Client) Delete(ctx context.Context, id, bundle string) error {
	return c.call(ctx, MethodDelete, IDRequest{ID: id, Bundle: bundle}, nil)
}

// Shutdown ends the monitor. ErrBusy: it has containers and stays.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.call(ctx, MethodShutdown, nil, nil)
}

// Watch calls fn with the state of every container, then with Synced, then with each change, one at a time, until
// ctx ends or the connection breaks; it never returns nil.
func (c *Client) Watch(ctx context.Context, fn func(Event)) error {
	conn, err := c.send(ctx, MethodWatch, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if err := receive(ctx, conn, nil); err != nil {
		return err
	}
	for {
		var event Event
		if _, err := ReadFrame(conn, &event); err != nil {
			return wireError(ctx, err)
		}
		fn(event)
	}
}

func (c *Client) call(ctx context.Context, m Method, params, result any, files ...*os.File) error {
	conn, err := c.send(ctx, m, params, files...)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	return receive(ctx, conn, result)
}

func (c *Client) send(ctx context.Context, m Method, params any, files ...*os.File) (*net.UnixConn, error) {
	var raw json.RawMessage
	if params != nil {
		var err error
		if raw, err = json.Marshal(params); err != nil {
			return nil, fmt.Errorf("encode %s request: %w", m, err)
		}
	}
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, wireError(ctx, err)
	}
	conn := nc.(*net.UnixConn)
	if err := WriteFrame(conn, Request{Protocol: Protocol, Method: m, Params: raw}, files...); err != nil {
		conn.Close()
		return nil, wireError(ctx, err)
	}
	return conn, nil
}

func receive(ctx context.Context, conn *net.UnixConn, result any) error {
	var resp Response
	if _, err := ReadFrame(conn, &resp); err != nil {
		return wireError(ctx, err)
	}
	if resp.Code != "" {
		return &remoteError{message: resp.Message, err: codes[resp.Code]}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(resp.Result, result); err != nil {
		return fmt.Errorf("decode crimonitor's answer: %w", err)
	}
	return nil
}

// wireError tells a broken or absent monitor from a cancelled call.
func wireError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}
