package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/cni/netns"
)

func get(url string) (string, error) {
	client := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, Proxy: nil}}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(body)), err
}

// ips are the addresses of a pod, the primary one first.
func (n *node) ips(podID string) []string {
	n.t.Helper()
	resp, err := n.PodSandboxStatus(n.t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID})
	if err != nil {
		n.t.Fatal(err)
	}
	ips := []string{resp.Status.Network.Ip}
	for _, ip := range resp.Status.Network.AdditionalIps {
		ips = append(ips, ip.Ip)
	}
	return ips
}

const webServer = "mkdir -p /tmp/www && echo hello from $HOSTNAME > /tmp/www/index.html && exec httpd -f -p 80 -h /tmp/www"

func TestWebServerIsReachable(t *testing.T) {
	n := newNode(t)
	const hostPort = 38080
	pod := n.podConfig(func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{
			{ContainerPort: 80, HostPort: hostPort}, {ContainerPort: 81, HostPort: 0},
		}
	})
	podID := n.runPod(pod)
	n.run(podID, pod, shell("web", webServer))
	ips := n.ips(podID)
	if len(ips) != 2 || !strings.Contains(ips[1], ":") {
		t.Fatalf("addresses = %v, want one of IPv4 and one of IPv6", ips)
	}
	want := "hello from " + pod.Hostname
	urls := []string{"http://" + ips[0], "http://" + net.JoinHostPort(ips[1], "80"), fmt.Sprintf("http://127.0.0.1:%d", hostPort)}
	for _, url := range urls {
		eventually(t, url+" answers", func() bool {
			body, err := get(url)
			return err == nil && body == want
		})
	}
	other := n.podConfig()
	otherID := n.runPod(other)
	id := n.run(otherID, other, shell("client", "sleep 1000"))
	for _, ip := range ips { // Debian's static wget crashes looking up any host
		out, code := n.exec(id, "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 "+ip+" 80 | tail -n 1")
		if out != want || code != 0 {
			t.Errorf("from a second pod, %s = %q, %d", ip, out, code)
		}
	}
	// A host port is gone with its pod, and the next pod may have it.
	if _, err := n.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: podID}); err != nil {
		t.Fatal(err)
	}
	if body, err := get(urls[2]); err == nil {
		t.Errorf("the host port of a stopped pod answers %q", body)
	}
	next := n.podConfig(func(c *runtimeapi.PodSandboxConfig) { c.PortMappings = pod.PortMappings })
	nextID := n.runPod(next)
	n.run(nextID, next, shell("web", webServer))
	eventually(t, "the next pod answers on the host port", func() bool {
		body, err := get(urls[2])
		return err == nil && body == "hello from "+next.Hostname
	})
}

// TestUDPHostPort has a port of one address of the node lead to a pod: by UDP, and not by TCP or on another address.
func TestUDPHostPort(t *testing.T) {
	n := newNode(t)
	podID := n.runPod(n.podConfig(func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_UDP, ContainerPort: 53, HostPort: 38053, HostIp: "127.0.0.1"}}
	}))
	var server *net.UDPConn
	err := netns.Do(filepath.Join(n.dir, "state/pods", podID, "ns/net"), func(*netlink.Handle) (err error) {
		server, err = net.ListenUDP("udp", &net.UDPAddr{Port: 53})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		b := make([]byte, 100)
		for {
			size, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(append([]byte("from the pod: "), b[:size]...), from)
		}
	}()
	ask := func(network, address string) (string, error) {
		c, err := net.DialTimeout(network, address, 3*time.Second)
		if err != nil {
			return "", err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
			return "", err
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			return "", err
		}
		b := make([]byte, 100)
		size, err := c.Read(b)
		return string(b[:size]), err
	}
	if got, err := ask("udp", "127.0.0.1:38053"); err != nil || got != "from the pod: hello" {
		t.Errorf("the host port answers %q, %v", got, err)
	}
	for network, address := range map[string]string{"udp": "127.0.0.2:38053", "tcp": "127.0.0.1:38053"} {
		if got, err := ask(network, address); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s to %s: %q, %v, want that it is refused", network, address, got, err)
		}
	}
}

func TestHostPortConflictIsRefused(t *testing.T) {
	n := newNode(t)
	ports := func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 38081}}
	}
	n.runPod(n.podConfig(ports))
	_, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.podConfig(ports)})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "38081") {
		t.Errorf("err = %v, want FailedPrecondition, and the port's name", err)
	}
}

