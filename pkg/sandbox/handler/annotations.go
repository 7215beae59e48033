package handler

import (
	"path"
	"slices"
	"strings"
)

// orders are the annotations by which runtimes take orders, as that of programs on the node, of files of it and of properties of
// systemd's units. One that ends with a dot is a prefix, as in what programs tell of themselves (runtime-spec, features.md).
var orders = []string{
	"bundle", "org.criu.", "org.opencontainers.runc.", "org.systemd.property.", // runc; the built-in one is its library
	"krun.", "module.wasm.image/variant", "run.oci.", // crun
	"dev.gvisor.", "io.kubernetes.cri-o.", // runsc: the latter say which sandbox a container joins
	"io.katacontainers.",
}

// passedOn returns the annotations of a container that its specification gets: all but those by which the runtime takes orders, which
// whoever writes pods must not give, unless the operator lets pods have them.
func (u Usable) passedOn(annotations map[string]string) map[string]string {
	out := map[string]string{}
	for name, value := range annotations {
		if u.ofPods(name) || !slices.ContainsFunc(slices.Concat(orders, u.Orders), func(order string) bool { return fits(order, name) }) {
			out[name] = value
		}
	}
	return out
}

func fits(order, name string) bool {
	return name == order || strings.HasSuffix(order, ".") && strings.HasPrefix(name, order)
}

// ofPods tells whether the operator has the annotation of that name passed on from pods.
func (u Usable) ofPods(name string) bool {
	return slices.ContainsFunc(u.PodAnnotations, func(pattern string) bool { ok, _ := path.Match(pattern, name); return ok })
}
