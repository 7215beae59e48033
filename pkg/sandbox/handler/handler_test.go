package handler

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/runtime"
	"criserver/pkg/sandbox/spec"
)

// works is a node whose snapshotters all work.
func works(context.Context, string) error { return nil }

// program writes a shell script that stands for a runtime.
func program(t *testing.T, script string) *runtime.Command {
	t.Helper()
	dir := t.TempDir()
	c := &runtime.Command{Path: filepath.Join(dir, "program"), Root: dir}
	if err := os.WriteFile(c.Path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFind(t *testing.T) {
	broken := program(t, "echo no luck >&2; exit 3")
	s, err := New("", Features{}, works, []Handler{{Name: "broken", Command: broken}})
	if err != nil {
		t.Fatal(err)
	}
	s.Probe(t.Context())
	if h, err := s.Find(t.Context(), ""); err != nil || h.Name != Builtin || h.Command != nil {
		t.Errorf("default = %+v, %v", h, err)
	}
	if _, err := s.Find(t.Context(), "nobody"); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "broken, builtin") {
		t.Errorf("unknown: %v", err)
	}
	if _, err := s.Find(t.Context(), "broken"); !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), "no luck") {
		t.Errorf("broken: %v", err)
	}
	if l := s.List(); len(l) != 2 || l[0].Name != "" || l[1].Name != Builtin {
		t.Errorf("list = %+v", l)
	}
	if err := s.Ready(); err != nil {
		t.Errorf("a broken handler that is not the default: %v", err)
	}
	// Repaired, it works without a restart.
	if err := os.WriteFile(broken.Path, []byte("#!/bin/sh\necho v1; echo spec: 1.0.1"), 0o755); err != nil {
		t.Fatal(err)
	}
	if h, err := s.Find(t.Context(), "broken"); err != nil || h.SpecVersion != "1.0.1" || h.Features != (Features{}) {
		t.Errorf("repaired = %+v, %v", h, err)
	}
}

// TestSnapshotter: a handler whose snapshotter does not work is as one whose program does not, until it does.
func TestSnapshotter(t *testing.T) {
	full := errors.New("the pool is full")
	storage := func(_ context.Context, snapshotter string) error {
		if snapshotter == "thin" {
			return full
		}
		return nil
	}
	s, err := New("", Features{}, storage, []Handler{{Name: "a", Snapshotter: "thin"}})
	if err != nil {
		t.Fatal(err)
	}
	s.Probe(t.Context())
	if _, err := s.Find(t.Context(), "a"); !errors.Is(err, ErrUnusable) || !errors.Is(err, full) {
		t.Errorf("with a pool that is full: %v", err)
	}
	if _, err := s.Find(t.Context(), ""); err != nil {
		t.Errorf("the other: %v", err)
	}
	if l := s.List(); len(l) != 2 {
		t.Errorf("list = %+v", l)
	}
	full = nil
	if h, err := s.Find(t.Context(), "a"); err != nil || h.Snapshotter != "thin" {
		t.Errorf("once it is larger: %+v, %v", h, err)
	}
	full = errors.New("it is full again")
	if _, err := s.Find(t.Context(), "a"); !errors.Is(err, ErrUnusable) || !errors.Is(err, full) {
		t.Errorf("once it is full again: %v", err)
	}
}

// TestReadyAgain: a node whose default handler works again is ready without a pod.
func TestReadyAgain(t *testing.T) {
	var works atomic.Bool
	s, err := New("", Features{}, func(context.Context, string) error {
		if works.Load() {
			return nil
		}
		return errors.New("no pool")
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Probe(t.Context())
	if err := s.Ready(); !errors.Is(err, ErrUnusable) {
		t.Errorf("without a pool: %v", err)
	}
	works.Store(true)
	for deadline := time.Now().Add(3 * askAgain); s.Ready() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it is never ready")
		}
	}
}

// What a handler can do is what both its program and the node can.
func TestFeaturesOfNode(t *testing.T) {
	all := Features{RecursiveReadOnlyMounts: true, UserNamespaces: true, UsersOnHostNetwork: true}
	const new = `"mountOptions": ["rro"], "linux": {"namespaces": ["user"], "mountExtensions": {"idmap": {"enabled": true}}}`
	for name, row := range map[string]struct {
		said        string
		node, want  Features
		pod, onHost bool // have user namespaces
	}{
		"all":                {new, all, all, true, true},
		"not on the network": {new, Features{RecursiveReadOnlyMounts: true, UserNamespaces: true}, Features{RecursiveReadOnlyMounts: true, UserNamespaces: true}, true, false},
		"old node":           {new, Features{}, Features{}, false, false},
		"no rro":             {`"linux": {"namespaces": ["user"], "mountExtensions": {"idmap": {"enabled": true}}}`, all, Features{UserNamespaces: true}, true, false},
		"no idmap":           {`"mountOptions": ["rro"], "linux": {"namespaces": ["user"]}`, all, Features{RecursiveReadOnlyMounts: true}, false, false},
		"says nothing":       {"", all, Features{}, false, false},
	} {
		script := "case $3 in --version) echo spec: 1.0.2;; features) echo '{" + row.said + "}';; esac"
		s, err := New("", row.node, works, []Handler{{Name: "a", Command: program(t, script)}})
		if err != nil {
			t.Fatal(err)
		}
		h, err := s.Find(t.Context(), "a")
		if err != nil || h.Features != row.want {
			t.Errorf("%s: %+v, %v, want %+v", name, h.Features, err, row.want)
		}
		if pod, onHost := h.CheckUsers(false), h.CheckUsers(true); (pod == nil) != row.pod || (onHost == nil) != row.onHost {
			t.Errorf("%s: in a user namespace: %v; on the host's network: %v", name, pod, onHost)
		}
	}
}

