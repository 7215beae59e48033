package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"criserver/pkg/sandbox/cgroup"
)

func TestAwait(t *testing.T) {
	group := fmt.Sprintf("/criserver-test-launch-%d", os.Getpid())
	t.Cleanup(func() { cgroup.PruneWait(context.Background(), group) })
	silent, broken := errors.New("it is silent"), errors.New("it is broken")
	for name, test := range map[string]struct {
		script  string
		answers []error // the last one again and again
		again   bool
		limit   time.Duration
		says    string // "" for none
	}{
		"answers in time": {"sleep 0.3", []error{silent, silent, silent, nil}, true, time.Minute, ""},
		"ends at once":    {"exit 3", []error{silent}, true, time.Minute, "sh ended at once (exit status 3); "},
		"never answers":   {"sleep 0.5", []error{silent}, true, 100 * time.Millisecond, "sh does not answer: context deadline exceeded: it is silent"},
		"final error":     {"sleep 0.3", []error{broken}, false, time.Minute, "it is broken"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), test.limit)
			defer cancel()
			log := filepath.Join(t.TempDir(), "log")
			p, err := Detach(log, group, "/bin/sh", "-c", test.script)
			if err != nil {
				t.Fatal(err)
			}
			asked := 0
			err = p.Await(ctx, func(context.Context) (bool, error) {
				err := test.answers[min(asked, len(test.answers)-1)]
				asked++
				return test.again, err
			})
			switch {
			case test.says == "" && err != nil, test.says != "" && (err == nil || !strings.HasPrefix(err.Error(), test.says)):
				t.Errorf("error %v, want %q", err, test.says)
			case strings.Contains(test.says, "ended") && !strings.Contains(err.Error(), log):
				t.Errorf("error %v does not name %s", err, log)
			case test.says == "" && asked != len(test.answers):
				t.Errorf("asked %d times, want %d", asked, len(test.answers))
			}
		})
	}
}
