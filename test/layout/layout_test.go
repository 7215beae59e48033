// Package layout holds the rules that the design of the whole depends on.
package layout

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	maxFunction = 100  // lines
	maxPackage  = 2000 // lines without tests
)

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// imports lists what each package of the project imports, directly and (deps) in all.
func imports(t *testing.T, args ...string) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-tags", "seccomp", "-json=ImportPath,Imports,Deps"}, args...)...)
	cmd.Dir = root(t)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string][]string{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Deps       []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p.Deps
	}
}

func under(pkg, dir string) bool { return pkg == dir || strings.HasPrefix(pkg, dir+"/") }

func TestImportBans(t *testing.T) {
	all := imports(t, "./...")
	if len(all) < 10 {
		t.Fatalf("only %d packages were found", len(all))
	}
	for pkg, deps := range all {
		for _, dep := range deps {
			switch {
			case under(pkg, "criserver/pkg/sandbox") && under(dep, "criserver/pkg/imagesvc"),
				under(pkg, "criserver/pkg/imagesvc") && under(dep, "criserver/pkg/sandbox"):
				t.Errorf("%s depends on %s: pods and images know nothing of each other, the edge hands down values", pkg, dep)
			case under(pkg, "criserver/pkg") && !under(pkg, "criserver/pkg/cri") && strings.HasPrefix(dep, "k8s.io/cri-api"):
				t.Errorf("%s depends on %s: only the edge speaks the CRI's protobuf", pkg, dep)
			case under(pkg, "criserver/pkg") && under(dep, "criserver/cmd"):
				t.Errorf("%s depends on %s: wiring is the top", pkg, dep)
			case under(pkg, "criserver/cmd") && (under(dep, "github.com/opencontainers/runtime-tools/validate") ||
				under(dep, "criserver/pkg") && strings.HasSuffix(dep, "test")):
				t.Errorf("%s depends on %s: that is for tests", pkg, dep)
			}
		}
	}
}

// Every package that crimonitor imports is paid for at the start of every container.
func TestMonitorStaysSmall(t *testing.T) {
	for _, dep := range imports(t, "./cmd/crimonitor")["criserver/cmd/crimonitor"] {
		for _, heavy := range []string{"google.golang.org/grpc", "modernc.org/sqlite", "oras.land", "net/http", "k8s.io",
			"github.com/prometheus", "go.opentelemetry.io", "github.com/spf13"} {
			if under(dep, heavy) {
				t.Errorf("crimonitor depends on %s", dep)
			}
		}
	}
}

func TestSizes(t *testing.T) {
	packages := map[string]int{}
	err := filepath.WalkDir(root(t), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok {
				if n := set.Position(fn.End()).Line - set.Position(fn.Pos()).Line + 1; n > maxFunction {
					t.Errorf("%s: %s has %d lines, at most %d", path, fn.Name.Name, n, maxFunction)
				}
			}
		}
		if !strings.HasSuffix(path, "_test.go") {
			packages[filepath.Dir(path)] += set.Position(file.End()).Line
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, n := range packages {
		if n > maxPackage {
			t.Errorf("%s has %d lines, at most %d", dir, n, maxPackage)
		}
	}
}
