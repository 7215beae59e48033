package streaming

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"reflect"
	"strings"
	"syscall"
	"time"
)

const (
	// startLimit bounds the start of a server.
	startLimit = 15 * time.Second
	// maxAnswer is how much a server may answer, in bytes.
	maxAnswer = 1 << 20
	// attempts at a server that ends just now.
	attempts = 3
)

// Client is the daemon's side. Its methods may be called at the same time.
type Client struct {
	settings Settings
	start    func(ctx context.Context, answers func(context.Context) error) error
	http     *http.Client
	// starting is held, by a value in it, by the one who starts a server.
	starting chan struct{}
}

// NewClient returns a client for the server with the settings. start starts one that does not run, and returns once answers, which
// asks it, has no error, or it cannot be started.
func NewClient(s Settings, start func(ctx context.Context, answers func(context.Context) error) error) *Client {
	return &Client{settings: s, start: start, starting: make(chan struct{}, 1), http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // a server may be another one the next time
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.Control)
		},
	}}}
}

// URL returns the URL for an operation, good once and for a minute. ErrUnavailable, ErrBusy.
func (c *Client) URL(ctx context.Context, op Operation) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	body, err := json.Marshal(op)
	if err != nil {
		return "", fmt.Errorf("encode operation: %w", err)
	}
	for range attempts {
		if err := c.ensure(ctx); err != nil {
			return "", err
		}
		var url string
		err = c.call(ctx, http.MethodPost, "/operations", body, &url)
		if !errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
			return url, err
		}
	}
	return "", err
}

// Drain ends the server, once its last session has ended. It tells whether there is none to be waited for.
func (c *Client) Drain(ctx context.Context) (ends bool, err error) {
	err = c.call(ctx, http.MethodPost, "/drain", nil, &ends)
	switch {
	case errors.Is(err, ErrUnavailable):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("drain the stream server: %w", err)
	}
	return ends, nil
}

// ensure sees to it that a server with the right settings answers.
func (c *Client) ensure(ctx context.Context) error {
	select {
	case c.starting <- struct{}{}:
		defer func() { <-c.starting }()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	}
	var info Info
	err := c.call(ctx, http.MethodGet, "/info", nil, &info)
	if err == nil && reflect.DeepEqual(info.Settings, c.settings) {
		return nil
	}
	if err == nil {
		if _, err := c.Drain(ctx); err != nil {
			return err
		}
	}
	err = c.start(ctx, func(ctx context.Context) error { return c.call(ctx, http.MethodGet, "/info", nil, &info) })
	if err != nil {
		return fmt.Errorf("%w: start the stream server: %w", ErrUnavailable, err)
	}
	return nil
}

func (c *Client) call(ctx context.Context, method, path string, body []byte, result any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://stream-server"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		return fmt.Errorf("ask the stream server: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%w: read its answer: %w", ErrUnavailable, err)
	}
	text := strings.TrimSpace(string(data))
	switch resp.StatusCode {
	case http.StatusOK:
		if err := json.Unmarshal(data, result); err != nil {
			return fmt.Errorf("decode the stream server's answer: %w", err)
		}
		return nil
	case http.StatusServiceUnavailable:
		return fmt.Errorf("%w: %s", ErrUnavailable, text)
	case http.StatusTooManyRequests:
		return fmt.Errorf("%w: %s", ErrBusy, text)
	}
	return fmt.Errorf("stream server: %s", text)
}
