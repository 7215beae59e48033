package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus/hooks/test"
	"github.com/vishvananda/netlink"

	"criserver/pkg/cni/netns"
)

// addressesOf are the addresses of a pod's interface but the link's own.
func addressesOf(t *testing.T, ns, name string) (out []netip.Addr) {
	t.Helper()
	err := netns.Do(ns, func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		list, err := h.AddrList(link, netlink.FAMILY_ALL)
		for _, a := range list {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.IsLinkLocalUnicast() {
				out = append(out, ip.Unmap())
			}
		}
		return err
	})
	if err != nil {
		t.Errorf("addresses of %s: %v", name, err)
	}
	return out
}

// A pod on three networks of the real plugins and the built-in one, each of which works; later the node has one network.
func TestSeveralNetworksOfDebian(t *testing.T) {
	c := testConfig(t)
	for _, p := range []string{"bridge", "ptp", "host-local"} {
		if _, err := os.Stat(filepath.Join(pluginDir, p)); err != nil {
			t.Skip("needs containernetworking-plugins:", err)
		}
	}
	o := &operator{config: c}
	o.config.BinDirs = []string{pluginDir}
	o.config.Networks = 3
	leases := t.TempDir()
	ipam := func(subnet string) string {
		return fmt.Sprintf(`"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q}]]}`, leases, subnet)
	}
	o.conf(t, "10-a.conflist", chain("1.0.0", "a", `{"type":"bridge","bridge":"cridebian","isDefaultGateway":true,`+ipam("10.77.0.0/24")+`}`))
	o.conf(t, "20-b.conflist", chain("1.0.0", "b", `{"type":"ptp",`+ipam("10.78.0.0/24")+`}`))
	o.conf(t, "30-c.conflist", chain("1.1.0", "c", builtinType))
	o.conf(t, "40-d.conflist", chain("1.0.0", "d", "nobody"))
	n := open(t, o.config)
	t.Cleanup(func() { _ = netlink.LinkDel(mustLink(t, "cridebian")) })
	if err := n.Ready(); err != nil {
		t.Fatal(err)
	}
	p, other := newPod(t, "p"), newPod(t, "other")
	ips := setup(t, n, p)
	setup(t, n, other)
	t.Run("traffic", func(t *testing.T) { // ends the server, which keeps the namespace alive
		serve(t, p.NetNS, 80)
		for i, subnet := range []string{"10.77.0.0/24", "10.78.0.0/24", "10.88.0.0/16"} {
			got := addressesOf(t, p.NetNS, interfaceName(i))
			if len(got) == 0 || !netip.MustParsePrefix(subnet).Contains(got[0]) {
				t.Fatalf("%s has %v, want one of %s", interfaceName(i), got, subnet)
			}
			if i == 0 && (len(ips) != 1 || ips[0] != got[0]) {
				t.Errorf("the pod's addresses are %v, want those of eth0, %v", ips, got)
			}
			mustAsk(t, "", "tcp", got[0], 80)
			mustAsk(t, other.NetNS, "tcp", got[0], 80)
		}
	})
	if err := n.Check(context.Background(), p); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"10-a.conflist", "20-b.conflist", "40-d.conflist"} {
		if err := os.Remove(filepath.Join(o.config.ConfDir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n.config.Networks = 1
	n = restart(t, n)
	if err := n.GC(context.Background(), []string{other.ID}); err != nil {
		t.Fatal(err)
	}
	teardown(t, n, other)
	left, err := filepath.Glob(leases + "/*/10.*")
	if err != nil || len(left) > 0 {
		t.Errorf("addresses are left: %v, %v", left, err)
	}
}

// threeNetworks are of one plugin each: one, two and three.
func threeNetworks(t *testing.T) *operator {
	t.Helper()
	o := newOperator(t)
	o.config.Networks = -1
	for i, name := range []string{"one", "two", "three"} {
		o.plugin(t, name, "")
		o.conf(t, fmt.Sprintf("%d0-%s.conflist", i+1, name), chain("1.1.0", "net-"+name, fmt.Sprintf(`{"type":%q,"capabilities":{"portMappings":%v}}`, name, i > 0)))
	}
	return o
}

// Networks that map no host ports say so, if no other network of the pod does.
func TestPortsThatNobodyMaps(t *testing.T) {
	o := newOperator(t)
	o.config.Networks = -1
	o.plugin(t, "one", "")
	for _, name := range []string{"a", "b"} {
		o.conf(t, name+".conflist", chain("1.0.0", "net-"+name, "one"))
	}
	hook := test.NewGlobal()
	warned := func(ports ...PortMapping) (networks []string) {
		hook.Reset()
		n := open(t, o.config)
		p := newPod(t, "p", ports...)
		setup(t, n, p)
		teardown(t, n, p)
		for _, e := range hook.AllEntries() {
			if strings.Contains(e.Message, "host ports do not lead") {
				networks = append(networks, e.Data["network"].(string))
			}
		}
		return networks
	}
	if got := warned(PortMapping{HostPort: 80, ContainerPort: 80}); fmt.Sprint(got) != "[net-a net-b]" {
		t.Errorf("warned of %v, want both networks", got)
	}
	if got := warned(PortMapping{ContainerPort: 80}); len(got) > 0 {
		t.Errorf("without a host port: warned of %v", got)
	}
	o.plugin(t, "two", "")
	o.conf(t, "b.conflist", chain("1.0.0", "net-b", `{"type":"two","capabilities":{"portMappings":true}}`))
	if got := warned(PortMapping{HostPort: 80, ContainerPort: 80}); len(got) > 0 {
		t.Errorf("one network maps: warned of %v", got)
	}
}

func TestNetworksAreDeletedInReverseAndPastFailures(t *testing.T) {
	o := threeNetworks(t)
	n := open(t, o.config)
	p := newPod(t, "p", PortMapping{HostPort: 80, ContainerPort: 80})
	if ips := setup(t, n, p); fmt.Sprint(ips) != "[10.1.2.3 fd00::3]" {
		t.Errorf("addresses = %v", ips)
	}
	for i, line := range o.calls(t, true) {
		if !strings.Contains(line, " ifname="+interfaceName(i)+" ") {
			t.Errorf("execution %d: %q lacks the interface", i, line)
		}
		if has := strings.Contains(line, `"hostPort":80`); has != (i == 1) {
			t.Errorf("execution %d: host ports: %v, want them of the first network that can do them", i, has)
		}
	}
	o.plugin(t, "two", `if [ $CNI_COMMAND = DEL ]; then echo '{"cniVersion":"1.0.0","code":100,"msg":"two is unwell"}'; exit 1; fi`)
	err := n.Teardown(context.Background(), p)
	if err == nil || !strings.Contains(err.Error(), "two is unwell") || !strings.Contains(err.Error(), "network net-two") {
		t.Errorf("got %v, want the error of plugin two and its network", err)
	}
	o.wantCalls(t, "DEL three", "DEL two", "DEL one")
	o.plugin(t, "two", "")
	n = restart(t, n, p)
	for name := range map[string]bool{"20-two": true, "30-three": true} {
		if err := os.Remove(o.config.ConfDir + "/" + name + ".conflist"); err != nil {
			t.Fatal(err)
		}
	}
	teardown(t, n, p)
	o.wantCalls(t, "DEL two") // the others are done with
}

func TestFailedAddOfANetworkIsUndone(t *testing.T) {
	o := threeNetworks(t)
	o.plugin(t, "two", `if [ $CNI_COMMAND = ADD ]; then echo oops >&2; exit 1; fi`)
	n := open(t, o.config)
	if _, err := n.Setup(context.Background(), newPod(t, "p")); err == nil || !strings.Contains(err.Error(), "network net-two") {
		t.Errorf("got %v, want the network's name", err)
	}
	o.wantCalls(t, "ADD one", "ADD two", "DEL two", "DEL one")
}

// The process is killed while the second network's plugin adds.
func TestGCAfterCrashInSecondAdd(t *testing.T) {
	o := threeNetworks(t)
	n := open(t, o.config)
	record := filepath.Join(o.config.DataDir, "attachments", "p")
	seen := t.TempDir() + "/record"
	o.plugin(t, "two", fmt.Sprintf(`if [ $CNI_COMMAND = ADD ]; then cp %s %s; fi`, record, seen))
	p := newPod(t, "p")
	setup(t, n, p)
	teardown(t, n, p)
	o.calls(t, false)
	b, err := os.ReadFile(seen)
	if err == nil {
		err = os.WriteFile(record, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	n = restart(t, n)
	if err := n.GC(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	o.wantCalls(t, "DEL two", "DEL one", "GC one", "GC two", "GC three")
}

func TestGCOfSeveralNetworks(t *testing.T) {
	o := threeNetworks(t)
	n := open(t, o.config)
	setup(t, n, newPod(t, "p"))
	o.calls(t, false)
	if err := os.Remove(o.config.ConfDir + "/20-two.conflist"); err != nil {
		t.Fatal(err)
	}
	if err := n.GC(context.Background(), []string{"p"}); err != nil {
		t.Fatal(err)
	}
	calls := o.calls(t, true)
	if len(calls) != 3 {
		t.Fatalf("got %q, want GC of the networks that are configured and of the one that the pod has besides", calls)
	}
	for i, name := range []string{"one", "three", "two"} {
		want := fmt.Sprintf(`"cni.dev/valid-attachments":[{"containerID":"p","ifname":"%s"}]`, map[string]string{"one": "eth0", "two": "eth1", "three": "eth2"}[name])
		if !strings.HasPrefix(calls[i], "GC "+name+" ") || !strings.Contains(calls[i], want) {
			t.Errorf("got %q, want GC of %s with %s", calls[i], name, want)
		}
	}
}

// Ready names the network that is not, and why, of all that count and of no other.
func TestReadyOfSeveralNetworks(t *testing.T) {
	o := threeNetworks(t)
	o.config.Networks = 2
	o.plugin(t, "two", `if [ $CNI_COMMAND = STATUS ]; then echo '{"cniVersion":"1.1.0","code":50,"msg":"not yet"}'; exit 1; fi`)
	o.plugin(t, "three", `exit 1`)
	n := open(t, o.config)
	if err := n.Ready(); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "network net-two: ") ||
		!strings.Contains(err.Error(), "not yet") || strings.Contains(err.Error(), "net-one") || strings.Contains(err.Error(), "three") {
		t.Errorf("got %v, want that net-two is not ready", err)
	}
	if err := os.Remove(o.bin + "/one"); err != nil {
		t.Fatal(err)
	}
	n = restart(t, n)
	if err := n.Ready(); err == nil || !strings.Contains(err.Error(), "net-one: ") || !strings.Contains(err.Error(), "net-two: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want both networks in one line", err)
	}
	for name, text := range map[string]string{
		`is a network "net-one" as well`: chain("1.1.0", "net-one", "one"),
		"15-x.conflist":                  "{",
	} {
		o.conf(t, "15-x.conflist", text)
		if _, err := n.Setup(context.Background(), newPod(t, "p")); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %s", err, name)
		}
	}
	o.conf(t, "05-x.conflist", chain("1.1.0", "x", builtinType))
	o.conf(t, "15-x.conflist", chain("1.1.0", "y", builtinType))
	o.conf(t, "10-one.conflist", chain("1.1.0", "z", builtinType))
	if _, err := n.Setup(context.Background(), newPod(t, "p")); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "attached to once") {
		t.Errorf("got %v, want that the built-in network is possible once", err)
	}
}

// A record of the version that knew one network a pod.
func TestRecordOfFormerVersion(t *testing.T) {
	o := newOperator(t)
	o.plugin(t, "one", "")
	n := open(t, o.config)
	text, err := json.Marshal(map[string]any{
		"id": "p", "netns": "/nowhere", "network": "test", "cniVersion": "1.0.0", "plugins": []any{map[string]any{"type": "one"}},
		"args": [][2]string{{"K8S_POD_NAME", "p"}},
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(o.config.DataDir, "attachments", "p"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	teardown(t, n, Pod{ID: "p"})
	if calls := o.calls(t, true); len(calls) != 1 || !strings.HasPrefix(calls[0], "DEL one") || !strings.Contains(calls[0], "ifname=eth0 ") {
		t.Errorf("got %q, want DEL on eth0", calls)
	}
}

// handlerNode has a network of its own for the pods of the handler vm.
func handlerNode(t *testing.T) *operator {
	t.Helper()
	o := threeNetworks(t)
	o.config.Networks = 1
	o.plugin(t, "four", "")
	o.plugin(t, "five", "")
	o.config.Handlers = map[string]HandlerConfig{"vm": {ConfDir: t.TempDir(), Networks: 2}, "many": {Networks: 2}}
	return o
}

func (o *operator) handlerConf(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(o.config.Handlers["vm"].ConfDir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestNetworksOfHandlers(t *testing.T) {
	o := handlerNode(t)
	n := open(t, o.config)
	ofVM := newPod(t, "ofvm")
	ofVM.Handler = "vm"
	_, err := n.Setup(context.Background(), ofVM)
	if want := "runtime handler vm: no CNI configuration in " + o.config.Handlers["vm"].ConfDir; !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
	if err := n.Ready(); err != nil {
		t.Errorf("the node's network is not ready for the lack of a handler's: %v", err)
	}
	o.handlerConf(t, "10-four.conflist", chain("1.1.0", "net-four", "four"))
	o.handlerConf(t, "20-five.conflist", chain("1.1.0", "net-five", "five"))
	ofNode, ofMany := newPod(t, "ofnode"), newPod(t, "ofmany")
	ofNode.Handler, ofMany.Handler = "other", "many"
	for _, p := range []Pod{ofVM, ofNode, ofMany} {
		setup(t, n, p)
	}
	o.wantCalls(t, "ADD four", "ADD five", "ADD one", "ADD one", "ADD two")

	// Now the handler and its directory are gone.
	if err := os.RemoveAll(o.config.Handlers["vm"].ConfDir); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n.config.Handlers = nil
	n = restart(t, n, ofVM, ofNode, ofMany)
	o.calls(t, false)
	if err := n.GC(context.Background(), []string{"ofvm", "ofnode"}); err != nil {
		t.Fatal(err)
	}
	o.wantCalls(t, "DEL two", "DEL one", "GC one", "GC four", "GC five")
	teardown(t, n, ofVM)
	o.wantCalls(t, "DEL five", "DEL four")
}

// The kubelet does not know of a handler's network: a pod is told why it cannot be set up.
func TestHandlersNetworkIsNotReady(t *testing.T) {
	o := handlerNode(t)
	o.config.DefaultHandler = "vm"
	o.plugin(t, "four", `if [ $CNI_COMMAND = STATUS ]; then echo '{"cniVersion":"1.1.0","code":50,"msg":"not yet"}'; exit 1; fi`)
	o.handlerConf(t, "10-four.conflist", chain("1.1.0", "net-four", "four"))
	n := open(t, o.config)
	p := newPod(t, "p")
	p.Handler = "vm"
	_, err := n.Setup(context.Background(), p)
	for _, got := range []error{err, n.Ready()} {
		if !errors.Is(got, ErrNotReady) || !strings.Contains(got.Error(), "runtime handler vm: network net-four: ") || !strings.Contains(got.Error(), "not yet") {
			t.Errorf("got %v, want that the handler's network is not ready", got)
		}
	}
	o.handlerConf(t, "10-four.conflist", chain("1.1.0", "net-five", "five")) // known at once
	setup(t, n, p)
}
