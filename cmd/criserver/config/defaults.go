package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/handler"
	"criserver/pkg/sandbox/ns"
	"criserver/pkg/sandbox/qosclass"
	"criserver/pkg/sandbox/runtime"
)

const rlimitPrefix = "RLIMIT_"

// ulimitNames are those of the OCI specification, in small letters and without RLIMIT_.
func ulimitNames() []string {
	var names []string
	for name := range runtime.Rlimits {
		names = append(names, strings.ToLower(strings.TrimPrefix(name, rlimitPrefix)))
	}
	slices.Sort(names)
	return names
}

// zoneinfo is where the files of time zones are (tzfile(5)).
const zoneinfo = "/usr/share/zoneinfo"

func (v *validator) defaults(key string, h RuntimeHandler) {
	v.env(key+".container_env", h.ContainerEnv)
	for name, l := range h.Ulimits {
		v.oneOf(key+".ulimits", name, ulimitNames()...)
		v.check(l.Soft <= l.Hard, key+".ulimits", "the soft limit of %s is above the hard one", name)
	}
	for name := range h.Sysctls {
		err := ns.CheckSysctl(name, true, true)
		v.check(err == nil, key+".sysctls", "%v", err)
	}
	for _, d := range h.Devices {
		_, err := device(d)
		v.check(err == nil, key+".devices", "%v", err)
	}
	if h.Timezone != "" && h.Timezone != "local" {
		v.check(filepath.IsLocal(h.Timezone) && filepath.Clean(h.Timezone) == h.Timezone, key+".timezone",
			"%q is neither local nor a name such as Europe/Berlin", h.Timezone)
	}
	v.check(h.PidsLimit >= 0, key+".pids_limit", "%d is negative; 0 is no limit", h.PidsLimit)
	for _, dir := range h.HooksDirs {
		v.absolute(key+".hooks_dirs", dir)
	}
	for _, hook := range h.Hooks {
		stage := stageOf(&specs.Hooks{}, hook.Stage)
		v.check(stage != nil, key+".hooks", "%q is no stage: there are prestart, createRuntime, createContainer, startContainer, "+
			"poststart, poststop", hook.Stage)
		v.absolute(key+".hooks", hook.Path)
		v.check(hook.Timeout >= 0 && time.Duration(hook.Timeout)%time.Second == 0, key+".hooks",
			"the timeout %s is not a number of seconds", time.Duration(hook.Timeout))
	}
}

// device reads PATH or PATH:PERMISSIONS.
func device(s string) (handler.Device, error) {
	name, permissions, ok := strings.Cut(s, ":")
	if !ok {
		permissions = "rwm"
	}
	if !filepath.IsAbs(name) || permissions == "" || strings.Trim(permissions, "rwm") != "" {
		return handler.Device{}, fmt.Errorf("%q is not of the form /dev/name:rwm", s)
	}
	return handler.Device{Path: name, Permissions: permissions}, nil
}

// stageOf is the list of a stage; nil if there is no such stage.
func stageOf(h *specs.Hooks, stage string) *[]specs.Hook {
	switch stage {
	case "prestart":
		return &h.Prestart //nolint:staticcheck // deprecated, and what most hooks still are
	case "createRuntime":
		return &h.CreateRuntime
	case "createContainer":
		return &h.CreateContainer
	case "startContainer":
		return &h.StartContainer
	case "poststart":
		return &h.Poststart
	case "poststop":
		return &h.Poststop
	}
	return nil
}

// Defaults are what the handler gives pods and containers.
func (h RuntimeHandler) Defaults() handler.Defaults {
	out := handler.Defaults{Env: h.ContainerEnv, Sysctls: h.Sysctls, PidsLimit: h.PidsLimit, Classes: qosclass.Classes{RDT: h.RDTClass, BlockIO: h.BlockIOClass}, HooksDirs: h.HooksDirs}
	for name, l := range h.Ulimits {
		out.Ulimits = append(out.Ulimits, specs.POSIXRlimit{Type: rlimitPrefix + strings.ToUpper(name), Soft: l.Soft, Hard: l.Hard})
	}
	slices.SortFunc(out.Ulimits, func(a, b specs.POSIXRlimit) int { return strings.Compare(a.Type, b.Type) })
	for _, s := range h.Devices {
		d, _ := device(s) // was validated
		out.Devices = append(out.Devices, d)
	}
	switch h.Timezone {
	case "":
	case "local":
		out.Timezone = "/etc/localtime"
	default:
		out.Timezone = filepath.Join(zoneinfo, h.Timezone)
	}
	for _, hook := range h.Hooks {
		one := specs.Hook{Path: hook.Path, Args: hook.Args, Env: hook.Env}
		if hook.Timeout > 0 {
			seconds := int(time.Duration(hook.Timeout) / time.Second)
			one.Timeout = &seconds
		}
		stage := stageOf(&out.Hooks, hook.Stage)
		*stage = append(*stage, one)
	}
	return out
}
