package capture

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

func run(t *testing.T, limit int, script string) string {
	t.Helper()
	p, err := New(limit)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	cmd := exec.Command("sh", "-c", script)
	cmd.Stdout = p.Writer()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return string(p.Finish())
}

func TestCapture(t *testing.T) {
	if got := run(t, 1<<20, "echo hi"); got != "hi\n" {
		t.Errorf("got %q", got)
	}
	if got := run(t, 1<<20, "seq 1 50000 | tail -n 1; seq 1 50000"); !strings.HasSuffix(got, "50000\n") || len(got) < 200_000 {
		t.Errorf("got %d bytes, end %q", len(got), got[max(0, len(got)-10):])
	}
	if got := run(t, 1000, "seq 1 50000"); len(got) != 1000 {
		t.Errorf("got %d bytes, want the limit", len(got))
	}
	// A process that is left behind holds the pipe: what the command printed is there all the same, at once.
	start := time.Now()
	if got := run(t, 1<<20, "sleep 3 & echo hi"); got != "hi\n" || time.Since(start) > 2*time.Second {
		t.Errorf("got %q after %s", got, time.Since(start))
	}
}
