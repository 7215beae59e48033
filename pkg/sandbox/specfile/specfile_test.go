package specfile

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestDecodeReadsWhatWasWritten(t *testing.T) {
	dir := t.TempDir()
	if err := Write(dir, &specs.Spec{Version: specs.Version, Process: &specs.Process{Cwd: "/work", Terminal: true}}); err != nil {
		t.Fatal(err)
	}
	var part struct {
		Process struct {
			Cwd      string
			Terminal bool
		}
	}
	if err := Decode(dir, &part); err != nil || part.Process.Cwd != "/work" || !part.Process.Terminal {
		t.Errorf("Decode = %+v, %v, want the process that was written", part, err)
	}
	if data, err := Read(dir); err != nil || !strings.Contains(string(data), `"cwd":"/work"`) {
		t.Errorf("Read = %s, %v, want JSON with the process", data, err)
	}
}

func TestErrors(t *testing.T) {
	dir := t.TempDir()
	if err := Decode(dir, &specs.Spec{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Decode of a bundle without specification = %v, want os.ErrNotExist", err)
	}
	if err := os.WriteFile(path(dir), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Decode(dir, &specs.Spec{}); err == nil || !strings.Contains(err.Error(), path(dir)) {
		t.Errorf("Decode of a file cut off = %v, want an error that names it", err)
	}
}
