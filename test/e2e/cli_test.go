package e2e

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func (n *node) writeCNI(name, text string) {
	n.t.Helper()
	dir := filepath.Join(n.dir, "cni")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) deleteLink(name string) {
	n.t.Helper()
	if _, err := net.InterfaceByName(name); err != nil {
		return
	}
	if out, err := exec.Command("ip", "link", "delete", name).CombinedOutput(); err != nil {
		n.t.Errorf("delete %s: %v: %s", name, err, out)
	}
}

// TestCrictl is the day of a person with crictl.
func TestCrictl(t *testing.T) {
	n := newNode(t)
	write := func(name, text string) string {
		path := filepath.Join(n.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pod := write("pod.json", `{"metadata":{"name":"hand","namespace":"default","uid":"u1","attempt":1},"hostname":"hand","log_directory":"`+n.dir+`/logs","linux":{}}`)
	ctr := write("ctr.json", `{"metadata":{"name":"talker"},"image":{"image":"`+busyboxImage+`"},"command":["sh","-c","echo one; sleep 1; echo two; sleep 1000"],"log_path":"talker.log","linux":{}}`)

	n.crictl("pull", busyboxImage)
	if out := n.crictl("images"); !strings.Contains(out, "busybox") {
		t.Errorf("images:\n%s", out)
	}
	var inspected struct {
		Status struct{ ID string }
		Info   struct{ ImageSpec any }
	}
	if err := json.Unmarshal([]byte(n.crictl("inspecti", busyboxImage)), &inspected); err != nil || inspected.Status.ID == "" || inspected.Info.ImageSpec == nil {
		t.Errorf("inspecti: %+v, %v", inspected, err)
	}
	podID := n.crictl("runp", pod)
	id := n.crictl("create", podID, ctr, pod)
	n.crictl("start", id)
	if out := n.crictl("ps"); !strings.Contains(out, "talker") || !strings.Contains(out, "Running") {
		t.Errorf("ps:\n%s", out)
	}
	if out := n.crictl("pods"); !strings.Contains(out, "hand") || !strings.Contains(out, "Ready") {
		t.Errorf("pods:\n%s", out)
	}
	if out := n.crictl("inspect", id); !strings.Contains(out, `"CONTAINER_RUNNING"`) {
		t.Errorf("inspect:\n%s", out)
	}
	if out := n.crictl("inspectp", podID); !strings.Contains(out, `"SANDBOX_READY"`) || !strings.Contains(out, `"10.213.`) {
		t.Errorf("inspectp:\n%s", out)
	}
	n.followLogs(id)
	if out := n.crictl("exec", "--sync", id, "echo", "hi"); out != "hi" {
		t.Errorf("exec = %q", out)
	}
	if out, err := n.tryCrictl("exec", "--sync", id, "sh", "-c", "exit 9"); err == nil || !strings.Contains(out, "9") {
		t.Errorf("exec of a failing command = %q, %v", out, err)
	}
	if out, err := n.tryCrictl("rm", id); err == nil {
		t.Errorf("rm of a running container: %q", out)
	}
	n.crictl("stop", "--timeout", "0", id)
	n.crictl("rm", id)
	n.crictl("stopp", podID)
	n.crictl("rmp", podID)
	n.crictl("rmi", busyboxImage)
	if out := n.crictl("images", "-q"); out != "" {
		t.Errorf("images after rmi: %q", out)
	}
	if out := n.crictl("info"); !strings.Contains(out, "RuntimeReady") {
		t.Errorf("info:\n%s", out)
	}
	if out := n.crictl("version"); !strings.Contains(out, "criserver") {
		t.Errorf("version:\n%s", out)
	}
	n.crictl("imagefsinfo")
}

// followLogs reads a log with crictl logs -f until its second line.
func (n *node) followLogs(id string) {
	n.t.Helper()
	cmd := exec.Command(cache("bin/crictl"), "--config", os.DevNull, "--runtime-endpoint", "unix://"+n.dir+"/criserver.sock", "logs", "-f", id)
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	timer := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	var got string
	for buf := make([]byte, 100); got != "one\ntwo\n"; {
		k, err := out.Read(buf)
		got += string(buf[:k])
		if err != nil {
			n.t.Errorf("crictl logs -f = %q, %v", got, err)
			break
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}
