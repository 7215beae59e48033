package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// wrong is a request that cannot be answered: the code of the error, and what its message names.
type wrong struct {
	call  func(ctx context.Context, n *node) error
	code  codes.Code
	names string
}

func checkWrong(t *testing.T, n *node, rows map[string]wrong) {
	t.Helper()
	for name, row := range rows {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a test that hangs is killed, and cleans nothing up
		err := row.call(ctx, n)
		cancel()
		if status.Code(err) != row.code || row.names != "" && !strings.Contains(err.Error(), row.names) {
			t.Errorf("%s: err = %v, want %s that names %q", name, err, row.code, row.names)
		}
	}
}

// refusal drops the answer of a call.
func refusal[T any](_ T, err error) error { return err }

type podSecurity = runtimeapi.LinuxSandboxSecurityContext

// TestWrongPods has a row for each value of a pod's configuration that can never work.
func TestWrongPods(t *testing.T) {
	n := newNode(t)
	file := n.writeFile("file", "")
	rows := map[string]wrong{
		"no configuration": {func(ctx context.Context, n *node) error {
			return refusal(n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{}))
		}, codes.InvalidArgument, "config"},
		"handler": {func(ctx context.Context, n *node) error {
			return refusal(n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: n.podConfig(), RuntimeHandler: "no-such"}))
		}, codes.InvalidArgument, "no-such"},
	}
	type change = func(*runtimeapi.PodSandboxConfig)
	options := func(fn func(*runtimeapi.NamespaceOption)) change {
		return func(c *runtimeapi.PodSandboxConfig) { fn(c.Linux.SecurityContext.NamespaceOptions) }
	}
	confined := func(fn func(*podSecurity)) change {
		return func(c *runtimeapi.PodSandboxConfig) { fn(c.Linux.SecurityContext) }
	}
	for name, row := range map[string]struct {
		change change
		names  string
	}{
		"no metadata":          {func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil }, "metadata"},
		"no name":              {func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "" }, "metadata"},
		"no namespace":         {func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Namespace = "" }, "metadata"},
		"no uid":               {func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = "" }, "metadata"},
		"long host name":       {func(c *runtimeapi.PodSandboxConfig) { c.Hostname = strings.Repeat("h", 65) }, "hostname"},
		"relative logs":        {func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "logs" }, "log_directory"},
		"relative cgroup":      {func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "a/b" }, "cgroup_parent"},
		"root cgroup":          {func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/" }, "cgroup_parent"},
		"cgroup with dots":     {func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../b" }, "cgroup_parent"},
		"DNS with a new line":  {func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig = &runtimeapi.DNSConfig{Options: []string{"a\nb"}} }, "dns_config"},
		"sysctl of the node":   {func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"vm.swappiness": "1"} }, "vm.swappiness"},
		"sysctl with a path":   {func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net/../vm": "1"} }, "sysctls"},
		"sysctl of no kernel":  {func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.no.such": "1"} }, "linux.sysctls: "},
		"sysctl's value":       {func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "x"} }, "linux.sysctls: "},
		"file of logs":         {func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = file }, "log_directory: "},
		"logs below a file":    {func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = file + "/logs" }, "log_directory: "},
		"logs with a NUL":      {func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "/tmp/a\x00b" }, "log_directory: "},
		"port":                 {func(c *runtimeapi.PodSandboxConfig) { c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 70000}} }, "port_mappings"},
		"negative port":        {func(c *runtimeapi.PodSandboxConfig) { c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: -1}} }, "port_mappings"},
		"protocol":             {func(c *runtimeapi.PodSandboxConfig) { c.PortMappings = []*runtimeapi.PortMapping{{Protocol: 9}} }, "protocol"},
		"own IPC of container": {options(func(o *runtimeapi.NamespaceOption) { o.Ipc = runtimeapi.NamespaceMode_CONTAINER }), "ipc"},
		"network of target":    {options(func(o *runtimeapi.NamespaceOption) { o.Network = runtimeapi.NamespaceMode_TARGET }), "network"},
		"PIDs of target":       {options(func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_TARGET }), "pid"},
		"host name":            {func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "a\nb" }, "hostname"},
		"long cgroup": {func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.CgroupParent = strings.Repeat("/aaaa", 300)
		}, "linux.cgroup_parent"},
		"cgroup with a line": {func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/a\nb" }, "linux.cgroup_parent"},
		"unknown mode":       {options(func(o *runtimeapi.NamespaceOption) { o.Pid = 77 }), "pid"},
		"group without user": {func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1}
		}, "run_as_group"},
		"negative user":  {confined(func(s *podSecurity) { s.RunAsUser = &runtimeapi.Int64Value{Value: -1} }), "run_as_user"},
		"too large user": {confined(func(s *podSecurity) { s.RunAsUser = &runtimeapi.Int64Value{Value: 1 << 32} }), "run_as_user"},
		"negative group": {confined(func(s *podSecurity) {
			s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{Value: 1}, &runtimeapi.Int64Value{Value: -1}
		}), "run_as_group"},
		"negative groups":    {confined(func(s *podSecurity) { s.SupplementalGroups = []int64{1, -1} }), "supplemental_groups"},
		"policy of groups":   {confined(func(s *podSecurity) { s.SupplementalGroupsPolicy = 9 }), "supplemental_groups_policy"},
		"seccomp type":       {confined(func(s *podSecurity) { s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: 9} }), "seccomp.profile_type"},
		"seccomp of no file": {confined(func(s *podSecurity) { s.Seccomp = localhost("") }), "seccomp.localhost_ref"},
		"seccomp and a file": {confined(func(s *podSecurity) { s.Seccomp = &runtimeapi.SecurityProfile{LocalhostRef: "/x"} }), "seccomp.localhost_ref"},
		"AppArmor type":      {confined(func(s *podSecurity) { s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: 9} }), "apparmor.profile_type"},
		"AppArmor of none":   {confined(func(s *podSecurity) { s.Apparmor = localhost("") }), "apparmor.localhost_ref"},
		"old seccomp": {confined(func(s *podSecurity) {
			s.SeccompProfilePath = "no/such" //nolint:staticcheck // deprecated, still sent
		}), "seccomp_profile_path"},
		"memory": {func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -7}
		}, "resources.memory_limit_in_bytes"},
		"period": {func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Overhead = &runtimeapi.LinuxContainerResources{CpuPeriod: 5}
		}, "overhead.cpu_period"},
		"shares": {func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 1}
		}, "resources.cpu_shares"},
		"Windows": {func(c *runtimeapi.PodSandboxConfig) { c.Windows = &runtimeapi.WindowsPodSandboxConfig{} }, "windows"},
	} {
		rows[name] = wrong{func(ctx context.Context, n *node) error {
			return refusal(n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: n.podConfig(row.change)}))
		}, codes.InvalidArgument, row.names}
	}
	checkWrong(t, n, rows)
	if left, err := n.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); err != nil || len(left.Items) > 0 {
		t.Errorf("refused pods are left: %v, %v", left, err)
	}
}

