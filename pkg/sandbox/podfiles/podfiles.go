// Package podfiles makes what the containers of a pod share as files: /dev/shm, resolv.conf, hostname, hosts.
package podfiles

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
)

// shmSize is the size of a pod's /dev/shm in bytes, the kernel's and every runtime's custom.
const shmSize = 64 << 20

// Config says what to make.
type Config struct {
	// Hostname is what /etc/hostname says.
	Hostname string
	// DNS makes resolv.conf; nil copies the host's.
	DNS *DNS
	// Shm makes a /dev/shm.
	Shm bool
	// UID and GID own all that: the IDs, on the host, of root in the pod.
	UID, GID int
	// Label is the SELinux label of all of it; "" is none.
	Label string
}

// DNS are the settings of resolv.conf(5).
type DNS struct {
	Servers, Searches, Options []string
}

// Shm is where Make mounts /dev/shm.
func Shm(dir string) string { return filepath.Join(dir, "shm") }

// ResolvConf is where Make puts resolv.conf.
func ResolvConf(dir string) string { return filepath.Join(dir, "resolv.conf") }

// Hostname is where Make puts /etc/hostname.
func Hostname(dir string) string { return filepath.Join(dir, "hostname") }

// Hosts is where Make puts /etc/hosts.
func Hosts(dir string) string { return filepath.Join(dir, "hosts") }

// Make makes the files in dir, which must exist. Remove undoes it, also after an error.
func Make(dir string, c Config) error {
	conf, err := resolvConf(c.DNS)
	if err != nil {
		return err
	}
	hosts, err := os.ReadFile("/etc/hosts") // the kubelet mounts one of its own over it
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("copy the host's hosts file: %w", err)
	}
	if err := errors.Join(
		os.WriteFile(ResolvConf(dir), []byte(conf), 0o644),
		os.WriteFile(Hostname(dir), []byte(c.Hostname+"\n"), 0o644),
		os.WriteFile(Hosts(dir), hosts, 0o644),
	); err != nil {
		return fmt.Errorf("write pod files: %w", err)
	}
	for _, f := range []string{ResolvConf(dir), Hostname(dir), Hosts(dir)} {
		if err := errors.Join(os.Chown(f, c.UID, c.GID), label.SetFileLabel(f, c.Label)); err != nil {
			return fmt.Errorf("write pod files: %w", err)
		}
	}
	if !c.Shm {
		return nil
	}
	if err := os.Mkdir(Shm(dir), 0o1777); err != nil {
		return fmt.Errorf("make /dev/shm: %w", err)
	}
	if err := unix.Mount("shm", Shm(dir), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC,
		label.FormatMountLabel(fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", shmSize, c.UID, c.GID), c.Label)); err != nil {
		return fmt.Errorf("mount /dev/shm at %s: %w", Shm(dir), err)
	}
	return nil
}

// Remove removes the files. It is idempotent.
func Remove(dir string) error {
	if err := snapshot.Unmount(Shm(dir)); err != nil {
		return err
	}
	for _, f := range []string{Shm(dir), ResolvConf(dir), Hostname(dir), Hosts(dir)} {
		// Not RemoveAll: whatever is mounted below by mistake must survive.
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove pod files: %w", err)
		}
	}
	return nil
}

// resolvConf renders resolv.conf(5); without DNS settings the host's is copied.
func resolvConf(dns *DNS) (string, error) {
	if dns == nil {
		data, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("copy the host's DNS settings: %w", err)
		}
		return string(data), nil
	}
	var b strings.Builder
	if len(dns.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.Searches, " "))
	}
	for _, server := range dns.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(dns.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.Options, " "))
	}
	return b.String(), nil
}
