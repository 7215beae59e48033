package config

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"criserver/pkg/sandbox/handler"
	"criserver/pkg/sandbox/runtime"
)

// handlerName is what Kubernetes takes as the handler of a RuntimeClass: a DNS label.
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

const (
	typeOCI     = "oci"
	typeBuiltin = "builtin"
)

func (v *validator) handlers(c *Config) {
	_, there := c.Runtimes[c.DefaultRuntime]
	v.check(there || c.DefaultRuntime == handler.Builtin, "default_runtime", "%q is neither builtin nor in runtimes", c.DefaultRuntime)
	roots := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(c.Runtimes)) {
		h := c.Runtimes[name]
		key := joinKey("runtimes", name)
		v.check(handlerName.MatchString(name), key, "%q cannot be the handler of a RuntimeClass: small letters, digits and - are allowed", name)
		v.handler(key, name, c.Snapshot.Devmapper.Pool, h)
		if root := path.Clean(h.Root); h.Root != "" {
			v.check(roots[root] == "", key+".root", "%s is that of %s as well", h.Root, roots[root])
			roots[root] = name
		}
	}
}

func (v *validator) env(key string, variables []string) {
	for _, e := range variables {
		i := strings.IndexByte(e, '=')
		v.check(i > 0 && !strings.ContainsRune(e, 0), key, "%q is not of the form NAME=value", e)
	}
}

func (v *validator) handler(key, name, pool string, h RuntimeHandler) {
	v.oneOf(key+".type", h.Type, typeOCI, typeBuiltin)
	v.check(name != handler.Builtin || h.Type == typeBuiltin, key+".type", "builtin is crimonitor's own runtime")
	switch h.Type {
	case typeOCI:
		v.absolute(key+".path", h.Path)
		if h.Root != "" {
			v.absolute(key+".root", h.Root)
			v.check(path.Clean(h.Root) != "/", key+".root", "cannot be /")
		}
		v.env(key+".env", h.Env)
	case typeBuiltin:
		v.check(h.Path == "" && h.Root == "" && len(h.Args) == 0 && len(h.Env) == 0, key,
			"path, root, args and env are for the type oci")
	}
	v.defaults(key, h)
	if h.Snapshotter != "" {
		v.oneOf(key+".snapshotter", h.Snapshotter, Overlay, Devmapper)
		v.check(h.Snapshotter != Devmapper || pool != "", key+".snapshotter", "%s needs snapshot.devmapper.pool, which is empty", Devmapper)
	}
	if h.CNIConfDir != "" {
		v.absolute(key+".cni_conf_dir", h.CNIConfDir)
	}
	if h.CNIMaxNetworks != nil {
		v.maxNetworks(key+".cni_max_networks", *h.CNIMaxNetworks)
	}
	for _, p := range h.PodAnnotations {
		_, err := path.Match(p, "")
		v.check(err == nil && p != "", key+".pod_annotations", "%q is not a pattern", p)
	}
}

// Handlers makes the runtime handlers. node is what the node allows to any of them. storage tells why a snapshotter, "" being that of
// the node, cannot be used. qosclass.ErrClass: one has a class that was not configured before.
func (c *Config) Handlers(node handler.Features, storage handler.Storage) (*handler.Set, error) {
	var all []handler.Handler
	for name, h := range c.Runtimes {
		one := handler.Handler{Name: name, PodAnnotations: h.PodAnnotations, Annotations: h.Annotations, Snapshotter: h.Snapshotter, Defaults: h.Defaults()}
		if err := one.Classes.Check(); err != nil {
			return nil, fmt.Errorf("runtimes.%s: %w", name, err)
		}
		if h.Path != "" { // of the type oci only
			one.Command = &runtime.Command{
				Path: h.Path, Root: cmp.Or(h.Root, filepath.Join(c.State, "runtimes", name)), Args: h.Args, Env: h.Env,
			}
		}
		all = append(all, one)
	}
	return handler.New(c.DefaultRuntime, node, storage, all)
}
