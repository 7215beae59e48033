package handler

import (
	"maps"
	"testing"

	"criserver/pkg/sandbox/spec"
)

// TestOrders has a container with annotations by which runtimes take orders: it gets those that the operator lets pods have.
func TestOrders(t *testing.T) {
	harmless := map[string]string{
		"a": "b", "io.kubernetes.container.hash": "1", "example.com/run.oci.": "1", "org.systemd.property": "1", "bundles": "1",
		"cdi.k8s.io/x": "v/d=a", "io.kubernetes.cri.rdt-class": "gold", "told": "1",
	}
	given := maps.Clone(harmless)
	for _, name := range []string{
		"org.systemd.property.CPUWeight", "run.oci.handler", "run.oci.seccomp.plugins", "org.opencontainers.runc.x", "org.criu.config", "bundle",
		"module.wasm.image/variant", "krun.variant", "dev.gvisor.spec.rootfs.source", "io.katacontainers.config.hypervisor.path",
		"io.kubernetes.cri-o.SandboxID", "told.a", "alone",
	} {
		given[name] = "order"
	}
	u := Usable{Handler: Handler{Name: "h"}, Orders: []string{"told.", "alone"}}
	for _, row := range []struct {
		patterns []string
		also     []string
	}{
		{nil, nil},
		{[]string{"example.com/*"}, nil},
		{[]string{"run.oci.handler", "org.systemd.property.*", "told.a"}, []string{"run.oci.handler", "org.systemd.property.CPUWeight", "told.a"}},
	} {
		u.PodAnnotations = row.patterns
		want := maps.Clone(harmless)
		for _, name := range row.also {
			want[name] = "order"
		}
		c := spec.Container{Annotations: maps.Clone(given)}
		of := c.Annotations
		if err := u.Prepare(&c); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(c.Annotations, want) {
			t.Errorf("with %q: %q, want %q", row.patterns, c.Annotations, want)
		}
		if !maps.Equal(of, given) {
			t.Error("what the container's status has was changed")
		}
	}
}
