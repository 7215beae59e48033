package builtin

import (
	"fmt"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/runtime"
)

// newProcess converts an OCI process to libcontainer's.
func newProcess(p *specs.Process, io runtime.Stdio) (*libcontainer.Process, error) {
	lp := &libcontainer.Process{
		Args:            p.Args,
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		Label:           p.SelinuxLabel,
		NoNewPrivileges: &p.NoNewPrivileges,
		AppArmorProfile: p.ApparmorProfile,
	}
	if p.Terminal {
		lp.ConsoleSocket = io.Console
		if p.ConsoleSize != nil {
			lp.ConsoleWidth, lp.ConsoleHeight = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
		}
	}
	lp.Stdin, lp.Stdout, lp.Stderr = io.Streams()
	for _, gid := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(gid))
	}
	if c := p.Capabilities; c != nil {
		caps := configs.Capabilities(*c)
		lp.Capabilities = &caps
	}
	var err error
	if lp.Rlimits, err = rlimits(p.Rlimits); err != nil {
		return nil, err
	}
	return lp, nil
}

func rlimits(list []specs.POSIXRlimit) (limits []configs.Rlimit, err error) {
	for _, l := range list {
		kind, ok := runtime.Rlimits[l.Type]
		if !ok {
			return nil, fmt.Errorf("unknown rlimit %q", l.Type)
		}
		limits = append(limits, configs.Rlimit{Type: kind, Hard: l.Hard, Soft: l.Soft})
	}
	return limits, nil
}
