package admin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
)

func layer(fetched int64) []imagesvc.LayerProgress {
	return []imagesvc.LayerProgress{{Digest: digest.FromString("blob"), State: imagesvc.LayerFetching, Size: 10, Fetched: fetched}}
}

func TestPullTellsProgress(t *testing.T) {
	var fetched atomic.Int64
	var asked atomic.Value
	goOn := make(chan struct{})
	c, _ := serve(t, &Funcs{
		PullFunc: func(ctx context.Context, name string, auth registry.Auth) (string, error) {
			if name != "a:1" || auth != (registry.Auth{Username: "u", Password: "p"}) {
				return "", errors.New("wrong arguments")
			}
			for range 3 {
				select {
				case <-goOn:
					fetched.Add(1)
				case <-ctx.Done():
					return "", ctx.Err()
				}
			}
			return "sha256:id", nil
		},
		ProgressFunc: func(name string) []imagesvc.Progress {
			asked.Store(name)
			if fetched.Load() == 3 {
				return nil // it has ended
			}
			return []imagesvc.Progress{{Ref: name, Layers: layer(fetched.Load())}}
		},
	})
	var seen []int64
	var last imagesvc.LayerState
	id, err := c.Pull(within(t), PullRequest{Name: "a:1", Auth: Auth{Username: "u", Password: "p"}}, func(e Event) {
		seen, last = append(seen, e.Layers[0].Fetched), e.Layers[0].State
		if e.Layers[0].Fetched < 3 {
			goOn <- struct{}{} // the pull goes on only because the event came
		}
	})
	check(t, "id", id, err, "sha256:id")
	check(t, "progress", seen, nil, []int64{0, 1, 2, 10})
	check(t, "state at the end", last, nil, imagesvc.LayerDone)
	check(t, "name", asked.Load().(string), nil, "a:1")
}

func TestPushTellsProgress(t *testing.T) {
	c, _ := serve(t, &Funcs{PushFunc: func(
		_ context.Context, source, target string, auth registry.Auth, report func(imagesvc.LayerProgress),
	) (digest.Digest, error) {
		if source != "a:1" || auth.IdentityToken != "token" {
			return "", errors.New("wrong arguments")
		}
		report(imagesvc.LayerProgress{Digest: "sha256:1", State: imagesvc.LayerWaiting})
		report(imagesvc.LayerProgress{Digest: "sha256:2", State: imagesvc.LayerExists})
		report(imagesvc.LayerProgress{Digest: "sha256:1", State: imagesvc.LayerDone})
		return digest.FromString(target), nil
	}})
	for _, target := range []string{"", "b:2"} {
		var last Event
		d, err := c.Push(within(t), PushRequest{Source: "a:1", Target: target, Auth: Auth{IdentityToken: "token"}},
			func(e Event) { last = e })
		if target == "" {
			target = "a:1"
		}
		check(t, "digest", d, err, digest.FromString(target))
		check(t, "last", last.Layers, nil, []imagesvc.LayerProgress{
			{Digest: "sha256:1", State: imagesvc.LayerDone}, {Digest: "sha256:2", State: imagesvc.LayerExists},
		})
	}
}

func TestErrorAfterEvents(t *testing.T) {
	goOn := make(chan struct{})
	c, _ := serve(t, &Funcs{
		PullFunc: func(context.Context, string, registry.Auth) (string, error) {
			<-goOn
			return "", registry.ErrStalled
		},
		ProgressFunc: func(string) []imagesvc.Progress { return []imagesvc.Progress{{Layers: layer(1)}} },
	})
	_, err := c.Pull(within(t), PullRequest{Name: "a"}, func(Event) { close(goOn) })
	if !errors.Is(err, registry.ErrStalled) || err.Error() != registry.ErrStalled.Error() {
		t.Errorf("got %v", err)
	}
}

// untilCancelled is an operation that ends with its context only.
func untilCancelled(started chan<- struct{}, ended chan<- error) func(context.Context) error {
	return func(ctx context.Context) error {
		close(started)
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return ctx.Err()
	}
}

