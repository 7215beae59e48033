package bridge

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const sysctls = "/proc/sys/net/"

func setSysctl(name, value string) error {
	if err := os.WriteFile(sysctls+name, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl net/%s=%s: %w", name, value, err)
	}
	return nil
}

func sysctlIs(name, value string) bool {
	b, err := os.ReadFile(sysctls + name)
	return err == nil && strings.TrimSpace(string(b)) == value
}

// ipv6Enabled tells whether new interfaces of the calling thread's network namespace speak IPv6.
func ipv6Enabled() bool {
	return sysctlIs("ipv6/conf/default/disable_ipv6", "0") && sysctlIs("ipv6/conf/all/disable_ipv6", "0")
}

// quietIPv6 prepares an interface that is down. It accepts no router's advertisement: another pod of the bridge must not
// become its router (CVE-2020-10749). It does not look for duplicates of its link-local address: until that is over it
// could not ask for neighbours on behalf of others, and in hairpin mode it would hear itself.
func quietIPv6(iface string) error {
	for _, s := range []string{"accept_ra", "accept_dad"} {
		if err := setSysctl("ipv6/conf/"+iface+"/"+s, "0"); err != nil {
			return err
		}
	}
	return nil
}

// forward makes the node a router. The sysctls stay on when the network is removed: others may rely on them by then.
func forward(useIPv6 bool) error {
	if !sysctlIs("ipv4/ip_forward", "1") {
		if err := setSysctl("ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}
	if !useIPv6 || sysctlIs("ipv6/conf/all/forwarding", "1") {
		return nil
	}
	if err := keepRouterAdvertisements(); err != nil {
		return err
	}
	return setSysctl("ipv6/conf/all/forwarding", "1")
}

// keepRouterAdvertisements keeps a node's IPv6 default route alive: once forwarding is on, an interface with
// accept_ra=1 ignores routers, and only accept_ra=2 goes on (Documentation/networking/ip-sysctl.rst).
func keepRouterAdvertisements() error {
	paths, err := filepath.Glob(sysctls + "ipv6/conf/*/accept_ra")
	if err != nil {
		return err
	}
	for _, path := range paths {
		name := strings.TrimPrefix(path, sysctls)
		if iface := filepath.Base(filepath.Dir(path)); iface == "all" || iface == "default" || !sysctlIs(name, "1") {
			continue
		}
		if err := setSysctl(name, "2"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
