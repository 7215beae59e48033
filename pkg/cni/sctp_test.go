package cni

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// TestSCTPHostPort: a host port of SCTP is in the table, and is not one of TCP. Where the kernel has SCTP, it carries data.
func TestSCTPHostPort(t *testing.T) {
	n := open(t, testConfig(t))
	p := newPod(t, "server", PortMapping{Protocol: "SCTP", HostPort: 8132, ContainerPort: 132})
	ips := setup(t, n, p)
	serve(t, p.NetNS, 132)
	if _, err := ask(t, "", "tcp", local4, 8132); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("by TCP: %v, want connection refused", err)
	}
	want := append(ips[0].AsSlice(), 0, 132, 0, 0)
	if got := mapElement(t, "ports4", unix.IPPROTO_SCTP, 8132); !bytes.HasPrefix(got, want[:6]) {
		t.Errorf("the table leads SCTP port 8132 to %v, want %v", got, want)
	}
	if fd, err := sctp(); err == nil {
		_ = unix.Close(fd)
		serveSCTP(t, p.NetNS, 132)
		other := newPod(t, "client")
		setup(t, n, other)
		for from, ns := range map[string]string{"the node": "", "another pod": other.NetNS} {
			if got, err := askSCTP(t, ns, gateway4, 8132); err != nil || got != "hello" {
				t.Errorf("from %s: %q, %v", from, got, err)
			}
		}
	} else if !errors.Is(err, unix.EPROTONOSUPPORT) {
		t.Error(err)
	} else {
		t.Log("no SCTP in this kernel: no data was sent")
	}
	teardown(t, n, p)
	if got := mapElement(t, "ports4", unix.IPPROTO_SCTP, 8132); got != nil {
		t.Errorf("after teardown it leads to %v", got)
	}
}

// mapElement is the value of a protocol and port in a map of the only nftables table, nil if there is none.
func mapElement(t *testing.T, name string, protocol byte, port uint16) []byte {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		set, err := conn.GetSetByName(table, name)
		if err != nil {
			t.Fatal(err)
		}
		elements, err := conn.GetSetElements(set)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range elements { // each part of a key fills words of four bytes
			if e.Key[0] == protocol && binary.BigEndian.Uint16(e.Key[4:]) == port {
				return e.Val
			}
		}
	}
	return nil
}

// sctp makes a socket whose calls end soon.
func sctp() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return -1, fmt.Errorf("make an SCTP socket: %w", err)
	}
	limit := unix.NsecToTimeval(int64(5 * patience))
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
	return fd, err
}

// serveSCTP says hello to who connects, within a namespace.
func serveSCTP(t *testing.T, ns string, port int) {
	t.Helper()
	err := in(t, ns, func() error {
		fd, err := sctp()
		if err != nil {
			return err
		}
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: port}), unix.Listen(fd, 5)); err != nil {
			return err
		}
		done := make(chan struct{})
		t.Cleanup(func() {
			_ = unix.Shutdown(fd, unix.SHUT_RDWR)
			_ = unix.Close(fd)
			<-done
		})
		go func() {
			defer close(done)
			for {
				c, _, err := unix.Accept(fd)
				if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
					continue
				}
				if err != nil {
					return
				}
				_, _ = unix.Write(c, []byte("hello"))
				_ = unix.Close(c)
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal("serve SCTP:", err)
	}
}

// askSCTP connects from within a namespace and returns what it is told.
func askSCTP(t *testing.T, ns string, a netip.Addr, port int) (got string, err error) {
	t.Helper()
	err = in(t, ns, func() error {
		fd, err := sctp()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: a.As4()}); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		b := make([]byte, 16)
		n, err := unix.Read(fd, b)
		got = string(b[:max(n, 0)])
		return err
	})
	return got, err
}
