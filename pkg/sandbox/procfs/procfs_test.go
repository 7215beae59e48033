package procfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

func TestRead(t *testing.T) {
	program := filepath.Join(t.TempDir(), "a) Z (b") // whoever names a program may try to be taken for another
	if err := os.Symlink("/bin/sleep", program); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "100")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // the test's own session may be 0: its leader may be outside of the PID namespace
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	s, ok := Read(pid)
	if !ok || s.Name != "a) Z (b" || s.Parent != os.Getpid() || s.Session != pid || s.Ending() {
		t.Errorf("running: %+v, %v", s, ok)
	}
	if !slices.Contains(Children(os.Getpid()), pid) || slices.Contains(Children(pid), pid) {
		t.Errorf("the children are %v", Children(os.Getpid()))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !s.Ending() && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		s, _ = Read(pid)
	}
	if !s.Ending() {
		t.Errorf("killed: %+v", s)
	}
	_ = cmd.Wait()
	if s, ok := Read(pid); ok {
		t.Errorf("reaped: %+v", s)
	}
}
