package cni

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// newChain is a chain of plugins that are scripts, and an attachment to it. They need neither root nor a namespace.
func newChain(t *testing.T, version string, plugins ...string) (*operator, *chains, *libcni.NetworkConfigList, attachment) {
	t.Helper()
	o := &operator{bin: t.TempDir(), log: t.TempDir() + "/log"}
	for _, p := range plugins {
		o.plugin(t, p, "")
	}
	list, err := libcni.NetworkConfFromBytes([]byte(chain(version, "test", plugins...)))
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAttachment(list, InterfaceName, Pod{ID: "p", NetNS: "/nowhere"})
	if err != nil {
		t.Fatal(err)
	}
	return o, newChains([]string{o.bin}, t.TempDir(), &runner{}), list, a
}

func delOne(ctx context.Context, c *chains, a attachment) error {
	_, err := c.del(ctx, []attachment{a})
	return err
}

// A plugin that hangs has its share of the caller's time, and the others, the IPAM plugin's among them, have theirs.
func TestDelGoesPastAPluginThatHangs(t *testing.T) {
	o, c, _, a := newChain(t, "1.0.0", "one", "two", "three")
	o.plugin(t, "three", `if [ $CNI_COMMAND = DEL ]; then exec sleep 1000; fi`)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if err := delOne(ctx, c, a); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "plugin three") {
		t.Errorf("got %v, want that plugin three ran out of time", err)
	}
	if ctx.Err() != nil {
		t.Error("the plugin that hangs took all of the caller's time")
	}
	o.wantCalls(t, "DEL three", "DEL two", "DEL one")
}

func TestDelGoesPastAMissingPlugin(t *testing.T) {
	o, c, _, a := newChain(t, "1.0.0", "one", "two", "three")
	if _, err := c.add(context.Background(), a); err != nil {
		t.Fatal(err)
	}
	o.calls(t, false)
	if err := os.Remove(o.bin + "/two"); err != nil {
		t.Fatal(err)
	}
	if err := delOne(context.Background(), c, a); err != nil {
		t.Error(err)
	}
	o.wantCalls(t, "DEL three", "DEL one")
	o.plugin(t, "one", "exit 1")
	if err := delOne(context.Background(), c, a); err == nil || !strings.Contains(err.Error(), "plugin one") {
		t.Errorf("got %v, want the error of the plugin that fails", err)
	}
}
