package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runc/libcontainer/configs/validate"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"

	"criserver/pkg/sandbox/idmap"
	"criserver/pkg/sandbox/spec/spectest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// plainPod is a pod with namespaces of its own.
func plainPod() Pod {
	return Pod{
		ID: "p0d", Name: "web", Namespace: "shop", UID: "u-1", Hostname: "web-0",
		NetNS: "/run/criserver/pods/p0d/net", IPCNS: "/run/criserver/pods/p0d/ipc", UTSNS: "/run/criserver/pods/p0d/uts",
		ShmPath: "/run/criserver/pods/p0d/shm", ResolvConf: "/run/criserver/pods/p0d/resolv.conf",
		HostnameFile: "/run/criserver/pods/p0d/hostname", CgroupPath: "/kubepods/burstable/podu-1",
	}
}

// plainContainer is a container as the kubelet asks for it.
func plainContainer() Container {
	return Container{
		ID: "c0ntainer", Name: "nginx", ImageName: "docker.io/library/nginx:1.29", RootFS: "/run/criserver/containers/c0ntainer/rootfs",
		Image: ocispec.ImageConfig{
			Entrypoint: []string{"/entrypoint"}, Cmd: []string{"nginx", "-g"}, WorkingDir: "/srv",
			Env: []string{"PATH=/opt/bin:/bin", "VERSION=1.29"},
		},
		Env: []string{"PORT=80"},
		Mounts: []Mount{
			{Source: "/var/lib/kubelet/pods/u-1/token", Destination: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true},
			{Source: "/var/lib/kubelet/pods/u-1/etc-hosts", Destination: "/etc/hosts"},
		},
		Annotations: map[string]string{"io.kubernetes.container.hash": "abc"},
		User:        User{UID: 101, GID: 101, AdditionalGIDs: []uint32{29, 101}, Home: "/nonexistent"},
		NoNewPrivs:  true,
		Capabilities: Capabilities{
			Add: []string{"NET_ADMIN"}, Drop: []string{"MKNOD"},
		},
		Resources: Resources{
			CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 512, MemoryLimit: 64 << 20, OOMScoreAdj: 985,
		},
		SwapAccounting: true, UnifiedCgroup: true, MayLowerOOMScore: true,
	}
}

func privileged() (Pod, Container) {
	p, c := plainPod(), plainContainer()
	p.Privileged, c.Privileged = true, true
	c.TTY = true
	c.Seccomp = SeccompRuntimeDefault // has no effect
	c.CgroupMountOptions = []string{"nsdelegate"}
	c.Mounts = append(c.Mounts, Mount{Source: "/mnt", Destination: "/mnt", Propagation: PropagationBidirectional})
	c.HostDevices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
	return p, c
}

func hostNetwork() (Pod, Container) {
	p, c := plainPod(), plainContainer()
	p.NetNS, p.UTSNS = "", ""
	c.PID = PIDHost
	c.ReadOnlyRootFS = true
	c.UnifiedCgroup = false
	c.Seccomp = SeccompRuntimeDefault
	return p, c
}

func sharedPID() (Pod, Container) {
	p, c := plainPod(), plainContainer()
	c.PID, c.PIDNS = PIDPath, "/proc/4711/ns/pid"
	c.Command, c.Args = []string{"/bin/sh"}, []string{"-c", "true"}
	return p, c
}

func userNS() (Pod, Container) {
	p, c := plainPod(), plainContainer()
	ids := []idmap.Range{{Container: 0, Host: 65536, Size: 65536}}
	p.UserNS, p.Users = "/run/criserver/pods/p/ns/user", &idmap.Mappings{UIDs: ids, GIDs: ids}
	c.Mounts = append(c.Mounts, Mount{Source: "/srv/data", Destination: "/data", Users: p.Users})
	return p, c
}

var golden = map[string]func() (Pod, Container){
	"plain":       func() (Pod, Container) { return plainPod(), plainContainer() },
	"privileged":  privileged,
	"hostnetwork": hostNetwork,
	"sharedpid":   sharedPID,
	"userns":      userNS,
}

func TestBuildGolden(t *testing.T) {
	for name, input := range golden {
		t.Run(name, func(t *testing.T) {
			s := mustBuild(t)(input())
			if s.Linux.Seccomp != nil {
				// The list is the library's, and depends on kernel and architecture; seccomp_test.go is about it.
				s.Linux.Seccomp.Syscalls, s.Linux.Seccomp.Architectures = nil, nil
			}
			got, err := json.MarshalIndent(s, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("not as in %s (see git diff after go test -update):\n%s", file, got)
			}
		})
	}
}

// The built-in runtime must take whatever this package makes.
func TestBuildPleasesLibcontainer(t *testing.T) {
	for name, input := range golden {
		t.Run(name, func(t *testing.T) {
			s := mustBuild(t)(input())
			s.Root.Path = t.TempDir()
			for i := range s.Linux.Namespaces { // the validator wants them to exist
				if ns := &s.Linux.Namespaces[i]; ns.Path != "" {
					ns.Path = "/proc/self/ns/" + map[specs.LinuxNamespaceType]string{
						specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts",
						specs.PIDNamespace: "pid",
					}[ns.Type]
					if ns.Type == specs.UserNamespace { // the library enters it: one of the test's own
						ns.Path = userNSPath(t)
					}
				}
			}
			config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: "c", Spec: s})
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Validate(config); err != nil {
				t.Error(err)
			}
		})
	}
}

// userNSPath is a user namespace that lives as long as the test.
func userNSPath(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("sleep", "infinity")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 65536, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	if err := cmd.Start(); err != nil {
		t.Skipf("no user namespaces here: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid)
}

// Nor may there be a rule of the OCI that it breaks.
func TestBuildKeepsTheRules(t *testing.T) {
	for name, input := range golden {
		t.Run(name, func(t *testing.T) { spectest.Check(t, mustBuild(t)(input())) })
	}
}

func TestBuildIsPure(t *testing.T) {
	p, c := privileged()
	before, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	first, second := mustBuild(t)(p, c), mustBuild(t)(p, c)
	after, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("Build changed its input")
	}
	a, _ := json.Marshal(first)
	b, _ := json.Marshal(second)
	if !bytes.Equal(a, b) {
		t.Error("equal input gives different specifications")
	}
}

// mustBuild returns a Build that ends the test on an error.
func mustBuild(t *testing.T) func(Pod, Container) *specs.Spec {
	return func(p Pod, c Container) *specs.Spec {
		t.Helper()
		s, err := Build(p, c)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

// build makes the specification of a plain container that change was made to.
func build(t *testing.T, change func(p *Pod, c *Container)) *specs.Spec {
	t.Helper()
	p, c := plainPod(), plainContainer()
	change(&p, &c)
	return mustBuild(t)(p, c)
}

// wantError checks that Build refuses what change does, naming field.
func wantError(t *testing.T, field string, change func(p *Pod, c *Container)) {
	t.Helper()
	p, c := plainPod(), plainContainer()
	change(&p, &c)
	s, err := Build(p, c)
	if s != nil || !errors.Is(err, ErrInvalid) || err == nil || !strings.HasPrefix(err.Error(), field+": ") {
		t.Errorf("error %v does not name %s or is not ErrInvalid", err, field)
	}
}