func TestClientThatGoesCancels(t *testing.T) {
	type call func(ctx context.Context, c *Client) error
	wait := func(f *Funcs, op func(context.Context) error) {
		f.PullFunc = func(ctx context.Context, _ string, _ registry.Auth) (string, error) { return "", op(ctx) }
		f.CheckFunc = func(ctx context.Context, _ bool) ([]imagesvc.Finding, error) { return nil, op(ctx) }
		f.ExplainFunc = func(ctx context.Context, _ string, _ bool) (any, error) { return nil, op(ctx) }
		f.ExportFunc = func(ctx context.Context, w io.Writer, _ []string, _ imagesvc.Format) error {
			_, _ = io.WriteString(w, "begin")
			return op(ctx)
		}
		f.ImportFunc = func(ctx context.Context, r io.Reader, _ imagesvc.ImportOptions) ([]imagesvc.Image, error) {
			go io.Copy(io.Discard, r)
			return nil, op(ctx)
		}
	}
	never, w := io.Pipe()
	defer w.Close()
	for name, do := range map[string]call{
		"pull": func(ctx context.Context, c *Client) error {
			_, err := c.Pull(ctx, PullRequest{Name: "a"}, nil)
			return err
		},
		"check":   func(ctx context.Context, c *Client) error { _, err := c.Check(ctx, false); return err },
		"explain": func(ctx context.Context, c *Client) error { _, err := c.Explain(ctx, "a", true); return err },
		"export": func(ctx context.Context, c *Client) error {
			return c.Export(ctx, io.Discard, ExportRequest{Names: []string{"a"}})
		},
		"import": func(ctx context.Context, c *Client) error {
			_, err := c.Import(ctx, io.MultiReader(strings.NewReader("x"), never), "", func(Event) {})
			return err
		},
		"import, all sent": func(ctx context.Context, c *Client) error {
			_, err := c.Import(ctx, strings.NewReader("x"), "", func(Event) {})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			started, ended := make(chan struct{}), make(chan error, 1)
			f := &Funcs{}
			wait(f, untilCancelled(started, ended))
			c, _ := serve(t, f)
			ctx, cancel := context.WithCancel(within(t))
			done := make(chan error, 1)
			go func() { done <- do(ctx, c) }()
			<-started
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("the client got %v", err)
			}
			select {
			case <-ended:
			case <-time.After(limit):
				t.Error("the operation goes on")
			}
		})
	}
}

func TestImportStreamsBothWays(t *testing.T) {
	const part = "0123456789"
	c, _ := serve(t, &Funcs{ImportFunc: func(_ context.Context, r io.Reader, o imagesvc.ImportOptions) ([]imagesvc.Image, error) {
		if o.Name != "a/b:1&x" {
			return nil, errors.New("wrong name")
		}
		n, err := io.Copy(io.Discard, r)
		img := testImage()
		img.Size = n
		return []imagesvc.Image{img}, err
	}})
	r, w := io.Pipe()
	go io.WriteString(w, part)
	sent := 1
	images, err := c.Import(within(t), r, "a/b:1&x", func(e Event) {
		if e.Read != int64(sent*len(part)) {
			return
		}
		if sent == 4 {
			w.Close()
			return
		}
		sent++
		go io.WriteString(w, part) // only now: the daemon has told that it has the part before
	})
	want := wireImage()
	want.Size = 4 * int64(len(part))
	check(t, "images", images, err, []Image{want})
}