// TestWrongContainers has a row for each value that only a look at the node's or the image's files finds to be wrong, or that no string
// of the kernel's can hold.
func TestWrongContainers(t *testing.T) {
	n := newNode(t)
	file, dangling := n.writeFile("file", ""), filepath.Join(n.dir, "dangling")
	if err := os.Symlink("no-such", dangling); err != nil {
		t.Fatal(err)
	}
	mount := func(from, to string) containerChange {
		return func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: from, ContainerPath: to}}
		}
	}
	image := func(fn func(*runtimeapi.Mount)) containerChange {
		m := &runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: busyboxImage}}
		fn(m)
		return mounting(m)
	}
	const nul = "/a\x00b"
	rows := map[string]refusalRow{}
	for name, row := range map[string]struct {
		change containerChange
		names  string
	}{
		"host path below a file":   {mount(file+"/x", "/v"), "mounts.host_path: "},
		"dangling host path":       {mount(dangling, "/v"), "mounts.host_path: "},
		"host path with a NUL":     {mount(nul, "/v"), "host_path"},
		"mount below /proc":        {mount(n.dir, "/proc/sys"), "mounts.container_path: "},
		"directory on /proc":       {mount(n.dir, "/proc"), "mounts.container_path: "},
		"file on a directory":      {mount(file, "/etc"), "mounts.container_path: "},
		"directory on a file":      {mount(n.dir, "/etc/passwd"), "mounts.container_path: "},
		"mount below a file":       {mount(n.dir, "/etc/passwd/x"), "mounts.container_path: "},
		"container path and NUL":   {mount(n.dir, nul), "container_path"},
		"device with a NUL":        {func(c *runtimeapi.ContainerConfig) { c.Devices = []*runtimeapi.Device{{HostPath: nul}} }, "devices[0]"},
		"work in a file":           {func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/etc/passwd" }, "working_dir: "},
		"work below a file":        {func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "/etc/passwd/x" }, "working_dir: "},
		"work where a NUL is":      {func(c *runtimeapi.ContainerConfig) { c.WorkingDir = nul }, "working_dir: "},
		"log in no file":           {func(c *runtimeapi.ContainerConfig) { c.LogPath = "." }, "log_path: "},
		"log with a NUL":           {func(c *runtimeapi.ContainerConfig) { c.LogPath = "a\x00b" }, "log_path: "},
		"command with a NUL":       {func(c *runtimeapi.ContainerConfig) { c.Command = []string{"a\x00b"} }, "command: "},
		"argument with a NUL":      {func(c *runtimeapi.ContainerConfig) { c.Args = []string{"a\x00b"} }, "args: "},
		"variable with a NUL":      {func(c *runtimeapi.ContainerConfig) { c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte(nul)}} }, "envs: "},
		"masked path with a NUL":   {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.MaskedPaths = []string{nul} }), "masked_paths: "},
		"readonly path and NUL":    {security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{nul} }), "readonly_paths: "},
		"writable image, rro":      {image(func(m *runtimeapi.Mount) { m.RecursiveReadOnly = true }), "mounts[0].recursive_read_only: "},
		"shared image":             {image(func(m *runtimeapi.Mount) { m.Propagation = sharedMount }), "mounts[0].propagation: "},
		"image of other users":     {image(func(m *runtimeapi.Mount) { m.UidMappings = []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}} }), "mounts.mappings: "},
		"image of no name":         {image(func(m *runtimeapi.Mount) { m.Image.Image = "" }), "mounts[0].image.image: "},
		"image and unknown option": {image(func(m *runtimeapi.Mount) { m.MountOptions = []string{"exec"} }), "mounts.mount_options: "},
	} {
		rows[name] = refusalRow{row.change, codes.InvalidArgument, row.names}
	}
	n.checkRefusals(t, n.podConfig(), rows)
}

