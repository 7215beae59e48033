package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// pluginDir is where Debian's containernetworking-plugins are.
const pluginDir = "/usr/lib/cni"

// operator is a node with plugins that are shell scripts. Each logs its command, its name and what of its input is asked for.
type operator struct {
	config Config
	bin    string
	log    string
}

func newOperator(t *testing.T) *operator {
	t.Helper()
	c := testConfig(t)
	o := &operator{config: c, bin: t.TempDir(), log: t.TempDir() + "/log"}
	o.config.BinDirs = []string{o.bin}
	o.config.Builtin.Disabled = true
	return o
}

const scriptResult = `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"x"}],` +
	`"ips":[{"address":"10.1.2.3/24","interface":0},{"address":"fd00::3/64","interface":0}]}`

// plugin installs a script; body runs after the logging and may exit.
func (o *operator) plugin(t *testing.T, name, body string) {
	t.Helper()
	script := fmt.Sprintf(`#!/bin/sh
input=$(cat)
echo "$CNI_COMMAND %[1]s netns=$CNI_NETNS args=$CNI_ARGS ifname=$CNI_IFNAME input=$input" >> %[2]s
%[3]s
if [ "$CNI_COMMAND" = ADD ]; then echo '%[4]s'; fi
`, name, o.log, body, scriptResult)
	// Renamed into place: a fork elsewhere in the process may hold a file open for writing, which cannot be executed.
	temporary := filepath.Join(o.bin, "."+name)
	if err := os.WriteFile(temporary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temporary, filepath.Join(o.bin, name)); err != nil {
		t.Fatal(err)
	}
}

// conf writes a configuration file.
func (o *operator) conf(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(o.config.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(o.config.ConfDir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// chain is the text of a network with plugins of these types.
func chain(version, network string, plugins ...string) string {
	var list []string
	for _, p := range plugins {
		if !strings.HasPrefix(p, "{") {
			p = fmt.Sprintf(`{"type":%q}`, p)
		}
		list = append(list, p)
	}
	return fmt.Sprintf(`{"cniVersion":%q,"name":%q,"plugins":[%s]}`, version, network, strings.Join(list, ","))
}

// calls returns the log since the last call: of each execution "COMMAND plugin", or the whole line. STATUS is left out, which
// the background work asks for at times of its own.
func (o *operator) calls(t *testing.T, whole bool) []string {
	t.Helper()
	b, err := os.ReadFile(o.log)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	_ = os.Remove(o.log)
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "STATUS ") {
			continue
		}
		if f := strings.Fields(line); !whole {
			line = f[0] + " " + f[1]
		}
		out = append(out, line)
	}
	return out
}

func (o *operator) wantCalls(t *testing.T, want ...string) {
	t.Helper()
	if got := o.calls(t, false); !slices.Equal(got, want) {
		t.Errorf("plugins were executed as %q, want %q", got, want)
	}
}

func TestDebianPlugins(t *testing.T) {
	c := testConfig(t)
	for _, p := range []string{"bridge", "host-local", "portmap", "bandwidth"} {
		if _, err := os.Stat(filepath.Join(pluginDir, p)); err != nil {
			t.Skip("needs containernetworking-plugins:", err)
		}
	}
	o := &operator{config: c}
	o.config.BinDirs = []string{"/nowhere", pluginDir}
	o.conf(t, "10-test.conflist", chain("1.0.0", "debian",
		fmt.Sprintf(`{"type":"bridge","bridge":"cridebian","isGateway":true,"ipMasq":false,
			"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.77.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}`, t.TempDir()),
		`{"type":"portmap","capabilities":{"portMappings":true}}`,
		`{"type":"bandwidth","capabilities":{"bandwidth":true}}`))
	n := open(t, o.config)
	t.Cleanup(func() { _ = netlink.LinkDel(mustLink(t, "cridebian")) })
	if err := n.Ready(); err != nil {
		t.Fatal(err)
	}
	a, b := newPod(t, "a", PortMapping{Protocol: "tcp", HostPort: 8088, ContainerPort: 80}), newPod(t, "b")
	a.Annotations = map[string]string{ingressAnnotation: "100M", egressAnnotation: "100M"}
	ip := setup(t, n, a)[0]
	setup(t, n, b)
	t.Run("traffic", func(t *testing.T) { // ends the server, which keeps the namespace alive
		serve(t, a.NetNS, 80)
		mustAsk(t, b.NetNS, "tcp", ip, 80)
		mustAsk(t, "", "tcp", local4, 8088)
	})
	if !hasTokenBucket(t) {
		t.Error("the bandwidth plugin limited nothing")
	}
	unpin(t, a.NetNS)
	for range 2 {
		teardown(t, n, Pod{ID: "a"})
	}
	teardown(t, n, b)
	// The plugin leaves the link to the kernel, which removes it some time after the namespace.
	for deadline := time.Now().Add(10 * time.Second); hasTokenBucket(t); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a bandwidth limit is left")
		}
	}
}