func TestDefault(t *testing.T) {
	if _, err := New("nobody", Features{}, works, nil); !errors.Is(err, ErrUnknown) {
		t.Errorf("err = %v", err)
	}
	s, err := New("a", Features{}, works, []Handler{{Name: "a", Command: &runtime.Command{Path: "/no/such", Root: "/x"}}})
	if err != nil {
		t.Fatal(err)
	}
	s.Probe(t.Context())
	if err := s.Ready(); !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("ready = %v", err)
	}
	if l := s.List(); len(l) != 1 || l[0].Name != Builtin {
		t.Errorf("list = %+v", l)
	}
}

func TestFeatures(t *testing.T) {
	told := program(t, `case "$*" in *--version) echo spec: 1.0.2;; *features) echo '{"ociVersionMax":"1.3.0","mountOptions":["ro","rro"],'`+
		`'"linux":{"namespaces":["user"],"mountExtensions":{"idmap":{"enabled":true}}},'`+
		`'"annotations":{"org.opencontainers.runc.checkpoint.enabled":"true"},"potentiallyUnsafeConfigAnnotations":["a.","b"]}';; esac`)
	u, err := ask(t.Context(), *told)
	if err != nil || !slices.Equal(u.Orders, []string{"a.", "b"}) || u.SpecVersion != "1.3.0" || u.Features != (Features{RecursiveReadOnlyMounts: true, UserNamespaces: true, Checkpoints: true}) {
		t.Errorf("told = %+v %v", u, err)
	}
	for words, want := range map[string]bool{"+CRIU +YAJL": true, "+YAJL": false} {
		old := program(t, `case "$*" in *--version) echo "`+words+`";; *) exit 1;; esac`)
		if u, err := ask(t.Context(), *old); err != nil || u.Features != (Features{Checkpoints: want}) {
			t.Errorf("%s without features = %+v %v", words, u, err)
		}
	}
	for _, name := range []string{"runc", "crun"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Logf("%s is not installed", name)
			continue
		}
		u, err := ask(t.Context(), runtime.Command{Path: path, Root: t.TempDir()})
		if err != nil || !strings.HasPrefix(u.SpecVersion, "1.") || u.LeastMemory != leastMemory[name] {
			t.Errorf("%s = %+v %v", name, u, err)
		}
		t.Logf("%s: specification %s, %+v", name, u.SpecVersion, u.Features)
	}
}

func TestLeastMemory(t *testing.T) {
	u := Usable{LeastMemory: 5 << 19}
	for limit, ok := range map[int64]bool{-1: true, 0: true, 5 << 19: true, 5<<19 - 1: false, 1: false} {
		err := u.Prepare(&spec.Container{Resources: spec.Resources{MemoryLimit: limit}})
		if (err == nil) != ok || !ok && !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%d: %v", limit, err)
		}
	}
}

func TestAdapt(t *testing.T) {
	u := Usable{SpecVersion: "1.0.0", Handler: Handler{PodAnnotations: []string{"a.example/*"},
		Annotations: map[string]string{"a.example/x": "handler", "own": "handler", "c": "handler"}}}
	s := &specs.Spec{Annotations: map[string]string{"own": "container"}}
	s.Process, s.Linux = &specs.Process{}, &specs.Linux{}
	if err := u.Adapt(t.Context(), s, "pod", map[string]string{"a.example/x": "pod", "b.example/x": "pod"}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"a.example/x": "pod", "own": "container", "c": "handler"}
	if s.Version != "1.0.0" || len(s.Annotations) != len(want) {
		t.Errorf("spec = %+v", s)
	}
	for k, v := range want {
		if s.Annotations[k] != v {
			t.Errorf("%s = %q, want %q", k, s.Annotations[k], v)
		}
	}
}

// TestSandbox: a runtime is known by how it names itself, and its containers join no namespaces of others but the network's.
func TestSandbox(t *testing.T) {
	s, err := New("", Features{}, works, []Handler{{Name: "a", Command: program(t, `[ "$3" = --version ] && echo runsc version 1 && echo spec: 1.2.0`)}})
	if err != nil {
		t.Fatal(err)
	}
	u, err := s.Find(t.Context(), "a")
	if err != nil || !u.Command.Sandbox {
		t.Fatalf("runsc: %+v, %v", u, err)
	}
	in := newSpec()
	in.Annotations = map[string]string{containerType: "container", "kept": "yes"}
	in.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/net"}, {Type: specs.UTSNamespace, Path: "/uts"}, {Type: specs.PIDNamespace}}
	if err := u.Adapt(t.Context(), in, "pod", nil); err != nil {
		t.Fatal(err)
	}
	if in.Hostname != "pod" || in.Linux.Namespaces[0].Path != "/net" || in.Linux.Namespaces[1].Path != "" || len(in.Annotations) != 1 {
		t.Errorf("spec = %+v, %+v", in, in.Linux)
	}
	for name, namespaces := range map[string][]specs.LinuxNamespace{
		"the node's processes": {{Type: specs.NetworkNamespace}},
		"those of another one": {{Type: specs.PIDNamespace, Path: "/pid"}},
	} {
		in := newSpec()
		in.Linux.Namespaces = namespaces
		if err := u.Adapt(t.Context(), in, "pod", nil); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "namespace_options.pid") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
