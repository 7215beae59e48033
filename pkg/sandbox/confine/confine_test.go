package confine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/spec"
)

func TestSeccomp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.json")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "flags": ["SECCOMP_FILTER_FLAG_LOG"],
		"syscalls": [{"names": ["chmod", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38,
			"args": [{"index": 1, "value": 511, "op": "SCMP_CMP_EQ"}]}]}`)
	p, err := Seccomp(t.Context(), hostpath.Files{}, path)
	if err != nil || len(p.Syscalls) != 1 || *p.Syscalls[0].ErrnoRet != 38 || p.Syscalls[0].Args[0].Value != 511 {
		t.Fatalf("%+v, %v", p, err)
	}
	for text, names := range map[string]string{
		"": "no seccomp profile", "[]": "no seccomp profile", "{}": "defaultAction", `{"defaultAction": "SCMP_ACT_NO"}`: "SCMP_ACT_NO",
		`{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z80"]}`:                                                   "SCMP_ARCH_Z80",
		`{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_NO"]}`:                                                              "SECCOMP_NO",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_KILL"}]}`:                                            "names",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "X"}]}`:                                    "chmod",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_KILL", "args": [{"op": "X"}]}]}`: "chmod",
		strings.Repeat(" ", maxSeccomp+1): "larger",
	} {
		write(text)
		if _, err := Seccomp(t.Context(), hostpath.Files{}, path); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), names) || !strings.Contains(err.Error(), path) {
			t.Errorf("%.80q: %v", text, err)
		}
	}
	if _, err := Seccomp(t.Context(), hostpath.Files{}, path+"x"); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), path+"x") {
		t.Errorf("no file: %v", err)
	}
}

func TestSeccompFromAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := Seccomp(ctx, hostpath.Files{}, path); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("err = %v", err)
	}
}

func TestAppArmorProfileOfTheNode(t *testing.T) {
	_, err := AppArmor{Kind: AppArmorLocalhost, Profile: "no-such-profile"}.Resolve(t.Context(), false)
	if !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "no-such-profile") {
		t.Errorf("err = %v", err)
	}
	if name, err := (AppArmor{Kind: AppArmorUnconfined}).Resolve(t.Context(), false); name != "" || err != nil {
		t.Errorf("unconfined: %q, %v", name, err)
	}
	for _, kind := range []AppArmorKind{AppArmorDefault, AppArmorRuntimeDefault} {
		if name, err := (AppArmor{Kind: kind}).Resolve(t.Context(), true); name != "" || err != nil {
			t.Errorf("privileged: %q, %v", name, err)
		}
	}
	name, err := AppArmor{}.Resolve(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	asked, err := AppArmor{Kind: AppArmorRuntimeDefault}.Resolve(t.Context(), false)
	if name == "" { // it cannot be loaded
		if !errors.Is(err, spec.ErrInvalid) || !strings.HasPrefix(err.Error(), "security_context.apparmor: ") {
			t.Errorf("the default that the node does not have, asked for: %v", err)
		}
		return
	}
	if asked != name || err != nil {
		t.Errorf("the default, asked for: %q, %v", asked, err)
	}
	if !kernelConfines() {
		t.Fatalf("%q where the kernel does not confine", name)
	}
	if loaded, err := profileLoaded(name); name != DefaultAppArmor || !loaded {
		t.Errorf("%q, loaded: %t, %v", name, loaded, err)
	}
	if got, err := (AppArmor{Kind: AppArmorLocalhost, Profile: name}).Resolve(t.Context(), false); got != name || err != nil {
		t.Errorf("by its name: %q, %v", got, err)
	}
}
