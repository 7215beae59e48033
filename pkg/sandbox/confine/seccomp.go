// Package confine finds the profiles of the node that confine containers: seccomp filters in files, and AppArmor profiles
// in the kernel. Errors that the caller is to blame for are spec.FieldErrors.
package confine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/hostpath/probe"
	"criserver/pkg/sandbox/spec"
)

const (
	fieldSeccomp = "security_context.seccomp.localhost_ref"
	// maxSeccomp is many times what a filter has that names each system call.
	maxSeccomp = 4 << 20
)

// Seccomp reads a filter from a file in the form of the OCI specification (config-linux.md, "Seccomp").
func Seccomp(ctx context.Context, files hostpath.Files, path string) (*specs.LinuxSeccomp, error) {
	data, err := read(ctx, files, path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, spec.Invalidf(fieldSeccomp, "the node has no file %s", path)
	case errors.Is(err, probe.ErrIrregular):
		return nil, spec.Invalidf(fieldSeccomp, "%v", err)
	case err != nil:
		return nil, fmt.Errorf("read seccomp profile: %w", err)
	case len(data) > maxSeccomp:
		return nil, spec.Invalidf(fieldSeccomp, "%s is larger than %d bytes", path, maxSeccomp)
	}
	var p specs.LinuxSeccomp
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&p); err != nil {
		return nil, spec.Invalidf(fieldSeccomp, "%s is no seccomp profile: %v", path, err)
	}
	if err := checkSeccomp(&p); err != nil {
		return nil, spec.Invalidf(fieldSeccomp, "%s: %v", path, err)
	}
	return &p, nil
}

// read reads no more than tells that a file is too large.
func read(ctx context.Context, files hostpath.Files, path string) ([]byte, error) {
	f, err := files.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSeccomp+1))
	return data, errors.Join(err, f.Close())
}

// checkSeccomp refuses words that libcontainer does not know. Names of system calls that this kernel does not have are no
// error: profiles are written for many kernels.
func checkSeccomp(p *specs.LinuxSeccomp) error {
	if p.DefaultAction == "" { // the OCI runtime would run the container without a filter
		return errors.New("defaultAction is not set")
	}
	if _, err := seccomp.ConvertStringToAction(string(p.DefaultAction)); err != nil {
		return fmt.Errorf("defaultAction: %w", err)
	}
	for _, a := range p.Architectures {
		if _, err := seccomp.ConvertStringToArch(string(a)); err != nil {
			return fmt.Errorf("architectures: %w", err)
		}
	}
	for _, f := range p.Flags {
		if !slices.Contains(seccomp.KnownFlags(), string(f)) {
			return fmt.Errorf("flags: unknown flag %q", f)
		}
	}
	for _, call := range p.Syscalls {
		if len(call.Names) == 0 {
			return errors.New("syscalls: an entry has no names")
		}
		if _, err := seccomp.ConvertStringToAction(string(call.Action)); err != nil {
			return fmt.Errorf("syscalls: %s: %w", call.Names[0], err)
		}
		for _, arg := range call.Args {
			if _, err := seccomp.ConvertStringToOperator(string(arg.Op)); err != nil {
				return fmt.Errorf("syscalls: %s: %w", call.Names[0], err)
			}
		}
	}
	return nil
}
