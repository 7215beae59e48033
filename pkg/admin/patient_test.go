package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"criserver/pkg/imagesvc"
)

// TestHalfRequests sends the beginning of requests, and then ends the sending side, or does nothing more.
func TestHalfRequests(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer((&Funcs{ImportFunc: func(_ context.Context, r io.Reader, _ imagesvc.ImportOptions) ([]imagesvc.Image, error) {
		_, err := io.Copy(io.Discard, r)
		return nil, err
	}}).Backends())
	s.patience = 200 * time.Millisecond
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		<-served
	})
	for name, test := range map[string]struct {
		path   string
		end    bool
		status int
		code   string
	}{
		"cut off":             {"/v1/images/tag", true, http.StatusBadRequest, "invalid"},
		"archive, cut off":    {"/v1/images/import", true, http.StatusOK, "invalid"},
		"archive, nothing":    {"/v1/images/import", false, http.StatusOK, "slow"},
		"nothing":             {"/v1/images/tag", false, http.StatusRequestTimeout, "slow"},
		"of a pull, nothing":  {"/v1/images/pull", false, http.StatusRequestTimeout, "slow"},
		"of a check, cut off": {"/v1/images/check", true, http.StatusBadRequest, "invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(requestPatience + 10*time.Second))
			if _, err := io.WriteString(conn, "POST "+test.path+" HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"source\":"); err != nil {
				t.Fatal(err)
			}
			if test.end {
				_ = conn.(*net.UnixConn).CloseWrite()
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var e Error
			decoder := json.NewDecoder(resp.Body)
			if resp.StatusCode == http.StatusOK { // events, the last of which has the error
				for event := (Event{}); event.Error == nil; {
					if err := decoder.Decode(&event); err != nil {
						t.Fatal(err)
					}
					if event.Error != nil {
						e = *event.Error
					}
				}
			} else if err := decoder.Decode(&e); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != test.status || e.Code != test.code {
				t.Errorf("answer %s: %+v", resp.Status, e)
			}
		})
	}
}