func TestImportFailsEarly(t *testing.T) {
	c, _ := serve(t, &Funcs{ImportFunc: func(_ context.Context, r io.Reader, _ imagesvc.ImportOptions) ([]imagesvc.Image, error) {
		_, err := io.ReadFull(r, make([]byte, 100))
		return nil, errors.Join(err, imagesvc.ErrInvalid)
	}})
	_, err := c.Import(within(t), io.LimitReader(zeros{}, 1<<40), "", func(Event) {})
	if !errors.Is(err, imagesvc.ErrInvalid) || err.Error() != imagesvc.ErrInvalid.Error() {
		t.Errorf("got %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestImportOfAnUnreadableFile(t *testing.T) {
	got := make(chan error, 1)
	c, _ := serve(t, &Funcs{ImportFunc: func(_ context.Context, r io.Reader, _ imagesvc.ImportOptions) ([]imagesvc.Image, error) {
		_, err := io.Copy(io.Discard, r)
		got <- err
		return nil, err
	}})
	broken := errors.New("input/output error")
	r := io.MultiReader(strings.NewReader("half an archive"), failing{broken})
	if _, err := c.Import(within(t), r, "", func(Event) {}); !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "read archive: ") {
		t.Errorf("got %v", err)
	}
	if err := <-got; err == nil {
		t.Error("half an archive was taken for a whole one")
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error)  { return 0, f.err }
func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestExport(t *testing.T) {
	var fail error
	var archive []byte
	c, _ := serve(t, &Funcs{ExportFunc: func(_ context.Context, w io.Writer, names []string, f imagesvc.Format) error {
		if strings.Join(names, " ") != "a b" || f != imagesvc.FormatDocker {
			return errors.New("wrong arguments")
		}
		if len(archive) > 0 {
			if _, err := w.Write(archive); err != nil {
				return err
			}
		}
		return fail
	}})
	req := ExportRequest{Names: []string{"a", "b"}, Format: imagesvc.FormatDocker}
	large := bytes.Repeat([]byte("x"), 1<<20)
	for _, archive = range [][]byte{nil, []byte("small"), large} {
		for _, fail = range []error{nil, imagesvc.ErrNotFound, errors.New("with\nlines and ünïcode")} {
			var out bytes.Buffer
			err := c.Export(within(t), &out, req)
			if !bytes.Equal(out.Bytes(), archive) {
				t.Errorf("got %d bytes, want %d", out.Len(), len(archive))
			}
			if (err == nil) != (fail == nil) || err != nil && err.Error() != fail.Error() {
				t.Errorf("%d bytes: got %v, want %v", len(archive), err, fail)
			}
		}
	}
	fail, archive = nil, large
	full := errors.New("no space left")
	if err := c.Export(within(t), failing{full}, req); !errors.Is(err, full) || !strings.HasPrefix(err.Error(), "write archive: ") {
		t.Errorf("got %v", err)
	}
}

// half answers one request with the beginning of an answer, and closes the connection.
func half(t *testing.T, answer string) *Client {
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Read(make([]byte, 64<<10))
		_, _ = io.WriteString(conn, answer)
		_ = conn.Close()
	}()
	return NewClient(path)
}

func TestCutOffAnswers(t *testing.T) {
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Error\r\n\r\n"
	for name, answer := range map[string]string{
		"nothing":        "",
		"header":         "HTTP/1.1 200 OK\r\n",
		"in a chunk":     chunked + "5\r\nbeg",
		"between chunks": chunked + "5\r\nbegin\r\n",
		"no trailer":     chunked + "5\r\nbegin\r\n0\r\n\r\n",
		"half a trailer": chunked + "5\r\nbegin\r\n0\r\nX-Error: {\r\n\r\n",
	} {
		if err := half(t, answer).Export(within(t), io.Discard, ExportRequest{Names: []string{"a"}}); !errors.Is(err, ErrCutOff) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for name, answer := range map[string]string{
		"no event":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"no result":   "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{\"read\":1}\n",
		"half a line": "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{\"rea",
	} {
		if _, err := half(t, answer).Pull(within(t), PullRequest{Name: "a"}, func(Event) {}); !errors.Is(err, ErrCutOff) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestCheck(t *testing.T) {
	findings := []imagesvc.Finding{{Kind: "layer", Name: "sha256:x", Problem: "gone", Images: []digest.Digest{"sha256:i"}}}
	c, _ := serve(t, &Funcs{CheckFunc: func(_ context.Context, repair bool) ([]imagesvc.Finding, error) {
		if repair {
			return nil, nil
		}
		return findings, nil
	}})
	got, err := c.Check(within(t), false)
	check(t, "check", got, err, findings)
	got, err = c.Check(within(t), true)
	check(t, "repair", got, err, []imagesvc.Finding{})
}

func TestStopCancelsWhatDoesNotEnd(t *testing.T) {
	for _, name := range []string{"pull", "import"} {
		started, ended := make(chan struct{}), make(chan error, 1)
		op := untilCancelled(started, ended)
		c, s := serve(t, &Funcs{
			PullFunc: func(ctx context.Context, _ string, _ registry.Auth) (string, error) { return "", op(ctx) },
			ImportFunc: func(ctx context.Context, r io.Reader, _ imagesvc.ImportOptions) ([]imagesvc.Image, error) {
				close(started)
				_, err := io.Copy(io.Discard, r)
				ended <- context.Cause(ctx)
				return nil, err
			},
		})
		never, w := io.Pipe()
		done := make(chan error, 1)
		go func() {
			var err error
			if name == "pull" {
				_, err = c.Pull(within(t), PullRequest{Name: "a"}, nil)
			} else {
				_, err = c.Import(within(t), io.MultiReader(strings.NewReader("x"), never), "", func(Event) {})
			}
			done <- err
		}()
		<-started
		ctx, cancel := context.WithCancel(within(t))
		cancel()
		if err := s.Stop(ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := <-ended; !errors.Is(err, ErrStopping) {
			t.Errorf("%s ended with %v", name, err)
		}
		if err := <-done; !errors.Is(err, ErrStopping) || !strings.Contains(err.Error(), "criserver stops") {
			t.Errorf("%s: the client got %v", name, err)
		}
		w.Close()
	}
}
