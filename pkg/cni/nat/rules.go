package nat

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The registers in the numbering of enum nft_registers: 1 is the first 16 bytes, 2 the next 16; 9, 10 and 13 are the
// 4-byte registers at offsets 4, 8 and 20 of the same memory. A concatenation is loaded into consecutive ones.
const (
	reg1    = 1
	reg2    = 2
	reg4At4 = unix.NFT_REG32_00 + 1
)

// mark is the bit that marks pods' connections to host ports, the same as the CNI portmap plugin's by default.
const mark = 1 << 13

// family is what differs between IPv4 and IPv6.
type family struct {
	proto        byte
	ports, addrs string // names of the maps
	addrType     nftables.SetDatatype
	addrLen      uint32
	saddr, daddr uint32 // offsets in the network header
	portReg      uint32 // where the port of a looked-up target lies, behind the address in reg1
}

var (
	ipv4 = family{unix.NFPROTO_IPV4, "ports4", "addrs4", nftables.TypeIPAddr, 4, 12, 16, reg4At4}
	ipv6 = family{unix.NFPROTO_IPV6, "ports6", "addrs6", nftables.TypeIP6Addr, 16, 8, 24, reg2}
)

var mapNames = []string{ipv4.ports, ipv4.addrs, ipv6.ports, ipv6.addrs}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// set describes a map; a batch and the later additions to it need the same description.
func (t *Table) set(name string) *nftables.Set {
	s := &nftables.Set{Table: t.table, Name: name, IsMap: true, Concatenation: true, KeyByteOrder: binaryutil.BigEndian}
	// The id names a set within a transaction.
	for i, f := range []family{ipv4, ipv6} {
		switch name {
		case f.ports:
			s.ID = uint32(2*i + 1)
			s.KeyType = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
		case f.addrs:
			s.ID = uint32(2*i + 2)
			s.KeyType = nftables.MustConcatSetType(nftables.TypeInetProto, f.addrType, nftables.TypeInetService)
		default:
			continue
		}
		s.DataType = nftables.MustConcatSetType(f.addrType, nftables.TypeInetService)
	}
	return s
}

// elements sorts host ports into the maps that hold them.
func (t *Table) elements(ports []Port) map[string][]nftables.SetElement {
	out := map[string][]nftables.SetElement{}
	for _, p := range ports {
		f := familyOf(p.Target)
		name, key := f.ports, []byte{p.Protocol, 0, 0, 0}
		if !p.HostIP.IsUnspecified() {
			name, key = f.addrs, append(key, p.HostIP.AsSlice()...)
		}
		out[name] = append(out[name], nftables.SetElement{
			Key: appendPort(key, p.HostPort),
			Val: appendPort(p.Target.AsSlice(), p.TargetPort),
		})
	}
	return out
}

// appendPort appends a port as a part of a concatenation, padded to a register.
func appendPort(b []byte, port uint16) []byte {
	return append(binary.BigEndian.AppendUint16(b, port), 0, 0)
}

// elementsPerMessage keeps a netlink attribute, which holds the elements of a message, below its limit of 64 KiB.
const elementsPerMessage = 256

func (t *Table) addElements(conn *nftables.Conn, ports []Port) error {
	for set, elements := range t.elements(ports) {
		for len(elements) > 0 {
			n := min(len(elements), elementsPerMessage)
			if err := conn.SetAddElements(t.set(set), elements[:n]); err != nil {
				return fmt.Errorf("encode host ports: %w", err)
			}
			elements = elements[n:]
		}
	}
	return nil
}

