package credential

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"
	"unicode"
)

const (
	// programLimit is how long a helper or plugin may take; the kubelet gives as much.
	programLimit = time.Minute
	maxAnswer    = 1 << 20
	maxComplaint = 2 << 10
	// killDelay is how long to wait for the pipes of a killed program, which may have children.
	killDelay = 2 * time.Second
)

var errTooLong = errors.New("its answer is too long")

// program is something to run and ask.
type program struct {
	path  string
	args  []string
	env   []string // all of it
	input []byte
	limit time.Duration
	// secrets that the operator gave it, which its complaints must not tell.
	secrets []string
}

// run returns what the program writes to its standard output. The error has what it says on standard error, but nothing
// that looks like a secret. The output is returned with the error as well.
func (p program) run(ctx context.Context) ([]byte, error) {
	limit := p.limit
	if limit == 0 {
		limit = programLimit
	}
	ctx, stop := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %v", limit))
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, p.path, p.args...)
	answer := &bounded{limit: maxAnswer, full: func() { cancel(errTooLong) }}
	complaint := &bounded{limit: maxComplaint}
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = bytes.NewReader(p.input), answer, complaint, p.env
	// What it starts ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killDelay
	err := cmd.Run()
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err == nil {
		return answer.Bytes(), nil
	}
	if text := scrub(complaint.String(), append(p.secrets, stringsOf(answer.Bytes())...)); text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return answer.Bytes(), err
}

// bounded keeps the beginning of what is written.
type bounded struct {
	buf   bytes.Buffer
	limit int
	full  func()
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	room := b.limit - b.buf.Len()
	b.buf.Write(p[:min(room, len(p))])
	if len(p) > room && b.full != nil {
		b.full()
	}
	return len(p), nil
}

func (b *bounded) Bytes() []byte  { return b.buf.Bytes() }
func (b *bounded) String() string { return b.buf.String() }

var (
	// quoted are the strings of a JSON document, also of half of one.
	quoted = regexp.MustCompile(`"((?:[^"\\]|\\.)*)"`)
	// opaque has the length of keys, tokens and digests, and nothing that paths, host names and sentences are made of.
	opaque = regexp.MustCompile(`[A-Za-z0-9+_=~-]{32,}`)
	// named are values that are called secret.
	named = regexp.MustCompile(`(?i)((?:password|passwd|secret|token|authorization|api[_-]?key|access[_-]?key)[a-z_]*["']?\s*[:=]\s*(?:(?:basic|bearer)\s+)?)[^\s,;}]+`)
	// userInfo is that of URLs.
	userInfo = regexp.MustCompile(`://[^\s"/@]+@`)
)

// stringsOf are the strings that a program answered with.
func stringsOf(answer []byte) []string {
	var all []string
	for _, m := range quoted.FindAllSubmatch(answer, -1) {
		if len(m[1]) >= minSecret {
			all = append(all, string(m[1]))
		}
	}
	return all
}

// minSecret is shorter than any password that is one; to take out shorter strings would only garble texts.
const minSecret = 4

// scrub makes one line of a program's complaint, without secrets.
func scrub(text string, secrets []string) string {
	for _, secret := range secrets {
		if len(secret) >= minSecret {
			text = strings.ReplaceAll(text, secret, "…")
		}
	}
	text = userInfo.ReplaceAllString(text, "://…@")
	text = named.ReplaceAllString(text, "${1}…")
	text = opaque.ReplaceAllString(text, "…")
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || unicode.IsControl(r) }), " ")
}