func hasTokenBucket(t *testing.T) bool {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		qdiscs, err := netlink.QdiscList(l)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range qdiscs {
			if q.Type() == "tbf" {
				return true
			}
		}
	}
	return false
}

func TestPluginInput(t *testing.T) {
	o := newOperator(t)
	o.plugin(t, "first", "")
	o.conf(t, "net.conflist", chain("1.0.0", "test", `{"type":"first","capabilities":{"portMappings":true,"dns":true,
		"bandwidth":true,"io.kubernetes.cri.pod-annotations":true,"cgroupPath":true,"aliases":true,"ips":false}}`, "first"))
	n := open(t, o.config)
	p := newPod(t, "p", PortMapping{Protocol: "TCP", HostPort: 80, ContainerPort: 8080, HostIP: "127.0.0.1"}, PortMapping{ContainerPort: 1})
	p.Annotations = map[string]string{egressAnnotation: "10M"}
	p.DNS = DNS{Servers: []string{"192.0.2.53"}, Searches: []string{"x.y"}}
	p.CgroupParent = "/pods/p"
	if ips := setup(t, n, p); fmt.Sprint(ips) != "[10.1.2.3 fd00::3]" {
		t.Errorf("got addresses %v", ips)
	}
	teardown(t, n, p)
	calls := o.calls(t, true)
	if len(calls) != 4 {
		t.Fatalf("got %d executions: %q", len(calls), calls)
	}
	wantArgs := "args=IgnoreUnknown=1;K8S_POD_NAMESPACE=test;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=p;K8S_POD_UID=uid-p "
	wantRuntime := `{"bandwidth":{"egressBurst":2147483647,"egressRate":10000000},"cgroupPath":"/pods/p",` +
		`"dns":{"searches":["x.y"],"servers":["192.0.2.53"]},` +
		`"io.kubernetes.cri.pod-annotations":{"kubernetes.io/egress-bandwidth":"10M"},` +
		`"portMappings":[{"containerPort":8080,"hostIP":"127.0.0.1","hostPort":80,"protocol":"tcp"}]}`
	for i, line := range calls {
		if !strings.Contains(line, wantArgs) || !strings.Contains(line, "netns="+p.NetNS+" ") {
			t.Errorf("execution %d: %q lacks %q or the namespace", i, line, wantArgs)
		}
		_, input, _ := strings.Cut(line, "input=")
		var got map[string]any
		if err := json.Unmarshal([]byte(input), &got); err != nil {
			t.Fatal(err)
		}
		runtime, _ := json.Marshal(got["runtimeConfig"])
		if declares := i == 0 || i == 3; declares && string(runtime) != wantRuntime || !declares && string(runtime) != "null" {
			t.Errorf("execution %d: runtimeConfig is %s", i, runtime)
		}
		if _, has := got["prevResult"]; has != (i > 0) {
			t.Errorf("execution %d: prevResult: %v", i, has)
		}
	}
}

