package hostpath

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"criserver/pkg/sandbox/hostpath/probe"
)

// Files reads files of the host.
type Files struct {
	// Program is the command that writes what probe.Copy reads of the path that is its last argument, and ends with the code of
	// probe.Code.
	Program []string
	// Asker is asked first, so that no more than one process is left behind for a path.
	Asker *Asker
}

// FilesBy are files that crimonitor, the program at that path, reads for this process.
func FilesBy(program string) Files {
	return Files{Program: []string{program, "host-file"}, Asker: &Asker{Program: []string{program, "host-look"}}}
}

// Open opens a regular file; it is opened here if its file system is of this machine, and else a process of its own reads it. A read
// fails, and names the path, when ctx ends or half a minute passes without an answer. fs.ErrNotExist, probe.ErrIrregular.
func (f Files) Open(ctx context.Context, path string) (io.ReadCloser, error) {
	if local(path) {
		return probe.Open(path)
	}
	wait, cancel := limited(ctx)
	defer cancel()
	if err := f.Asker.answers(wait, path); err != nil {
		return nil, err
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("read host path %s: %w", path, err)
	}
	r := &remote{path: path, gone: func() error { return context.Cause(ctx) }, out: out, ended: make(chan struct{})}
	r.cmd = exec.Command(f.Program[0], append(f.Program[1:len(f.Program):len(f.Program)], path)...)
	r.cmd.Stdout, r.cmd.Stderr, r.cmd.Dir = in, &r.said, "/"
	err = r.cmd.Start()
	_ = in.Close() // it ends with the process
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read host path %s: %w", path, err), out.Close())
	}
	go func() { // for as long as the file system does not answer
		r.err = r.cmd.Wait()
		close(r.ended)
	}()
	r.stop = context.AfterFunc(ctx, func() { _ = out.SetReadDeadline(time.Unix(1, 0)) })
	content := bufio.NewReader(r)
	if _, err := content.Peek(1); err != nil && !errors.Is(err, io.EOF) { // it could not be opened
		return nil, errors.Join(err, r.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{content, r}, nil
}

// remote is a file that a process reads.
type remote struct {
	path string
	// gone tells why nobody waits any more; nil while somebody does.
	gone func() error
	out  *os.File
	cmd  *exec.Cmd
	said bytes.Buffer
	stop func() bool
	// ended is closed once the process has, with err.
	ended chan struct{}
	err   error
}

func (r *remote) Read(p []byte) (int, error) {
	if r.gone() == nil {
		_ = r.out.SetReadDeadline(time.Now().Add(answerLimit))
	}
	n, err := r.out.Read(p)
	switch gone := r.gone(); {
	case err == nil:
		return n, nil
	case errors.Is(err, io.EOF):
		return n, r.end()
	case gone != nil:
		return n, fmt.Errorf("host path %s does not answer: %w", r.path, gone)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, fmt.Errorf("host path %s does not answer: nothing in %s: %w", r.path, answerLimit, context.DeadlineExceeded)
	}
	return n, err
}

// end tells why the process has ended.
func (r *remote) end() error {
	<-r.ended
	if r.err == nil {
		return io.EOF
	}
	err := probe.Cause(r.cmd.ProcessState.ExitCode())
	if said := strings.TrimSpace(r.said.String()); err == nil && said != "" {
		return fmt.Errorf("read host path %s: %s", r.path, said)
	}
	if err == nil {
		err = r.err
	}
	return fmt.Errorf("read host path %s: %w", r.path, err)
}

// Close ends the process, or leaves it behind where that does not end.
func (r *remote) Close() error {
	r.stop()
	_ = r.cmd.Process.Kill()
	return r.out.Close()
}
