package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/imagesvc/registry/registrytest"
	"criserver/test/hungfs"
)

// hungDir mounts a FUSE file system of which nobody reads the requests, so that all that is done there hangs.
func hungDir(t *testing.T, dir string) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("the machine has no FUSE: %v", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("hung", dir, "fuse", 0, "fd="+strconv.Itoa(fd)+",rootmode=40000,user_id=0,group_id=0"); err != nil {
		unix.Close(fd)
		t.Skipf("FUSE cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		unix.Close(fd) // what hangs fails now
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
}

// TestHungFiles has the files that pulls look at on a file system that hangs: a pull says so in time, the next one at once, the
// daemon does all else, and stops.
func TestHungFiles(t *testing.T) {
	private := registrytest.Start(t, registrytest.Options{User: "me", Password: secret})
	private.Push(t, "team/app", "v1", testImage(t))
	for name, setting := range map[string]struct {
		config, file, image string
		code                codes.Code
	}{
		"docker config": {"docker_configs = [%q]", "config.json", private.Host + "/" + repoTag, codes.Unauthenticated},
		"certs.d":       {"config_path = [%q]", "certs.d", registryAddr + "/e2e-test-images/busybox:1.29-2", codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			n := newStoppedNode(t)
			hung := filepath.Join(n.dir, "hung")
			file := filepath.Join(hung, setting.file)
			config, err := os.OpenFile(n.config, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = config.WriteString("\n[registry]\n" + strings.ReplaceAll(setting.config, "%q", strconv.Quote(file)) + "\n")
			if err != nil || config.Close() != nil {
				t.Fatal(err)
			}
			hungDir(t, hung)
			n.serve()
			threads := func() int {
				all, _ := os.ReadDir("/proc/" + strconv.Itoa(n.cmd.Process.Pid) + "/task")
				return len(all)
			}
			before := threads()
			for i := range 20 {
				begun := time.Now()
				err := n.pullAs(setting.image, nil)
				if err == nil || !strings.Contains(err.Error(), file) || status.Code(err) != setting.code {
					t.Fatalf("pull %d: %v", i, err)
				}
				limit := 15 * time.Second
				if i > 0 {
					limit = time.Second
				} else {
					t.Logf("after %s: %v", time.Since(begun).Round(time.Millisecond), err)
				}
				if took := time.Since(begun); took > limit {
					t.Errorf("pull %d took %s", i, took)
				}
			}
			if now := threads(); now > before+10 {
				t.Errorf("the daemon has %d threads, had %d", now, before)
			}
			n.runPod(n.podConfig())
			n.removeAll()
			begun := time.Now()
			n.stop()
			if took := time.Since(begun); took > 10*time.Second {
				t.Errorf("the stop took %s", took)
			}
			n.start()
		})
	}
}

// TestHungPlaces has logs and a checkpoint on a file system that hangs: the calls that need it say so in time, and the daemon does all
// else, and stops.
func TestHungPlaces(t *testing.T) {
	hung := hungfs.Mount(t)
	n := newNode(t)
	n.pull(busyboxImage)
	inHung := func(name string) func(*runtimeapi.PodSandboxConfig) {
		return func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = filepath.Join(hung.Dir, name) }
	}
	there := n.podConfig(inHung("there"))
	thereID := n.runPod(there)
	plain := n.podConfig()
	plainID := n.runPod(plain)
	if err := os.WriteFile(filepath.Join(hung.Dir, "checkpoint.tar"), []byte("tar"), 0o600); err != nil {
		t.Fatal(err)
	}
	create := func(podID string, pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) error {
		return refusal(n.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: c, SandboxConfig: pod}))
	}
	hung.Hang()
	archive, fresh := filepath.Join(hung.Dir, "checkpoint.tar"), n.podConfig(inHung("fresh/deep"))
	profile, device := filepath.Join(hung.Dir, "profile.json"), filepath.Join(hung.Dir, "device")
	var calls sync.WaitGroup
	for path, call := range map[string]func() error{
		fresh.LogDirectory: func() error { _, err := n.runPodWith("", fresh); return err },
		there.LogDirectory: func() error { return create(thereID, there, shell("logs", "true")) },
		archive:            func() error { return create(plainID, plain, restored(archive)) },
		profile: func() error {
			return create(plainID, plain, shell("confined", "true", func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.Seccomp = localhost(profile) }))
		},
		device: func() error {
			return create(plainID, plain, shell("device", "true", func(c *runtimeapi.ContainerConfig) {
				c.Devices = []*runtimeapi.Device{{HostPath: device, ContainerPath: "/dev/x", Permissions: "r"}}
			}))
		},
		filepath.Join(hung.Dir, "new.tar"): func() error {
			return refusal(n.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{
				ContainerId: "any", Location: filepath.Join(hung.Dir, "new.tar"),
			}))
		},
	} {
		calls.Go(func() {
			begun := time.Now()
			err := call()
			if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), path+" does not answer") {
				t.Errorf("%s: %v", path, err)
			}
			if took := time.Since(begun); took > 50*time.Second {
				t.Errorf("%s: it took %s", path, took)
			}
		})
	}
	calls.Wait()
	if out, _ := n.output(plainID, plain, shell("plain", "echo works")); out != "works" {
		t.Errorf("another container: %q", out)
	}
	// Nothing of it holds the daemon, nor the next one.
	n.stop()
	n.start()
	if out, _ := n.output(plainID, plain, shell("restarted", "echo works")); out != "works" {
		t.Errorf("a container after a restart: %q", out)
	}
	hung.Answer()
	eventually(t, "the pod's logs are where they are to be", func() bool { return create(thereID, there, shell("logs", "true")) == nil })
}
