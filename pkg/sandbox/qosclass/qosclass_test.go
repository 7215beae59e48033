package qosclass

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func newSpec() *specs.Spec { return &specs.Spec{Linux: &specs.Linux{}} }

func TestApply(t *testing.T) {
	file := filepath.Join(t.TempDir(), "blockio.yaml")
	if err := os.WriteFile(file, []byte("classes:\n  slow:\n  - weight: 70\n  fast:\n  - weight: 700\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Configure("", file); err != nil {
		t.Fatal(err)
	}
	s := newSpec()
	if err := (Classes{}).Apply(s, "a", nil, nil); err != nil || s.Linux.Resources != nil || s.Linux.IntelRdt != nil {
		t.Errorf("no class: %+v, %v", s.Linux, err)
	}
	for name, c := range map[string]struct{ container, pod map[string]string }{
		"container's":         {container: map[string]string{"io.kubernetes.cri.blockio-class": "slow"}},
		"pod's":               {pod: map[string]string{"blockio.resources.beta.kubernetes.io/pod": "slow"}},
		"pod's for container": {pod: map[string]string{"blockio.resources.beta.kubernetes.io/container.a": "slow"}},
	} {
		s := newSpec()
		if err := (Classes{BlockIO: "fast"}).Apply(s, "a", c.container, c.pod); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if r := s.Linux.Resources; r == nil || r.BlockIO == nil || *r.BlockIO.Weight != 70 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	s = newSpec()
	if err := (Classes{BlockIO: "fast"}).Apply(s, "a", nil, nil); err != nil || s.Linux.Resources == nil || *s.Linux.Resources.BlockIO.Weight != 700 {
		t.Errorf("the handler's: %+v, %v", s.Linux, err)
	}
	for _, c := range []Classes{{}, {BlockIO: "slow"}} {
		if err := c.Check(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, c := range []Classes{{BlockIO: "none-such"}, {RDT: "none-such"}} {
		if err := c.Check(); !errors.Is(err, ErrClass) || !strings.Contains(err.Error(), "none-such") || !strings.Contains(err.Error(), "runtime.") {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, key := range []string{"io.kubernetes.cri.blockio-class", "io.kubernetes.cri.rdt-class"} {
		err := Classes{}.Apply(newSpec(), "a", map[string]string{key: "none-such"}, nil)
		if !errors.Is(err, ErrClass) || !strings.Contains(err.Error(), "none-such") {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestConfigure(t *testing.T) {
	if err := Configure("", "/no/such/file"); err == nil || !strings.Contains(err.Error(), "/no/such/file") {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := os.Stat(resctrl + "/info"); err == nil {
		t.Skip("this kernel has resctrl, and a test should not change it")
	}
	if err := Configure("/etc/rdt.yaml", ""); err == nil || !strings.Contains(err.Error(), "resctrl is not mounted") {
		t.Errorf("no resctrl: %v", err)
	}
}
