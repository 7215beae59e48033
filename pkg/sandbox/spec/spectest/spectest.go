// Package spectest checks specifications by the rules of the OCI: the JSON schema of runtime-spec, in the version of go.mod, and what
// github.com/opencontainers/runtime-tools knows beside it. It is for tests alone.
package spectest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-multierror"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/validate"
	"github.com/xeipuuv/gojsonschema"
)

// Check fails the test if a specification breaks a rule. It is not changed.
func Check(t *testing.T, s *specs.Spec) {
	t.Helper()
	for _, err := range Errors(t, s) {
		t.Error(err)
	}
}

// Errors are the rules that a specification breaks. One is left out: the schema does not know the recursive forms of
// linux.rootfsPropagation, which containerd and CRI-O write and runc and crun take, and which are what Kubernetes means.
func Errors(t *testing.T, s *specs.Spec) []error {
	t.Helper()
	s = clone(t, s)
	if s.Linux != nil && slices.Contains([]string{"rshared", "rslave", "rprivate"}, s.Linux.RootfsPropagation) {
		s.Linux.RootfsPropagation = s.Linux.RootfsPropagation[1:]
	}
	return append(schemaErrors(t, s), toolErrors(t, s)...)
}

// clone is a copy as a runtime gets it.
func clone(t *testing.T, s *specs.Spec) *specs.Spec {
	t.Helper()
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	out := &specs.Spec{}
	if err := json.Unmarshal(data, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// schemaDir is where the schema is: with the source of the module. What it refers to is beside it, so nothing is downloaded.
var schemaDir = sync.OnceValues(func() (string, error) {
	out, err := exec.CommandContext(context.Background(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/opencontainers/runtime-spec").Output()
	if err != nil {
		return "", fmt.Errorf("find the schema of runtime-spec: %w", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "schema"), nil
})

// schemaErrors needs the go command, which is where tests are built, though not wherever they run.
func schemaErrors(t *testing.T, s *specs.Spec) []error {
	t.Helper()
	dir, err := schemaDir()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	schema := url.URL{Scheme: "file", Path: filepath.Join(dir, "config-schema.json")}
	result, err := gojsonschema.Validate(gojsonschema.NewReferenceLoader(schema.String()), gojsonschema.NewGoLoader(s))
	if err != nil {
		t.Fatal(err)
	}
	var errs []error
	for _, e := range result.Errors() {
		errs = append(errs, fmt.Errorf("schema: %s", e))
	}
	return errs
}

// toolErrors leaves out two checks of runtime-tools: that of the schema, which it downloads, and that of the root, which it wants to
// exist and to be inside of the bundle.
func toolErrors(t *testing.T, s *specs.Spec) []error {
	t.Helper()
	s = forTools(clone(t, s))
	v, err := validate.NewValidator(s, t.TempDir(), false, "linux")
	if err != nil {
		t.Fatal(err)
	}
	var errs []error
	for _, check := range []func() error{
		v.CheckPlatform, v.CheckMandatoryFields, v.CheckSemVer, v.CheckMounts, v.CheckProcess, v.CheckLinux, v.CheckAnnotations, v.CheckHooks,
	} {
		for _, err := range multierror.Append(nil, check()).Errors { // what it returns without errors is not nil
			errs = append(errs, fmt.Errorf("runtime-tools: %w", err))
		}
	}
	return errs
}

// forTools takes away what runtime-tools 0.9 holds for wrong and is not.
func forTools(s *specs.Spec) *specs.Spec {
	if s.Process != nil {
		s.Process.ApparmorProfile = "" // it looks for its file in the root; the profile is the node's
	}
	if s.Linux != nil {
		// It wants mappings of users with new namespaces only, not with one that is joined.
		for i, n := range s.Linux.Namespaces {
			if n.Type == specs.UserNamespace && filepath.IsAbs(n.Path) {
				s.Linux.Namespaces[i].Path = ""
			}
		}
	}
	return s
}
