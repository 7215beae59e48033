package main

import (
	"cmp"
	"path/filepath"

	"criserver/cmd/criserver/config"
	"criserver/pkg/sandbox/handler"
	"criserver/pkg/sandbox/runtime"
)

// handlers makes the runtime handlers of the configuration.
func handlers(c *config.Config, node handler.Features) (*handler.Set, error) {
	var all []handler.Handler
	for name, h := range c.Runtimes {
		one := handler.Handler{Name: name, PodAnnotations: h.PodAnnotations, Annotations: h.Annotations, Defaults: h.Defaults()}
		if h.Path != "" { // of the type oci only
			one.Command = &runtime.Command{
				Path: h.Path, Root: cmp.Or(h.Root, filepath.Join(c.State, "runtimes", name)), Args: h.Args, Env: h.Env,
			}
		}
		all = append(all, one)
	}
	return handler.New(c.DefaultRuntime, node, all)
}
