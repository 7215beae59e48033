package dump_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"criserver/pkg/sandbox/runtime/dump"
)

func TestReason(t *testing.T) {
	log := filepath.Join(t.TempDir(), "dump.log")
	text := `(00.000001) Version: 4.2
(00.015381) Error (criu/sk-inet.c:196): inet: Connected TCP socket, consider using --tcp-established option.
(00.015390) ----------------------------------------
(00.015399) Error (criu/cr-dump.c:1635): Dump files (pid: 12) failed with -1
(00.015400) Warn  (criu/x.c:1): no error
(00.015401) Error (compel/y.c:2): third
(00.015402) Error (compel/y.c:2): fourth
`
	if err := os.WriteFile(log, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	const want = "inet: Connected TCP socket, consider using --tcp-established option; Dump files (pid: 12) failed with -1; third"
	if got := dump.Reason(log); got != want {
		t.Errorf("reason = %q, want %q", got, want)
	}
	if got := dump.Reason(log + ".no"); got != "" {
		t.Errorf("reason without a log = %q", got)
	}
}

// TestRunCutOff: the program is killed, and its helper, criu, ends by itself.
func TestRunCutOff(t *testing.T) {
	ended := filepath.Join(t.TempDir(), "ended")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", "(sleep 1; echo yes >"+ended+") & wait")
	if err := dump.Run(ctx, cmd); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("err = %v", err)
	}
	if _, err := os.Stat(ended); err != nil {
		t.Errorf("the helper has not ended by itself: %v", err)
	}
	if err := dump.Run(t.Context(), exec.CommandContext(t.Context(), "false")); err == nil {
		t.Error("a failure is no error")
	}
}
