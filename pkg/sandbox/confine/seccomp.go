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
	"criserver/pkg/sandbox/spec"
)

const (
	fieldSeccomp = "security_context.seccomp.localhost_ref"
	// maxSeccomp is many times what a filter has that names each system call.
	maxSeccomp = 4 << 20
)

// Seccomp reads a filter from a file in the form of the OCI specification (config-linux.md, "Seccomp").
func Seccomp(ctx context.Context, path string) (*specs.LinuxSeccomp, error) {
	data, err := hostpath.Ask(ctx, path, func() ([]byte, error) { return readRegular(path) })
	if errors.Is(err, os.ErrNotExist) {
		return nil, spec.Invalidf(fieldSeccomp, "the node has no file %s", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read seccomp profile: %w", err)
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

func readRegular(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // opening a pipe waits for its other end
		return nil, spec.Invalidf(fieldSeccomp, "%s is no regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSeccomp+1))
	if len(data) > maxSeccomp {
		return nil, spec.Invalidf(fieldSeccomp, "%s is larger than %d bytes", path, maxSeccomp)
	}
	return data, err
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