// chains are the table's chains, by name, with their rules.
func (t *Table) chains() []chain {
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	toBridge := interfaceIs(expr.MetaKeyOIFNAME, expr.CmpOpEq, t.bridge)
	toLocal := join(localDestination(), verdict(expr.VerdictJump, "hostports"))

	hostports := [][]expr.Any{join(isFamily(ipv6), notIPv6Loopback())}
	var postrouting [][]expr.Any
	for _, subnet := range t.subnets {
		fromPod := within(subnet, familyOf(subnet.Addr()).saddr)
		hostports = append(hostports, join(fromPod, setMark(mark)))
		postrouting = append(postrouting, join(fromPod, interfaceIs(expr.MetaKeyOIFNAME, expr.CmpOpNeq, t.bridge), masquerade()))
	}
	for _, f := range []family{ipv4, ipv6} {
		hostports = append(hostports,
			join(isFamily(f), t.lookup(f, f.addrs), dnat(f)),
			join(isFamily(f), t.lookup(f, f.ports), dnat(f)))
	}
	hostports = append(hostports, setMark(0))
	postrouting = append(postrouting,
		join(toBridge, isMarked(), masquerade()),
		join(toBridge, within(loopback, ipv4.saddr), masquerade()))

	// A rule can jump only to a chain that is there.
	return []chain{
		{name: "hostports", rules: hostports},
		{"guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, [][]expr.Any{
			join(interfaceIs(expr.MetaKeyIIFNAME, expr.CmpOpEq, t.bridge), within(loopback, ipv4.daddr), verdict(expr.VerdictDrop, "")),
		}},
		{"prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, [][]expr.Any{toLocal}},
		{"output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, [][]expr.Any{toLocal}},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, postrouting},
	}
}

// chain is a chain to make; one without a hook is only jumped to.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    [][]expr.Any
}

func (t *Table) addChains(conn *nftables.Conn) {
	for _, name := range mapNames {
		// AddSet without elements can only fail for an anonymous set.
		_ = conn.AddSet(t.set(name), nil)
	}
	for _, c := range t.chains() {
		made := conn.AddChain(&nftables.Chain{Name: c.name, Table: t.table, Type: c.kind, Hooknum: c.hook, Priority: c.priority})
		for _, exprs := range c.rules {
			conn.AddRule(&nftables.Rule{Table: t.table, Chain: made, Exprs: exprs})
		}
	}
}

func join(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

func isFamily(f family) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{f.proto}},
	}
}

// within matches an address of the network header, at offset, against a prefix.
func within(p netip.Prefix, offset uint32) []expr.Any {
	f := familyOf(p.Addr())
	return append(isFamily(f),
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addrLen},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: f.addrLen,
			Mask: net.CIDRMask(p.Bits(), int(f.addrLen)*8), Xor: make([]byte, f.addrLen)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: p.Masked().Addr().AsSlice()},
	)
}

// notIPv6Loopback returns from the chain for packets to ::1.
func notIPv6Loopback() []expr.Any {
	return append([]expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: ipv6.daddr, Len: ipv6.addrLen},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: netip.IPv6Loopback().AsSlice()},
	}, verdict(expr.VerdictReturn, "")...)
}

func interfaceIs(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: reg1}, &expr.Cmp{Op: op, Register: reg1, Data: padded}}
}

func localDestination() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// lookup loads a map's key into registers from reg1 on and replaces it by what the map holds for it; a packet without
// an element leaves the rule.
func (t *Table) lookup(f family, name string) []expr.Any {
	parts := []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}}
	next := uint32(reg4At4)
	if name == f.addrs {
		parts = append(parts, &expr.Payload{DestRegister: next, Base: expr.PayloadBaseNetworkHeader, Offset: f.daddr, Len: f.addrLen})
		next += f.addrLen / 4
	}
	s := t.set(name)
	return append(parts,
		// The destination port has the same place in the headers of TCP, UDP and SCTP.
		&expr.Payload{DestRegister: next, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetName: s.Name, SetID: s.ID},
	)
}

func dnat(f family) []expr.Any {
	return []expr.Any{&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg1, RegProtoMin: f.portReg}}
}

// setMark sets our bit of the packet's mark to that of value and leaves the others alone.
func setMark(value uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^uint32(mark)), Xor: binaryutil.NativeEndian.PutUint32(value)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1, SourceRegister: true},
	}
}

func isMarked() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(mark), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}
