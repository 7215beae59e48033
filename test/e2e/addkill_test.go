package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The daemon is killed while a plugin is at work, when the one before it has made a link and taken an address: the next
// daemon gives both back. That nothing else is left is for the end of each test to find.
func TestKilledInTheMiddleOfAnADD(t *testing.T) {
	const debian = "/usr/lib/cni"
	if _, err := os.Stat(debian + "/ptp"); err != nil {
		t.Skip("needs containernetworking-plugins:", err)
	}
	n := newStoppedNode(t)
	bin, ipam, calls := filepath.Join(n.dir, "bin"), filepath.Join(n.dir, "ipam"), filepath.Join(n.dir, "calls")
	plugin := fmt.Sprintf("#!/bin/sh\ncat >/dev/null\necho $CNI_COMMAND $CNI_CONTAINERID >> %s\n"+
		"[ $CNI_COMMAND != ADD ] || read forever < %s/fifo\n", calls, bin)
	conflist := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"killed","plugins":[{"type":"ptp","ipMasq":false,
		"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.214.9.0/24"}]]}},{"type":"hang"}]}`, ipam)
	config, err := os.ReadFile(n.config)
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		bin + "/hang": plugin, n.dir + "/cni/10-killed.conflist": conflist,
		n.config: strings.Replace(string(config), "[cni]\n", fmt.Sprintf("[cni]\nbin_dirs = [%q, %q]\n", bin, debian), 1),
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(bin+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	n.serve()

	addresses := func() []string {
		found, _ := filepath.Glob(ipam + "/killed/10.*")
		return found
	}
	called := func(command string) bool {
		log, _ := os.ReadFile(calls)
		return strings.Contains(string(log), command+" ")
	}
	failed := make(chan error, 1)
	go func() {
		_, err := n.RunPodSandbox(context.Background(), &runtimeapi.RunPodSandboxRequest{Config: n.podConfig()})
		failed <- err
	}()
	eventually(t, "the last plugin hangs in ADD", func() bool { return called("ADD") })
	if got := addresses(); len(got) != 1 {
		t.Errorf("addresses in ADD: %v, want one", got)
	}
	n.kill()
	if err := <-failed; err == nil {
		t.Error("a pod came up without its network")
	}
	n.start()
	eventually(t, "the plugins have their DEL", func() bool { return called("DEL") && len(addresses()) == 0 })
	eventually(t, "the pod is gone", func() bool {
		resp, err := n.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		return err == nil && len(resp.Items) == 0
	})
}
