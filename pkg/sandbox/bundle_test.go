package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"criserver/pkg/sandbox/handler"
	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/ns"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/want"
)

func TestRecursiveReadOnlyMounts(t *testing.T) {
	// Seldom does the kernel not tell from its caches.
	s := &Service{hostPaths: hostpath.Resolver{Probe: []string{"sh", "-c", `printf %s "$0"`}}}
	in := []spec.Mount{{Source: t.TempDir(), Destination: "/v", ReadOnly: true, RecursiveReadOnly: true}}
	if _, err := s.resolveMounts(t.Context(), handler.Usable{}, in); !errors.Is(err, ErrRecursiveReadOnly) {
		t.Errorf("a handler without features: %v", err)
	}
	can := handler.Usable{Features: handler.Features{RecursiveReadOnlyMounts: true}}
	if got, err := s.resolveMounts(t.Context(), can, in); err != nil || len(got) != 1 || !got[0].RecursiveReadOnly {
		t.Errorf("a handler that can: %+v, %v", got, err)
	}
	in[0].RecursiveReadOnly = false
	if _, err := s.resolveMounts(t.Context(), handler.Usable{}, in); err != nil {
		t.Errorf("a plain mount: %v", err)
	}
}

// The PID of the process whose PID namespace is to be joined is another process's by now, one of the host.
func TestPIDOfAnother(t *testing.T) {
	f := newFixture(t)
	config := f.podConfig()
	config.Namespaces.PID = want.NamespacePod
	pod := f.runPod(config)
	join := func(name string, n want.Namespaces) error {
		c := script(name, "sleep 77")
		c.Namespaces = n
		id, err := f.CreateContainer(t.Context(), pod, c, f.image)
		if err == nil {
			err = f.RemoveContainer(t.Context(), id)
		}
		return err
	}
	file := filepath.Join(f.spaces.InitBundle(pod), "pid")
	if err := join("a", want.Namespaces{PID: want.NamespacePod}); err != nil {
		t.Error(err)
	}
	right, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, fmt.Append(nil, os.Getpid()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := join("b", want.Namespaces{PID: want.NamespacePod}); !errors.Is(err, ErrState) || !errors.Is(err, ns.ErrOther) {
		t.Errorf("the pod's: %v", err)
	}
	if err := os.WriteFile(file, right, 0o600); err != nil {
		t.Fatal(err)
	}
	target := f.start(pod, script("target", "sleep 77"))
	targeted := want.Namespaces{PID: want.NamespaceTarget, TargetID: target}
	if err := join("c", targeted); err != nil {
		t.Error(err)
	}
	c, err := f.ledger.Container(target)
	if err != nil {
		t.Fatal(err)
	}
	f.ledger.UpdateContainer(c, func(st *ContainerStatus) { st.PID = os.Getpid() })
	if err := join("d", targeted); !errors.Is(err, ErrState) || !errors.Is(err, ns.ErrOther) {
		t.Errorf("a target's: %v", err)
	}
}
