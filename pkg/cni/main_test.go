package cni

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// inNode says that the process is in the network namespace that stands for the node.
const inNode = "CNI_TEST_IN_NODE"

// A goroutine that ends while locked to its thread takes the thread along, except for the process's first one, which
// then stays in the namespace for good. So that is kept for the main goroutine.
func init() { runtime.LockOSThread() }

// TestMain runs the tests in a network namespace of their own, so that bridges, tables and sysctls are not the machine's
// and nothing can be left on it.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(inNode) != "" {
		os.Exit(runInNode(m))
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inNode+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "tests in a network namespace:", err)
		os.Exit(1)
	}
}

func runInNode(m *testing.M) int {
	if os.Geteuid() == 0 {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "switch on loopback:", err)
			return 1
		}
	}
	return m.Run()
}