// The plugins that have connected a pod are asked, and with what they were given then.
func TestCheckOfAChangedNetwork(t *testing.T) {
	o := newOperator(t)
	o.conf(t, "net.conflist", chain("1.0.0", "test", "one"))
	for _, name := range []string{"one", "two"} {
		o.plugin(t, name, "")
	}
	n := open(t, o.config)
	p := newPod(t, "p")
	setup(t, n, p)
	o.conf(t, "net.conflist", chain("1.0.0", "other", "two"))
	if err := n.Check(context.Background(), Pod{ID: p.ID}); err != nil {
		t.Error(err)
	}
	o.wantCalls(t, "ADD one", "CHECK one")
	o.plugin(t, "one", `if [ $CNI_COMMAND = CHECK ]; then echo '{"cniVersion":"1.0.0","code":100,"msg":"no eth0"}'; exit 1; fi`)
	if err := n.Check(context.Background(), Pod{ID: p.ID}); err == nil || !strings.Contains(err.Error(), "network test") ||
		!strings.Contains(err.Error(), "no eth0") {
		t.Errorf("got %v, want the network and the plugin's error", err)
	}
	teardown(t, n, p)
	if err := n.Check(context.Background(), Pod{ID: p.ID}); err == nil || !strings.Contains(err.Error(), "is not attached") {
		t.Errorf("of a pod that is gone: %v", err)
	}
}

func TestDeleteGoesPastFailures(t *testing.T) {
	o := newOperator(t)
	o.conf(t, "net.conflist", chain("1.0.0", "test", "one", "two", "three"))
	for _, name := range []string{"one", "two", "three"} {
		o.plugin(t, name, "")
	}
	n := open(t, o.config)
	p := newPod(t, "p")
	setup(t, n, p)
	if err := n.Check(context.Background(), p); err != nil {
		t.Error(err)
	}
	o.wantCalls(t, "ADD one", "ADD two", "ADD three", "CHECK one", "CHECK two", "CHECK three")

	o.plugin(t, "two", `echo '{"cniVersion":"1.0.0","code":100,"msg":"two is unwell"}'; exit 1`)
	if err := n.Teardown(context.Background(), p); err == nil || !strings.Contains(err.Error(), "two is unwell") {
		t.Errorf("got %v, want the plugin's error", err)
	}
	o.wantCalls(t, "DEL three", "DEL two", "DEL one")

	if err := os.Remove(o.bin + "/two"); err != nil {
		t.Fatal(err)
	}
	o.plugin(t, "one", `if [ $CNI_COMMAND = DEL ]; then exit 1; fi`)
	if err := n.Teardown(context.Background(), p); err == nil || !strings.Contains(err.Error(), "plugin one") {
		t.Errorf("got %v, want the error of plugin one", err)
	}
	for _, line := range o.calls(t, true) {
		if !strings.Contains(line, "prevResult") {
			t.Errorf("a repeated DEL lacks the result of ADD: %q", line)
		}
	}
	o.plugin(t, "one", "")
	teardown(t, n, p) // plugin two, which is gone, keeps the pod no longer
	o.wantCalls(t, "DEL three", "DEL one")
	teardown(t, n, p)
	o.wantCalls(t) // nothing is attached
}

func TestFailedAddIsUndone(t *testing.T) {
	o := newOperator(t)
	o.conf(t, "net.conflist", chain("1.0.0", "test", "one", "two", "three"))
	o.plugin(t, "one", "")
	o.plugin(t, "two", `if [ $CNI_COMMAND = ADD ]; then echo oops >&2; exit 1; fi`)
	o.plugin(t, "three", "")
	n := open(t, o.config)
	if _, err := n.Setup(context.Background(), newPod(t, "p")); err == nil || !strings.Contains(err.Error(), "oops") {
		t.Errorf("got %v, want what the plugin printed", err)
	}
	o.wantCalls(t, "ADD one", "ADD two", "DEL three", "DEL two", "DEL one")
}

func TestResultWithoutAddressIsUndone(t *testing.T) {
	o := newOperator(t)
	o.conf(t, "net.conflist", chain("1.0.0", "test", "one"))
	o.plugin(t, "one", `if [ $CNI_COMMAND = ADD ]; then echo '{"cniVersion":"1.0.0"}'; exit; fi`)
	n := open(t, o.config)
	if _, err := n.Setup(context.Background(), newPod(t, "p")); err == nil {
		t.Error("no error for a pod without an address")
	}
	o.wantCalls(t, "ADD one", "DEL one")
}

