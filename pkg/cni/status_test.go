package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestReady(t *testing.T) {
	o := newOperator(t)
	o.config.StatusInterval = 20 * time.Millisecond
	n := open(t, o.config)
	p := newPod(t, "p")
	// Setup knows about a configuration that cannot be used at once, Ready by the next look.
	step := func(wantText string, usable bool) {
		t.Helper()
		var err error
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if err = n.Ready(); wantText == "" && err == nil || wantText != "" && err != nil && strings.Contains(err.Error(), wantText) {
				break
			}
		}
		if wantText == "" && err != nil || wantText != "" && (!errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), wantText)) {
			t.Errorf("ready: got %v, want %q", err, wantText)
		}
		if _, err := n.Setup(context.Background(), p); (err == nil) != usable {
			t.Errorf("setup: %v", err)
		}
		_ = n.Teardown(context.Background(), p)
	}
	step("no CNI configuration in "+o.config.ConfDir, false)
	o.conf(t, "20-net.conflist", chain("1.1.0", "test", "one"))
	step(`"one" is not in`, false)
	o.plugin(t, "one", `if [ $CNI_COMMAND = STATUS ]; then echo '{"cniVersion":"1.1.0","code":50,"msg":"not yet"}'; exit 1; fi`)
	step("not yet", true)
	o.plugin(t, "one", "")
	step("", true)
	o.conf(t, "10-net.conflist", "{")
	step("10-net.conflist", false) // and not the next file
	o.conf(t, "10-net.conflist", chain("99.0.0", "test", "one"))
	step("99.0.0", false)
	o.conf(t, "10-net.conflist", chain("1.0.0", "te/st", "one"))
	step("network name", false)
	if err := os.Remove(o.config.ConfDir + "/10-net.conflist"); err != nil {
		t.Fatal(err)
	}
	step("", true)
}

// A plugin that hangs, in a child that holds its output, does not outlast the caller's patience.
func TestPluginThatHangs(t *testing.T) {
	o := newOperator(t)
	pids := t.TempDir() + "/pids"
	o.plugin(t, "one", fmt.Sprintf(`if [ $CNI_COMMAND = ADD ]; then sleep 1000 & echo $! > %s; wait; fi`, pids))
	o.conf(t, "net.conflist", chain("1.0.0", "test", "one"))
	n := open(t, o.config)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for { // the plugin has its child now
			if b, err := os.ReadFile(pids); err == nil && strings.HasSuffix(string(b), "\n") {
				cancel()
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	start := time.Now()
	if _, err := n.Setup(ctx, newPod(t, "p")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that the context was cancelled", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	o.wantCalls(t, "ADD one", "DEL one")
	b, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(b)) + "/stat")
	if err == nil && !strings.Contains(string(state), ") Z ") {
		t.Errorf("the plugin's child runs on: %s", state)
	}
}
