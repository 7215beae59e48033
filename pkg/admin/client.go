package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc"
)

// Client asks a daemon. Its errors are those of the daemon, with their text; ErrNoDaemon, ErrCutOff; and that of a ctx that
// has ended, which ends the operation in the daemon too. Its methods may be called at the same time.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client for the daemon on a socket, which need not be there yet. It holds nothing between calls.
func NewClient(socket string) *Client {
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableCompression: true, // nothing is saved on a socket
		// A connection is cheap, and one that the daemon closes as it is taken again is an error of a call.
		DisableKeepAlives: true,
	}}}
}

// List returns all images, the newest first.
func (c *Client) List(ctx context.Context) ([]Image, error) {
	var resp ListResponse
	r, err := c.do(ctx, http.MethodGet, "/v1/images", nil)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	err = c.decode(ctx, r, &resp)
	return resp.Images, err
}

// Inspect returns all that is known of an image.
func (c *Client) Inspect(ctx context.Context, name string) (img Image, err error) {
	err = c.ask(ctx, "inspect", InspectRequest{name}, &img)
	return img, err
}

// Remove removes an image with all its names.
func (c *Client) Remove(ctx context.Context, r RemoveRequest) (resp RemoveResponse, err error) {
	err = c.ask(ctx, "remove", r, &resp)
	return resp, err
}

// Tag gives an image another name.
func (c *Client) Tag(ctx context.Context, source, target string) (img Image, err error) {
	err = c.ask(ctx, "tag", TagRequest{source, target}, &img)
	return img, err
}

// Explain tells where an image would be pulled from, in a JSON object.
func (c *Client) Explain(ctx context.Context, name string, probe bool) (explanation json.RawMessage, err error) {
	err = c.ask(ctx, "explain", ExplainRequest{name, probe}, &explanation)
	return explanation, err
}

// Pull pulls an image and returns its ID. The events' Layers tell of its progress; on is called by one goroutine.
func (c *Client) Pull(ctx context.Context, r PullRequest, on func(Event)) (string, error) {
	var resp PullResponse
	err := c.operate(ctx, "pull", r, on, &resp)
	return resp.ID, err
}

// Push pushes an image and returns the digest that it has in the registry. on is as for Pull.
func (c *Client) Push(ctx context.Context, r PushRequest, on func(Event)) (digest.Digest, error) {
	var resp PushResponse
	err := c.operate(ctx, "push", r, on, &resp)
	return resp.Digest, err
}

// Commit makes an image of a container's writable layer.
func (c *Client) Commit(ctx context.Context, r CommitRequest) (img Image, err error) {
	err = c.operate(ctx, "commit", r, func(Event) {}, &img)
	return img, err
}

// Check looks for damage.
func (c *Client) Check(ctx context.Context, repair bool) ([]imagesvc.Finding, error) {
	var resp CheckResponse
	err := c.operate(ctx, "check", CheckRequest{repair}, func(Event) {}, &resp)
	return resp.Findings, err
}

// Import takes an archive in; name is as in imagesvc.ImportOptions. The events' Read tells of its progress. When it fails, a
// Read of archive may still be under way.
func (c *Client) Import(ctx context.Context, archive io.Reader, name string, on func(Event)) ([]Image, error) {
	path := "/v1/images/import"
	if name != "" {
		path += "?" + url.Values{importNameKey: {name}}.Encode()
	}
	source := newSource(archive)
	defer source.Close()
	defer context.AfterFunc(ctx, func() { source.Close() })()
	r, err := c.do(ctx, http.MethodPost, path, source)
	if err == nil {
		defer r.Body.Close()
		var resp ImportResponse
		if err = c.follow(ctx, r, on, &resp); err == nil {
			return resp.Images, nil
		}
	}
	if failed := source.failed(); failed != nil {
		return nil, fmt.Errorf("read archive: %w", failed)
	}
	return nil, err
}

// Export writes an archive to w. After an error w has a part of it, or nothing.
func (c *Client) Export(ctx context.Context, w io.Writer, req ExportRequest) error {
	r, err := c.post(ctx, "export", req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	target := &target{w: w}
	if _, err := io.Copy(target, r.Body); err != nil {
		if target.err != nil {
			return fmt.Errorf("write archive: %w", target.err)
		}
		return c.failed(ctx, err)
	}
	var end Error
	if json.Unmarshal([]byte(r.Trailer.Get(errorTrailer)), &end) != nil {
		return ErrCutOff
	}
	if end != (Error{}) {
		return &end
	}
	return nil
}

// ask makes a short call.
func (c *Client) ask(ctx context.Context, call string, req, into any) error {
	r, err := c.post(ctx, call, req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	return c.decode(ctx, r, into)
}

// operate makes a long one.
func (c *Client) operate(ctx context.Context, call string, req any, on func(Event), into any) error {
	r, err := c.post(ctx, call, req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	return c.follow(ctx, r, on, into)
}

func (c *Client) post(ctx context.Context, call string, req any) (*http.Response, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	return c.do(ctx, http.MethodPost, "/v1/images/"+call, bytes.NewReader(body))
}

// do returns an answer that is a success, whose body is the caller's to close.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://criserver"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.failed(ctx, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, decodeError(resp)
	}
	return resp, nil
}

func (c *Client) decode(ctx context.Context, r *http.Response, into any) error {
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		return c.failed(ctx, err)
	}
	return nil
}

// follow reads events up to the last one.
func (c *Client) follow(ctx context.Context, r *http.Response, on func(Event), into any) error {
	for d := json.NewDecoder(r.Body); ; {
		var e Event
		if err := d.Decode(&e); err != nil {
			return c.failed(ctx, err)
		}
		switch {
		case e.Error != nil:
			return e.Error
		case e.Result != nil:
			if err := json.Unmarshal(e.Result, into); err != nil {
				return fmt.Errorf("decode result: %w", err)
			}
			return nil
		}
		on(e)
	}
}

// failed sorts what went wrong with the connection.
func (c *Client) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return fmt.Errorf("%w on %s: %w", ErrNoDaemon, c.socket, op.Err)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op) {
		return fmt.Errorf("%w (%w)", ErrCutOff, err)
	}
	return fmt.Errorf("ask criserver: %w", err)
}