func TestMalformedBandwidthIsRefused(t *testing.T) {
	n := newNode(t)
	for _, annotation := range []string{"kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"} {
		_, err := n.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.podConfig(func(c *runtimeapi.PodSandboxConfig) {
			c.Annotations = map[string]string{annotation: "10 Mbit"}
		})})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), annotation) {
			t.Errorf("err = %v, want InvalidArgument, and the annotation's name", err)
		}
	}
}

// TestBandwidth measures what a pod with a limit sends. That nothing of the limit is left, the end of every test checks.
func TestBandwidth(t *testing.T) {
	n := newNode(t)
	const rate, size = 16_000_000, 4 << 20 // bits a second, bytes
	pod := n.podConfig(func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "16M", "kubernetes.io/ingress-bandwidth": "1G"}
	})
	podID := n.runPod(pod)
	n.run(podID, pod, shell("web", fmt.Sprintf("mkdir /tmp/www && cd /tmp/www && echo here >index.html && "+
		"head -c %d /dev/zero >file && exec httpd -f -p 80 -h /tmp/www", size)))
	url := "http://" + n.ips(podID)[0]
	eventually(t, "the pod answers", func() bool {
		body, err := get(url)
		return err == nil && body == "here"
	})
	n.kill()
	n.start() // a restart leaves the limit as it is
	begin := time.Now()
	resp, err := (&http.Client{Timeout: time.Minute, Transport: &http.Transport{}}).Get(url + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.Copy(io.Discard, resp.Body)
	took := time.Since(begin)
	if err != nil || got != size {
		t.Fatalf("got %d bytes, %v", got, err)
	}
	full := time.Duration(size*8*float64(time.Second)/rate) - 200*time.Millisecond // less the burst
	t.Logf("%d bytes in %s: %.1f Mbit/s", size, took, size*8/took.Seconds()/1e6)
	if took < full || took > 8*full {
		t.Errorf("%d bytes took %s, at %d bit/s they take %s", size, took, rate, full)
	}
}

func TestDNS(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig(func(c *runtimeapi.PodSandboxConfig) {
		c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"a.local", "b.local"}, Options: []string{"ndots:5"}}
	})
	out, _ := n.output(n.runPod(pod), pod, shell("c", "cat /etc/resolv.conf; cat /etc/hostname; hostname; echo $HOSTNAME"))
	want := "search a.local b.local\nnameserver 10.96.0.10\noptions ndots:5\n" + strings.Repeat(pod.Hostname+"\n", 3)
	if out != strings.TrimSpace(want) {
		t.Errorf("out = %q, want %q", out, want)
	}
}

// A pod that has a network and no host name gets one of its own: the node's would be another's.
func TestHostNameOfItsOwn(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig(func(c *runtimeapi.PodSandboxConfig) { c.Hostname, c.Metadata.Name = "", "My_pod.0" })
	out, _ := n.output(n.runPod(pod), pod, shell("c", "cat /etc/hostname; hostname; echo $HOSTNAME"))
	if want := strings.TrimSpace(strings.Repeat("my-pod-0\n", 3)); out != want {
		t.Errorf("out = %q, want %q", out, want)
	}
}

func TestHostNetwork(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig(func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = ""
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	podID := n.runPod(pod)
	if ips := n.ips(podID); ips[0] != "" {
		t.Errorf("addresses = %v, want none", ips)
	}
	out, _ := n.output(podID, pod, shell("c", "cat /proc/net/dev"))
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		if !strings.Contains(out, i.Name+":") {
			t.Errorf("interface %s of the host is not seen:\n%s", i.Name, out)
		}
	}
}

func TestOperatorsNetwork(t *testing.T) {
	n := newNode(t)
	conf := `{"cniVersion":"1.0.0","name":"op","plugins":[{"type":"bridge","bridge":"crie2eop","isGateway":true,
	"ipam":{"type":"host-local","dataDir":"` + n.dir + `/ipam","subnet":"10.214.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}}]}`
	n.writeCNI("10-op.conflist", conf)
	pod := n.podConfig()
	var podID string
	eventually(t, "the new configuration is used", func() bool {
		pod = n.podConfig()
		podID = n.runPod(pod)
		return strings.HasPrefix(n.ips(podID)[0], "10.214.0.")
	})
	n.run(podID, pod, shell("web", webServer))
	eventually(t, "the pod answers", func() bool {
		_, err := get("http://" + n.ips(podID)[0])
		return err == nil
	})
	n.removeAll()
	n.deleteLink("crie2eop") // the plugin's bridge is the operator's
}
