package enter

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestCompile(t *testing.T) {
	profile := &configs.Seccomp{
		DefaultAction: configs.Errno,
		Syscalls: []*configs.Syscall{
			{Name: "read", Action: configs.Allow},
			{Name: "personality", Action: configs.Allow, Args: []*configs.Arg{{Index: 0, Value: 8, Op: configs.EqualTo}}},
		},
	}
	f, err := Compile(t.Context(), profile)
	if err != nil {
		t.Fatal(err)
	}
	if f.flags != 0 {
		t.Errorf("flags %#x of a profile without", f.flags)
	}
	profile.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}
	g, err := Compile(t.Context(), profile)
	if err != nil {
		t.Fatal(err)
	}
	if g.flags != unix.SECCOMP_FILTER_FLAG_LOG || !slices.Equal(g.program, f.program) {
		t.Errorf("flags %#x, or another program", g.flags)
	}
	profile.Syscalls = append(profile.Syscalls, &configs.Syscall{Name: "write", Action: configs.Allow})
	h, err := Compile(t.Context(), profile)
	if err != nil || len(h.program) <= len(g.program) {
		t.Errorf("one call more makes no longer program, %v", err)
	}
	if _, err := Compile(t.Context(), &configs.Seccomp{DefaultAction: configs.Allow, Architectures: []string{"vax"}}); err == nil || !strings.Contains(err.Error(), "vax") {
		t.Errorf("a profile of no architecture: %v", err)
	}
}
