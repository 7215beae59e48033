// Package e2e tests the built programs as their users use them: through the CRI socket and crictl, with images from a real
// registry. "make test-e2e" builds them first.
package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"golang.org/x/sys/unix"
)

const busyboxImage = "registry.k8s.io/e2e-test-images/busybox:1.29-2"

// registryAddr is the host:port of a registry with the images of test/images.
var registryAddr string

func TestMain(m *testing.M) {
	if os.Getenv(api.PluginSocketEnvVar) != "" { // the daemon of TestNRILaunched runs this program
		os.Exit(runLaunchedPlugin())
	}
	os.Exit(func() int {
		defer alone()()
		stop, err := startRegistry()
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
		defer stop()
		return m.Run()
	}())
}

// alone waits for other runs on this machine, in another checkout: they have interfaces, cgroups and tables of the same names.
func alone() (done func()) {
	lock, err := os.Open(os.TempDir()) // a file would be left behind
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e: cannot lock other runs out:", err)
		return func() {}
	}
	return func() { _ = lock.Close() }
}

// startRegistry runs a docker-registry with the test images on a loopback port.
func startRegistry() (stop func(), err error) {
	dir, err := os.MkdirTemp("", "e2e-registry")
	if err != nil {
		return nil, err
	}
	program := os.Getenv("CRISERVER_E2E_IMAGES") // built before, where compiling would take long
	if program == "" {
		program = filepath.Join(dir, "images")
		build := exec.Command("go", "build", "-o", program, "criserver/test/images")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return nil, fmt.Errorf("build the test images' program: %w", err)
		}
	}
	content := filepath.Join(dir, "content")
	if err := os.Mkdir(content, 0o755); err != nil {
		return nil, err
	}
	cmd := exec.Command(program, "-serve", content, "-cache", cache(""))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return nil, fmt.Errorf("start the registry (package docker-registry): %w", err)
	}
	registryAddr = strings.TrimSpace(line)
	return stop, nil
}
