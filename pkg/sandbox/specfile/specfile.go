// Package specfile reads and writes the specification of an OCI bundle, config.json (runtime-spec, bundle.md): what the daemon writes
// and crimonitor reads.
package specfile

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/wholefile"
)

func path(bundle string) string { return filepath.Join(bundle, "config.json") }

// Write writes the specification of the bundle in a directory, whole or not at all.
func Write(bundle string, spec *specs.Spec) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode specification: %w", err)
	}
	if err := wholefile.Write(path(bundle), data); err != nil {
		return fmt.Errorf("write specification: %w", err)
	}
	return nil
}

// Read returns the specification in JSON. os.ErrNotExist.
func Read(bundle string) ([]byte, error) {
	data, err := os.ReadFile(path(bundle))
	if err != nil {
		return nil, fmt.Errorf("read specification: %w", err)
	}
	return data, nil
}

// Decode reads the specification into out, a pointer to specs.Spec or to a struct of the parts of it that are wanted, which costs
// less. os.ErrNotExist.
func Decode(bundle string, out any) error {
	data, err := Read(bundle)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("decode specification %s: %w", path(bundle), err)
	}
	return nil
}
