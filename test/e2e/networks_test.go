package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// bridgeNetwork is a network of the operator's on a bridge of its own, which the test removes.
func (n *node) bridgeNetwork(name, subnet string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"bridge","bridge":"crie2e%[1]s","isGateway":true,
		"ipam":{"type":"host-local","dataDir":"%[2]s/ipam","subnet":%[3]q}}]}`, name, n.dir, subnet)
}

func (n *node) notReady() string {
	n.t.Helper()
	st, err := n.Status(n.t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	return st.Status.Conditions[1].Message
}

// leases are the addresses that the operator's networks have given out.
func (n *node) leases() []string {
	left, err := filepath.Glob(n.dir + "/ipam/*/10.*")
	if err != nil {
		n.t.Fatal(err)
	}
	return left
}

func TestSeveralNetworks(t *testing.T) {
	n := newStoppedNode(t)
	n.writeCNI("10-a.conflist", n.bridgeNetwork("a", "10.214.0.0/24"))
	n.writeCNI("20-b.conflist", n.bridgeNetwork("b", "10.215.0.0/24"))
	n.configure("[cni]\nmax_networks = 2\n")
	n.serve()
	pod := n.podConfig()
	podID := n.runPod(pod)
	if ips := n.ips(podID); len(ips) != 1 || !strings.HasPrefix(ips[0], "10.214.0.") {
		t.Errorf("addresses = %v, want that of the first network", ips)
	}
	id := n.run(podID, pod, shell("web", webServer))
	for name, subnet := range map[string]string{"eth0": "10.214.0.", "eth1": "10.215.0."} {
		out, _ := n.exec(id, "ip -4 -o addr show dev "+name)
		_, address, _ := strings.Cut(out, "inet ")
		address, _, _ = strings.Cut(address, "/")
		if !strings.HasPrefix(address, subnet) {
			t.Fatalf("%s: %q, want an address of %s0/24", name, out, subnet)
		}
		eventually(t, "the pod answers on "+name, func() bool {
			body, err := get("http://" + address)
			return err == nil && body == "hello from "+pod.Hostname
		})
	}
	if got := n.leases(); len(got) != 2 {
		t.Errorf("leases = %v", got)
	}
	n.writeCNI("20-b.conflist", strings.Replace(n.bridgeNetwork("b", "10.215.0.0/24"), `"bridge",`, `"no-such",`, 1))
	eventually(t, "the network that is not ready is named", func() bool {
		msg := n.notReady()
		return strings.Contains(msg, `network b: CNI plugin "no-such" is not in`) && !strings.Contains(msg, "network a")
	})
	// What is torn down is what was made, whatever is configured by then.
	n.kill()
	for _, name := range []string{"10-a.conflist", "20-b.conflist"} {
		if err := os.Remove(filepath.Join(n.dir, "cni", name)); err != nil {
			t.Fatal(err)
		}
	}
	n.configure("[cni]\nmax_networks = 1\n")
	n.start()
	if _, err := n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: podID}); err != nil {
		t.Errorf("stop: %v\n%s", err, n.log())
	}
	if got := n.leases(); len(got) != 0 {
		t.Errorf("leases are left: %v\n%s", got, n.log())
	}
	n.removeAll()
	n.deleteLink("crie2ea")
	n.deleteLink("crie2eb")
}

func TestNetworkOfAHandler(t *testing.T) {
	dir := t.TempDir()
	n := newNode(t, fmt.Sprintf("[runtimes.apart]\ntype = \"builtin\"\ncni_conf_dir = %q\n", dir))
	_, err := n.runPodWith("apart", n.podConfig())
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "runtime handler apart: no CNI configuration in "+dir) {
		t.Errorf("err = %v, want Unavailable, and why", err)
	}
	if msg := n.notReady(); msg != "" {
		t.Errorf("the node's network is not ready: %s", msg)
	}
	if err := os.WriteFile(filepath.Join(dir, "net.conflist"), []byte(n.bridgeNetwork("c", "10.216.0.0/24")), 0o644); err != nil {
		t.Fatal(err)
	}
	podID := n.runPodOn("apart", n.podConfig())
	plain := n.runPod(n.podConfig())
	if ips := n.ips(podID); !strings.HasPrefix(ips[0], "10.216.0.") {
		t.Errorf("addresses = %v, want one of the handler's network", ips)
	}
	if ips := n.ips(plain); !strings.HasPrefix(ips[0], "10.213.") {
		t.Errorf("addresses = %v, want one of the node's network", ips)
	}
	n.kill()
	text, err := os.ReadFile(n.config)
	if err != nil {
		t.Fatal(err)
	}
	before, _, _ := strings.Cut(string(text), "[runtimes.apart]")
	if err := os.WriteFile(n.config, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	n.start()
	if _, err := n.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: podID}); err != nil {
		t.Errorf("remove: %v\n%s", err, n.log())
	}
	if got := n.leases(); len(got) != 0 {
		t.Errorf("leases are left: %v", got)
	}
	n.removeAll()
	n.deleteLink("crie2ec")
}

// setPodCIDR tells what the kubelet does when the cluster has given the node its addresses.
func (n *node) setPodCIDR(cidr string) error {
	_, err := n.UpdateRuntimeConfig(n.t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
		RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}},
	})
	return err
}

func TestPodCIDR(t *testing.T) {
	n := newStoppedNode(t)
	n.configure("[cni.builtin]\nsubnets = []\n")
	n.serve()
	older := n.podConfig()
	olderID := n.runPod(older)
	n.run(olderID, older, shell("web", webServer))
	before := n.ips(olderID)
	if !strings.HasPrefix(before[0], "10.87.") {
		t.Errorf("addresses = %v, want the default's", before)
	}
	for _, cidr := range []string{"10.212.7.0", "10.212.7.0/24,", "10.212.7.0/24,10.211.0.0/24", "10.212.7.0/32", "::ffff:10.212.0.0/112"} {
		if err := n.setPodCIDR(cidr); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v, want InvalidArgument", cidr, err)
		}
	}
	for _, cidr := range []string{"", "10.212.7.0/24, fd00:212::/64", "", "10.212.7.0/24,fd00:212::/64"} {
		if err := n.setPodCIDR(cidr); err != nil {
			t.Errorf("%q: %v", cidr, err)
		}
	}
	checkNewer := func() {
		t.Helper()
		pod := n.podConfig()
		podID := n.runPod(pod)
		if ips := n.ips(podID); len(ips) != 2 || !strings.HasPrefix(ips[0], "10.212.7.") || !strings.HasPrefix(ips[1], "fd00:212::") {
			t.Errorf("addresses = %v, want those of the pod CIDR", ips)
		}
		id := n.run(podID, pod, shell("client", "sleep 1000"))
		for _, ip := range before {
			if out, _ := n.exec(id, "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 "+ip+" 80 | tail -n 1"); out != "hello from "+older.Hostname {
				t.Errorf("from a newer pod to %s: %q", ip, out)
			}
		}
	}
	checkNewer()
	n.kill()
	n.start()
	checkNewer()
	if body, err := get("http://" + before[0]); err != nil || body != "hello from "+older.Hostname {
		t.Errorf("the older pod answers %q, %v", body, err)
	}
}

func TestCNITemplate(t *testing.T) {
	n := newStoppedNode(t)
	path := filepath.Join(n.dir, "cni.template")
	text := strings.Replace(n.bridgeNetwork("t", "SUBNET"), "SUBNET", "{{.PodCIDR}}", 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	n.configure(fmt.Sprintf("[cni]\ntemplate = %q\n", path))
	before := machineState()
	n.launch()
	n.connect()
	t.Cleanup(func() {
		n.removeAll()
		n.deleteLink("crie2et")
		n.stop()
		checkNothingLeft(t, n, before)
	})
	eventually(t, "the network waits for the pod CIDR", func() bool {
		st, err := n.Status(t.Context(), &runtimeapi.StatusRequest{})
		return err == nil && strings.Contains(st.Status.Conditions[1].Message, "waits for the pod CIDR")
	})
	if err := n.setPodCIDR("10.217.3.0/24"); err != nil {
		t.Fatal(err)
	}
	n.await()
	podID := n.runPod(n.podConfig())
	if ips := n.ips(podID); !strings.HasPrefix(ips[0], "10.217.3.") {
		t.Errorf("addresses = %v, want one of the pod CIDR", ips)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "cni", "10-criserver.conflist")); err != nil {
		t.Error(err)
	}
}

// TestNetworkChecks: of a pod whose network somebody has broken the log tells, by the plugins that made it.
func TestNetworkChecks(t *testing.T) {
	n := newStoppedNode(t)
	n.configure("[cni]\ncheck_interval = \"1s\"\n")
	n.serve()
	var podIDs []string
	for range 3 {
		podIDs = append(podIDs, n.runPod(n.podConfig()))
	}
	n.writeCNI("10-a.conflist", n.bridgeNetwork("a", "10.214.0.0/24"))
	eventually(t, "a pod gets the operator's network", func() bool {
		podIDs = append(podIDs, n.runPod(n.podConfig()))
		return strings.HasPrefix(n.ips(podIDs[len(podIDs)-1])[0], "10.214.0.")
	})
	n.writeCNI("10-a.conflist", n.bridgeNetwork("b", "10.215.0.0/24"))
	host := n.podConfig(func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = ""
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	podIDs = append(podIDs, n.runPod(host))
	broken := map[string]string{podIDs[1]: "criserver", podIDs[len(podIDs)-2]: "a"}
	warned := func(id string) (lines []string) {
		for line := range strings.Lines(n.log()) {
			if strings.Contains(line, "level=warning") && strings.Contains(line, "the pod's network is not as it was made") &&
				strings.Contains(line, "pod="+id) {
				lines = append(lines, line)
			}
		}
		return lines
	}
	for id := range broken {
		if got := warned(id); len(got) > 0 {
			t.Errorf("a pod that is well: %s", got)
		}
		ns, err := filepath.Glob(filepath.Join(n.dir, "state/pods", id, "*/net"))
		if err != nil || len(ns) != 1 {
			t.Fatalf("network namespaces of the pod: %v, %v", ns, err)
		}
		tool(t, "nsenter", "--net="+ns[0], "ip", "link", "delete", "eth0")
	}
	for id, network := range broken {
		eventually(t, "the log tells of the pod on network "+network, func() bool { return len(warned(id)) > 1 })
		if line := warned(id)[0]; !strings.Contains(line, "on network "+network+": ") || !strings.Contains(line, "name=e2e/pod-") {
			t.Errorf("the log says %s", line)
		}
	}
	for _, id := range podIDs {
		if got := warned(id); broken[id] == "" && len(got) > 0 {
			t.Errorf("a pod that is well: %s", got)
		}
	}
	n.removeAll()
	n.deleteLink("crie2ea")
}
