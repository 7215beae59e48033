package e2e

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func id64(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }

// TestFieldsOfUsers asks the kernel who the workload is, and whether ContainerStatus tells the same.
func TestFieldsOfUsers(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.onEach(programs, func(t *testing.T, handler string) { checkUsers(t, n, handler) })
}

func checkUsers(t *testing.T, n *node, handler string) {
	pod := n.podConfig()
	podID := n.runPodOn(handler, pod)
	// inGroups has the groups of the image that list root, beside its own and 66.
	const inGroups = `echo $( (echo 0; echo 66; awk -F: '{n = split($4, m, ","); for (i = 1; i <= n; i++) if (m[i] == "root") print $3}' /etc/group) | sort -nu)`
	for name, row := range map[string]struct {
		change func(*runtimeapi.LinuxContainerSecurityContext)
		want   string // a script
	}{
		"image": {func(*runtimeapi.LinuxContainerSecurityContext) {}, ""},
		"merge": {func(s *runtimeapi.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{66} }, "echo 0; echo 0; " + inGroups},
		"strict": {func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.SupplementalGroups, s.SupplementalGroupsPolicy = []int64{66}, runtimeapi.SupplementalGroupsPolicy_Strict
		}, "echo 0; echo 0; echo 0 66"},
		"user and group": {func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = id64(1234), id64(55), []int64{66}
		}, "echo 1234; echo 55; echo 55 66"},
		"name and group": {func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUsername, s.RunAsGroup, s.SupplementalGroupsPolicy = "root", id64(77), runtimeapi.SupplementalGroupsPolicy_Strict
		}, "echo 0; echo 77; echo 77"},
	} {
		c := as(name, row.change)
		id := n.run(podID, pod, c)
		is, _ := n.exec(id, "id -u; id -g; echo $(id -G | tr ' ' '\\n' | sort -nu)")
		if row.want != "" {
			if want, _ := n.exec(id, row.want); is != want {
				t.Errorf("%s: is %q, want %q", name, is, want)
			}
		}
		user := n.status(id).User.GetLinux()
		groups := fmt.Sprint(user.SupplementalGroups)
		if told := fmt.Sprintf("%d\n%d\n%s", user.Uid, user.Gid, groups[1:len(groups)-1]); told != is {
			t.Errorf("%s: the status tells %q, the kernel %q", name, told, is)
		}
	}
}

func as(name string, change func(*runtimeapi.LinuxContainerSecurityContext)) *runtimeapi.ContainerConfig {
	return shell(strings.ReplaceAll(name, " ", "-"), "sleep 1000", security(change))
}

func TestRefusalsOfUsers(t *testing.T) {
	n := newNode(t)
	n.checkRefusals(t, n.podConfig(), map[string]refusalRow{
		"group alone": {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsGroup = id64(1) }), codes.InvalidArgument, "run_as_group"},
		"both": {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser, s.RunAsUsername = id64(1), "root" }),
			codes.InvalidArgument, "run_as_username"},
		"negative user": {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = id64(-1) }), codes.InvalidArgument, "run_as_user"},
		"huge group": {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{1 << 32} }),
			codes.InvalidArgument, "supplemental_groups"},
		"policy": {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.SupplementalGroupsPolicy = 9 }), codes.InvalidArgument, "supplemental_groups_policy"},
		"masked path": {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"proc/kcore"} }),
			codes.InvalidArgument, "masked_paths"},
		"read-only path": {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"proc/sys"} }),
			codes.InvalidArgument, "readonly_paths"},
	})
}