// TestWrongCalls has a row for each call on what is not there, or not in the state for it, and for each wrong argument.
func TestWrongCalls(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	runs := n.run(podID, pod, shell("runs", "while :; do sleep 1; done"))
	exited := n.run(podID, pod, shell("exited", "exit 3"))
	n.awaitExit(exited)
	created, err := n.create(podID, pod, shell("created", "true"))
	if err != nil {
		t.Fatal(err)
	}
	create := func(pod string, config *runtimeapi.ContainerConfig) func(context.Context, *node) error {
		return func(ctx context.Context, n *node) error {
			return refusal(n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config}))
		}
	}
	start := func(id string) func(context.Context, *node) error {
		return func(ctx context.Context, n *node) error {
			return refusal(n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}))
		}
	}
	exec := func(id string, timeout int64, cmd ...string) func(context.Context, *node) error {
		return func(ctx context.Context, n *node) error {
			return refusal(n.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: timeout}))
		}
	}
	reopen := func(id string) func(context.Context, *node) error {
		return func(ctx context.Context, n *node) error {
			return refusal(n.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id}))
		}
	}
	state := func(id string) func(context.Context, *node) error {
		return func(ctx context.Context, n *node) error {
			return refusal(n.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id}))
		}
	}
	podState := func(id string) func(context.Context, *node) error {
		return func(ctx context.Context, n *node) error {
			return refusal(n.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id}))
		}
	}
	otherID := n.runPod(n.podConfig())
	debug := func(target string) *runtimeapi.ContainerConfig {
		return shell("debug", "true", security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: target}
		}))
	}
	// Something that is no file is at the path of a log, and of one that is reopened.
	fifo, runsLog := filepath.Join(pod.LogDirectory, "fifo.log"), filepath.Join(pod.LogDirectory, "runs.log")
	if err := errors.Join(unix.Mkfifo(fifo, 0o600), os.Rename(runsLog, runsLog+".1"), unix.Mkfifo(runsLog, 0o600)); err != nil {
		t.Fatal(err)
	}
	checkWrong(t, n, map[string]wrong{
		"create with a FIFO as log":      {create(podID, shell("fifo", "true")), codes.FailedPrecondition, fifo},
		"a FIFO as log that is reopened": {reopen(runs), codes.FailedPrecondition, runsLog},
		"processes of another pod":       {create(otherID, debug(runs)), codes.InvalidArgument, "target_id: container " + runs + " is in another pod"},
		"processes of an unknown target": {create(podID, debug("nobody")), codes.InvalidArgument, "target_id: invalid"},
		"processes of no target":         {create(podID, debug("")), codes.InvalidArgument, "target_id: invalid"},
		"processes of an exited target":  {create(podID, debug(exited)), codes.FailedPrecondition, "target_id: container " + exited},
		"create of nothing":              {create(podID, nil), codes.InvalidArgument, "config"},
		"create without an image":        {create(podID, shell("x", "true", func(c *runtimeapi.ContainerConfig) { c.Image = nil })), codes.InvalidArgument, "image"},
		"create in no pod":               {create("", shell("x", "true")), codes.NotFound, "pod"},
		"create in an unknown pod":       {create("nobody", shell("x", "true")), codes.NotFound, "nobody"},
		"start of nothing":               {start(""), codes.NotFound, "container"},
		"start of an unknown container":  {start("nobody"), codes.NotFound, "nobody"},
		"start of a running container":   {start(runs), codes.FailedPrecondition, "running"},
		"start of an exited container":   {start(exited), codes.FailedPrecondition, "exited"},
		"exec in an unknown container":   {exec("nobody", 1, "true"), codes.NotFound, "nobody"},
		"exec in a created container":    {exec(created, 1, "true"), codes.FailedPrecondition, "created"},
		"exec in an exited container":    {exec(exited, 1, "true"), codes.FailedPrecondition, "exited"},
		"exec of nothing":                {exec(runs, 1), codes.InvalidArgument, "cmd"},
		"exec with a negative timeout":   {exec(runs, -1, "true"), codes.InvalidArgument, "timeout"},
		"exec of a NUL":                  {exec(runs, 1, "echo", "a\x00b"), codes.InvalidArgument, "cmd"},
		"streamed exec of a NUL": {func(ctx context.Context, n *node) error {
			return refusal(n.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: runs, Cmd: []string{"a\x00b"}, Stdout: true}))
		}, codes.InvalidArgument, "cmd"},
		"exec of what is not there":        {exec(runs, 1, "/no/such"), codes.Unknown, "/no/such"},
		"exec that takes too long":         {exec(runs, 1, "sleep", "60"), codes.DeadlineExceeded, "timed out"},
		"log of an unknown container":      {reopen("nobody"), codes.NotFound, "nobody"},
		"log of an exited container":       {reopen(exited), codes.FailedPrecondition, "exited"},
		"status of nothing":                {state(""), codes.NotFound, "container"},
		"status of an unknown container":   {state("nobody"), codes.NotFound, "nobody"},
		"status of no pod":                 {podState(""), codes.NotFound, "pod"},
		"status of a container as a pod's": {podState(runs), codes.NotFound, runs},
	})
	for name, list := range map[string]*runtimeapi.ContainerFilter{
		"an unknown ID": {Id: "nobody"}, "an unknown pod": {PodSandboxId: "nobody"}, "an unknown label": {LabelSelector: map[string]string{"a": "b"}},
	} {
		if r, err := n.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: list}); err != nil || len(r.Containers) > 0 {
			t.Errorf("a list of %s: %v, %v", name, r, err)
		}
	}
	// A stop ends, whatever its timeout: this one is positive in nanoseconds, if they overflow.
	if _, err := n.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: runs, Timeout: -9223372037}); err != nil {
		t.Errorf("stop with a negative timeout: %v", err)
	}
	if st := n.status(runs); st.ExitCode != 137 {
		t.Errorf("stop with a negative timeout: %v", st)
	}
}
