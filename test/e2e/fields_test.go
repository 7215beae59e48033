package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fieldRow is a field that is honoured: set it, look at it from inside.
type fieldRow struct {
	script string
	change containerChange
	want   string
}

// cannot has the rows that a runtime cannot do, with its own words for that.
var cannot = map[string]string{
	// Debian 12's runc, 1.1, takes no flags of seccomp, which the profile has.
	"TestSeccompAndCapabilities/runc/localhost":                       "seccomp flags are not yet supported by runc",
	"TestSeccompAndCapabilities/runc/localhost_in_its_old_form":       "seccomp flags are not yet supported by runc",
	"TestSeccompAndCapabilities/runc/no_new_privileges_with_a_filter": "seccomp flags are not yet supported by runc",
	// Debian 12's crun, 1.8, does not tell what it can do.
	"TestMountFields/crun/recursive_read-only":                "RROUnsupported: ",
	"TestMountFields/crun/recursive_read-only_and_privileged": "RROUnsupported: ",
}

// checkFields runs the rows over each runtime that the node is configured with, in a pod of its own, which is changed so.
func (n *node) checkFields(t *testing.T, programs map[string]string, rows map[string]fieldRow, change ...func(*runtimeapi.PodSandboxConfig)) {
	t.Helper()
	n.onEach(programs, func(_ *testing.T, handler string) {
		pod := n.podConfig(change...)
		podID := n.runPodOn(handler, pod)
		for name, row := range rows {
			n.sub(name, func(t *testing.T) {
				c := shell(strings.ReplaceAll(name, " ", "-"), row.script)
				if row.change != nil {
					row.change(c)
				}
				if reason := cannot[t.Name()]; reason != "" {
					if _, err := n.create(podID, pod, c); err == nil || !strings.Contains(err.Error(), reason) {
						t.Errorf("err = %v, want %q", err, reason)
					}
					return
				}
				if out, _ := n.output(podID, pod, c); out != row.want {
					t.Errorf("out = %q, want %q", out, row.want)
				}
			})
		}
	})
}

// refusalRow is a wrong value: the code that comes back, and what the message names.
type refusalRow struct {
	change containerChange
	code   codes.Code
	names  string
}

func (n *node) checkRefusals(t *testing.T, pod *runtimeapi.PodSandboxConfig, rows map[string]refusalRow) {
	t.Helper()
	podID := n.runPod(pod)
	for name, row := range rows {
		n.sub(name, func(t *testing.T) {
			c := shell("c", "true")
			row.change(c)
			if _, err := n.create(podID, pod, c); status.Code(err) != row.code || !strings.Contains(err.Error(), row.names) {
				t.Errorf("err = %v, want %s that names %q", err, row.code, row.names)
			}
		})
	}
	ofPod := &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: podID}}
	if left, err := n.ListContainers(t.Context(), ofPod); err != nil || len(left.Containers) > 0 {
		t.Errorf("refused containers are left: %v, %v", left, err)
	}
}

// writeFile writes a file of the host that a container is about to use.
func (n *node) writeFile(name, text string) string {
	n.t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
	return path
}

func localhost(ref string) *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
}

func privilegedPod(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }

// noChmod lets chmod fail with ENOSYS, as no other filter does, and by its argument: mode 0123 only.
const noChmod = `{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
	"flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"], "syscalls": [
	{"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "args": [{"index": 1, "value": 83, "op": "SCMP_CMP_EQ"}]},
	{"names": ["fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "args": [{"index": 2, "value": 83, "op": "SCMP_CMP_EQ"}]}]}`

func TestSeccompAndCapabilities(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	profile := n.writeFile("no-chmod.json", noChmod)
	const tryChmod = "chmod 0123 /etc/passwd 2>&1 | grep -o 'not implemented'; chmod 0644 /etc/passwd && grep Seccomp: /proc/self/status | cut -f2"
	n.checkFields(t, programs, map[string]fieldRow{
		"localhost": {tryChmod, security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Seccomp = localhost(profile) }), "not implemented\n2"},
		"localhost in its old form": {tryChmod, security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.SeccompProfilePath = "localhost/" + profile //nolint:staticcheck // deprecated, still sent
		}), "not implemented\n2"},
		"localhost of a privileged container": {tryChmod, security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Privileged, s.Seccomp = true, localhost(profile)
		}), "0"},
		"unconfined": {tryChmod, security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		}), "0"},
		"no new privileges with a filter": {"grep -E 'NoNewPrivs|Seccomp:' /proc/self/status | cut -f2", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.NoNewPrivs, s.Seccomp = true, localhost(profile)
		}), "1\n2"},
		"ambient capabilities": {"grep -E 'Cap(Inh|Eff|Amb)' /proc/self/status | cut -f2", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}, DropCapabilities: []string{"ALL"}}
		}), "0000000000000400\n0000000000000400\n0000000000000400"},
		"no ambient capabilities": {"grep -E 'Cap(Inh|Eff|Amb)' /proc/self/status | cut -f2", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_BIND_SERVICE"}}
		}), "0000000000000000\n0000000000000000\n0000000000000000"},
		"dropped wins": {"grep -E 'Cap(Bnd|Amb)' /proc/self/status | cut -f2", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{
				AddCapabilities: []string{"CAP_SYS_TIME"}, AddAmbientCapabilities: []string{"chown"}, DropCapabilities: []string{"SYS_TIME", "CHOWN"},
			}
		}), "00000000a80425fa\n0000000000000000"},
	}, privilegedPod)
	broken := n.writeFile("broken.json", `{"defaultAction": "SCMP_ACT_FORBID"}`)
	rows := map[string]refusalRow{
		"no such profile": {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Seccomp = localhost("/no/such.json") }), codes.InvalidArgument, "/no/such.json"},
		"relative":        {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Seccomp = localhost("such.json") }), codes.InvalidArgument, "seccomp.localhost_ref"},
		"broken":          {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Seccomp = localhost(broken) }), codes.InvalidArgument, "SCMP_ACT_FORBID"},
		"unknown ambient capability": {security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"FLY"}}
		}), codes.InvalidArgument, "add_ambient_capabilities"},
		"apparmor profile": {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Apparmor = localhost("no-such") }), codes.InvalidArgument, "apparmor"},
		"env": {func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "BYTES", Value: []byte{0xff, 0xfe}}}
		}, codes.InvalidArgument, "BYTES"},
	}
	if !exists("/sys/module/apparmor") {
		rows["apparmor's default"] = refusalRow{security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		}), codes.InvalidArgument, "security_context.apparmor: "}
	}
	n.checkRefusals(t, n.podConfig(), rows)
}
