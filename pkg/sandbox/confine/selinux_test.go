package confine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/selinux/go-selinux"

	"criserver/pkg/sandbox/spec"
)

func TestSELinuxOfNodeWithout(t *testing.T) {
	if selinux.GetEnabled() {
		t.Skip("this kernel has SELinux")
	}
	l, err := PodLabels(SELinux{Type: "t", Level: "s0:c1,c2"})
	if err != nil || l != (Labels{}) {
		t.Errorf("pod: %+v, %v", l, err)
	}
	mounts := []spec.Mount{{Source: t.TempDir(), Destination: "/a", Relabel: true}}
	if l, err = l.ForContainer(t.Context(), SELinux{Level: "nonsense"}, mounts); err != nil || l != (Labels{}) {
		t.Errorf("container: %+v, %v", l, err)
	}
}

func TestSELinuxLevels(t *testing.T) {
	l := Labels{Process: "u:r:container_t:s0:c1,c2", Mount: "u:object_r:container_file_t:s0:c1,c2"}
	got, err := l.withLevel("s0:c3,c4")
	want := Labels{Process: "u:r:container_t:s0:c3,c4", Mount: "u:object_r:container_file_t:s0:c3,c4"}
	if err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := (Labels{Process: "u", Mount: "u"}).withLevel("s0"); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("no label: %v", err)
	}
	if !l.SameLevel(l) || l.SameLevel(want) || (Labels{}).SameLevel(Labels{}) {
		t.Error("levels are compared wrongly")
	}
	t.Cleanup(selinux.ClearLabels)
	for range 2 { // pods may want the same
		l.Reserve()
	}
	if err := selinux.CheckLabel(l.Process); !errors.Is(err, selinux.ErrMCSAlreadyExists) {
		t.Errorf("after Reserve: %v", err)
	}
	l.Release()
	if err := selinux.CheckLabel(l.Process); err != nil {
		t.Errorf("after Release: %v", err)
	}
	Labels{}.Reserve()
	Labels{}.Release()
}

// TestSELinuxPolicy needs a kernel with SELinux, and a policy with container_t, which hack/vm/selinux.sh has.
func TestSELinuxPolicy(t *testing.T) {
	if !selinux.GetEnabled() {
		t.Skip("SELinux is not enabled in this kernel, or has no policy")
	}
	t.Cleanup(selinux.ClearLabels)
	pod, err := PodLabels(SELinux{})
	if err != nil || !strings.Contains(pod.Process, ":container_t:s0:c") {
		t.Fatalf("labels %+v, %v", pod, err)
	}
	if err := selinux.CheckLabel(pod.Process); !errors.Is(err, selinux.ErrMCSAlreadyExists) {
		t.Errorf("the level is not held: %v", err)
	}
	level := strings.SplitN(pod.Process, ":", 4)[3]
	for want, o := range map[string]SELinux{
		pod.Process: {},
		"system_u:system_r:container_other_t:" + level: {Type: "container_other_t"},
		"system_u:system_r:container_t:s0:c1":          {Level: "s0:c1"},
	} {
		l, err := pod.ForContainer(t.Context(), o, nil)
		if err != nil || l.Process != want {
			t.Errorf("%+v: %+v, %v, want %s", o, l, err, want)
		}
	}
	if err := selinux.CheckLabel("u:r:t:s0:c1"); err != nil {
		t.Errorf("a container holds a level: %v", err)
	}
	for _, o := range []SELinux{{Type: "no_such_t"}, {Level: "s0:c99999"}, {User: "a:b"}} {
		if l, err := PodLabels(o); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("pod %+v: %+v, %v", o, l, err)
		}
		if l, err := pod.ForContainer(t.Context(), o, nil); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("container %+v: %+v, %v", o, l, err)
		}
	}
	if err := selinux.CheckLabel(pod.Process); !errors.Is(err, selinux.ErrMCSAlreadyExists) {
		t.Errorf("the level is held no more: %v", err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mounts := []spec.Mount{{Source: dir, Destination: "/a", Relabel: true}, {Source: "/etc", Destination: "/b"}}
	if _, err := pod.ForContainer(t.Context(), SELinux{}, mounts); err != nil {
		t.Fatal(err)
	}
	if l, err := selinux.FileLabel(file); err != nil || l != pod.Mount {
		t.Errorf("label %s, %v", l, err)
	}
	// The library keeps directories of the system from it.
	mounts = []spec.Mount{{Source: "/etc", Destination: "/a", Relabel: true}}
	if _, err := pod.ForContainer(t.Context(), SELinux{}, mounts); err == nil || !strings.Contains(err.Error(), "/etc") {
		t.Errorf("a directory of the system: %v", err)
	}
}