func TestDeleteWithTheConfigurationOfAdd(t *testing.T) {
	o := newOperator(t)
	o.plugin(t, "old", "")
	o.plugin(t, "new", "")
	o.conf(t, "20-net.conf", `{"cniVersion":"0.4.0","name":"before","type":"old","kept":"yes"}`)
	n := open(t, o.config)
	p, q := newPod(t, "p"), newPod(t, "q")
	setup(t, n, p)
	o.conf(t, "10-net.conflist", chain("1.0.0", "after", "new"))
	setup(t, n, q)
	n = restart(t, n, q)
	if err := os.Remove(o.config.ConfDir + "/10-net.conflist"); err != nil {
		t.Fatal(err)
	}
	o.conf(t, "20-net.conf", `{"cniVersion":"0.4.0","name":"before","type":"old","kept":"no"}`)
	o.wantCalls(t, "ADD old", "ADD new")
	teardown(t, n, p)
	calls := o.calls(t, true)
	if len(calls) != 1 || !strings.HasPrefix(calls[0], "DEL old ") || !strings.Contains(calls[0], `"kept":"yes"`) || !strings.Contains(calls[0], "prevResult") {
		t.Errorf("got %q, want DEL of the old plugin with the configuration and the result of ADD", calls)
	}
	teardown(t, n, q)
	o.wantCalls(t, "DEL new")
}

// The process is killed while a plugin adds: the next one deletes by the configuration of that time.
func TestGCAfterCrashInAdd(t *testing.T) {
	o := newOperator(t)
	o.plugin(t, "one", "")
	o.conf(t, "net.conflist", chain("1.0.0", "test", "one"))
	n := open(t, o.config)
	lists, err := n.of("").networks()
	if err != nil {
		t.Fatal(err)
	}
	p := newPod(t, "p")
	all, err := newAttachments(lists, p)
	if err == nil {
		err = n.records.write(p.ID, all)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(o.config.ConfDir + "/net.conflist"); err != nil {
		t.Fatal(err)
	}
	n = restart(t, n)
	if err := n.GC(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	o.wantCalls(t, "DEL one")
}

func TestGCOfPlugins(t *testing.T) {
	o := newOperator(t)
	o.plugin(t, "one", "")
	o.plugin(t, "two", `if [ $CNI_COMMAND = GC ]; then exit 1; fi`)
	o.conf(t, "net.conflist", chain("1.1.0", "test", "two", "one"))
	n := open(t, o.config)
	kept, gone := newPod(t, "kept"), newPod(t, "gone")
	setup(t, n, kept)
	setup(t, n, gone)
	o.calls(t, false)
	if err := n.GC(context.Background(), []string{"kept"}); err == nil || !strings.Contains(err.Error(), "plugin two") {
		t.Errorf("got %v, want an error of plugin two", err)
	}
	calls := o.calls(t, true)
	if len(calls) != 4 || !strings.HasPrefix(calls[0], "DEL one") || !strings.HasPrefix(calls[1], "DEL two") || !strings.HasPrefix(calls[3], "GC one") {
		t.Fatalf("got %q, want DEL of both and GC past the one that fails", calls)
	}
	want := `"cni.dev/valid-attachments":[{"containerID":"kept","ifname":"eth0"}]`
	if !strings.Contains(calls[3], want) {
		t.Errorf("got %q, want %s", calls[3], want)
	}
}

// A pod that is gone and whose DEL fails is tried again by each GC, and is garbage to the plugins' own.
func TestGCOfAPodThatIsStuck(t *testing.T) {
	o := newOperator(t)
	o.plugin(t, "one", `if [ $CNI_COMMAND = DEL ]; then exit 1; fi`)
	o.conf(t, "net.conflist", chain("1.1.0", "test", "one"))
	n := open(t, o.config)
	setup(t, n, newPod(t, "gone"))
	if err := n.Teardown(context.Background(), Pod{ID: "gone"}); err == nil {
		t.Error("no error of a plugin that fails")
	}
	o.calls(t, false)
	if err := n.GC(context.Background(), nil); err == nil || !strings.Contains(err.Error(), "plugin one") {
		t.Errorf("got %v, want the plugin's error", err)
	}
	if calls := o.calls(t, true); len(calls) != 2 || !strings.HasPrefix(calls[1], "GC one") ||
		!strings.Contains(calls[1], `"cni.dev/valid-attachments":[]`) {
		t.Errorf("got %q, want DEL, and GC without valid attachments", calls)
	}
	o.plugin(t, "one", "")
	if err := n.GC(context.Background(), nil); err != nil {
		t.Error(err)
	}
	o.wantCalls(t, "DEL one", "GC one")
}
