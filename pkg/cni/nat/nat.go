// Package nat keeps one nftables table for a bridge network: masquerade of what leaves the pods' subnets, and the host
// ports of pods. It speaks netlink to nf_tables and runs no program.
//
// # The table
//
//	table inet criserver {
//	  map ports4  { type inet_proto . inet_service : ipv4_addr . inet_service }             any address of the node
//	  map addrs4  { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service } one address of the node
//	  map ports6, addrs6                                                                    the same for IPv6
//	  chain guard       { prerouting, raw:   iifname cri0 ip daddr 127.0.0.0/8 drop }
//	  chain prerouting  { prerouting, dstnat: fib daddr type local jump hostports }
//	  chain output      { output, dstnat:     fib daddr type local jump hostports }
//	  chain hostports   { from a pod: set the mark; dnat by the maps; clear the mark }
//	  chain postrouting { srcnat: from a pod and not to the bridge: masquerade
//	                              to the bridge with the mark, or from 127.0.0.0/8: masquerade }
//	}
//
// A pod that reaches a pod of the same bridge through a host port must see its answers come back through the node,
// so these connections are masqueraded. The mark tells them from a service's, whose clients keep their address; it is
// the bit that the CNI portmap plugin uses.
//
// Host ports of 127.0.0.1 work because the bridge has route_localnet set, which would also let a pod reach what listens
// on the node's loopback (CVE-2020-8558): the guard chain prevents that. IPv6 has no such switch, so [::1]:port is left
// alone and refuses the connection, whereupon clients of "localhost" go on to 127.0.0.1.
//
// The table drops nothing else and accepts nothing on behalf of other tables: on a node whose own rules drop forwarded
// traffic, those rules have to let the bridge through.
package nat

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// ErrMissing says that the table, or an element to remove from it, is not in the kernel: somebody else removed it.
var ErrMissing = errors.New("not in nftables")

// Port is a host port. Two are the same if all but Target and TargetPort are equal.
type Port struct {
	// Protocol is an IP protocol number: unix.IPPROTO_TCP, IPPROTO_UDP or IPPROTO_SCTP.
	Protocol uint8
	// HostIP is the node's address, of Target's family; the unspecified address stands for all of them.
	HostIP   netip.Addr
	HostPort uint16

	Target     netip.Addr
	TargetPort uint16
}

// Table is the table of one bridge. Its methods are not to be called at the same time.
type Table struct {
	table   *nftables.Table
	bridge  string
	subnets []netip.Prefix
}

// New names the table; nothing is made in the kernel.
func New(name, bridge string, subnets []netip.Prefix) *Table {
	return &Table{table: &nftables.Table{Name: name, Family: nftables.TableFamilyINet}, bridge: bridge, subnets: subnets}
}

// SetSubnets changes the pods' subnets; the next Replace makes it so in the kernel.
func (t *Table) SetSubnets(subnets []netip.Prefix) { t.subnets = subnets }

// Probe returns an error that says what to do if the kernel cannot hold the table.
func Probe() error {
	conn, err := nftables.New()
	if err != nil {
		return unsupported(err)
	}
	if _, err := conn.ListTablesOfFamily(nftables.TableFamilyINet); err != nil {
		return unsupported(err)
	}
	return nil
}

func unsupported(err error) error {
	return fmt.Errorf("use nftables: %w: the built-in network needs a kernel with nf_tables, nft_nat, nft_masq and "+
		"nft_fib_inet (Linux 5.2 or later), and CAP_NET_ADMIN; else install a CNI network", err)
}

// Exists tells whether the table is in the kernel.
func (t *Table) Exists() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, unsupported(err)
	}
	_, err = conn.ListTableOfFamily(t.table.Name, t.table.Family)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read nftables table %s: %w", t.table.Name, err)
	}
	return true, nil
}

// Complete tells whether the table is in the kernel with all its rules and with these host ports and no others.
func (t *Table) Complete(ports []Port) (bool, error) {
	if there, err := t.Exists(); !there || err != nil {
		return false, err
	}
	conn, err := nftables.New()
	if err != nil {
		return false, unsupported(err)
	}
	for _, c := range t.chains() {
		rules, err := conn.GetRules(t.table, &nftables.Chain{Name: c.name, Table: t.table})
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read rules of chain %s: %w", c.name, err)
		}
		if len(rules) != len(c.rules) {
			return false, nil
		}
	}
	want := t.elements(ports)
	for _, name := range mapNames {
		have, err := conn.GetSetElements(t.set(name))
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read map %s: %w", name, err)
		}
		if !sameElements(have, want[name]) {
			return false, nil
		}
	}
	return true, nil
}

func sameElements(a, b []nftables.SetElement) bool {
	if len(a) != len(b) {
		return false
	}
	values := map[string]string{}
	for _, e := range a {
		values[string(e.Key)] = string(e.Val)
	}
	for _, e := range b {
		if v, ok := values[string(e.Key)]; !ok || v != string(e.Val) {
			return false
		}
	}
	return true
}

// Replace makes the table with these host ports and no others, in one transaction: packets see the old table or the
// new one.
func (t *Table) Replace(ports []Port) error {
	conn, err := nftables.New()
	if err != nil {
		return unsupported(err)
	}
	// nf_tables cannot "delete if it is there" before Linux 6.3; adding first makes the deletion succeed.
	conn.AddTable(t.table)
	conn.DelTable(t.table)
	conn.AddTable(t.table)
	t.addChains(conn)
	if err := t.addElements(conn, ports); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPERM) {
			return unsupported(err)
		}
		return fmt.Errorf("make nftables table %s: %w", t.table.Name, err)
	}
	return forgetFlows(ports)
}

// Add publishes host ports. ErrMissing asks for Replace.
func (t *Table) Add(ports []Port) error {
	conn, err := nftables.New()
	if err != nil {
		return unsupported(err)
	}
	if err := t.addElements(conn, ports); err != nil {
		return err
	}
	if err := t.flush(conn, "publish host ports"); err != nil {
		return err
	}
	return forgetFlows(ports)
}

// Remove takes host ports back. ErrMissing, if at least one was not there, means that none is removed: it asks for
// Replace.
func (t *Table) Remove(ports []Port) error {
	conn, err := nftables.New()
	if err != nil {
		return unsupported(err)
	}
	for set, elements := range t.elements(ports) {
		if err := conn.SetDeleteElements(t.set(set), elements); err != nil {
			return fmt.Errorf("encode host ports: %w", err)
		}
	}
	if err := t.flush(conn, "remove host ports"); err != nil {
		return err
	}
	return forgetFlows(ports)
}

// Delete removes the table; it is no error if there is none.
func (t *Table) Delete() error {
	conn, err := nftables.New()
	if err != nil {
		return unsupported(err)
	}
	conn.DelTable(t.table)
	if err := t.flush(conn, "delete table"); err != nil && !errors.Is(err, ErrMissing) {
		return err
	}
	return nil
}

func (t *Table) flush(conn *nftables.Conn, what string) error {
	err := conn.Flush()
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%s in nftables table %s: %w", what, t.table.Name, ErrMissing)
	}
	if err != nil {
		return fmt.Errorf("%s in nftables table %s: %w", what, t.table.Name, err)
	}
	return nil
}
