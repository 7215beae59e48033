package devmapper

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot/devmapper/dm"
)

// sector is the unit of the device mapper, in bytes.
const sector = 512

// pool is a thin pool of the kernel's (Documentation/admin-guide/device-mapper/thin-provisioning.rst). Its methods wait for the kernel.
type pool struct{ name string }

// room is what a pool has left.
type room struct {
	free, total  int64 // bytes of data
	freeMetadata int64 // blocks
}

// leastMetadata is how many blocks of metadata a pool must have left: the kernel makes a pool read-only that has none.
const leastMetadata = 64

// room reads what the pool has left. It says why the pool cannot take anything.
func (p pool) room() (room, error) {
	status, err := p.status()
	if err != nil {
		return room{}, err
	}
	table, err := dm.Table(p.name)
	if err != nil {
		return room{}, fmt.Errorf("thin pool: %w", err)
	}
	r, err := parseRoom(status.Params, table.Params)
	if err != nil {
		return r, fmt.Errorf("thin pool %s: %w", p.name, err)
	}
	return r, nil
}

// status is what the kernel says of the pool. dm.ErrNotFound, dm.ErrNone, errNoPool.
func (p pool) status() (dm.Target, error) {
	status, err := dm.Status(p.name)
	if err != nil {
		return status, fmt.Errorf("thin pool: %w", err)
	}
	if status.Type != "thin-pool" {
		return status, fmt.Errorf("device %s is %q: %w", p.name, status.Type, errNoPool)
	}
	return status, nil
}

var errNoPool = errors.New("not a thin-pool")

// parseRoom reads "<transaction> <used>/<total metadata> <used>/<total data> <held root> <mode> …" and
// "<metadata device> <data device> <block size in sectors> …".
func parseRoom(status, table string) (room, error) {
	fields, made := strings.Fields(status), strings.Fields(table)
	if len(fields) < 5 || len(made) < 3 {
		return room{}, fmt.Errorf("the kernel says %q: it has failed", status)
	}
	block, err := strconv.ParseInt(made[2], 10, 64)
	usedMeta, totalMeta, errMeta := parseRatio(fields[1])
	used, total, errData := parseRatio(fields[2])
	if err := errors.Join(err, errMeta, errData); err != nil {
		return room{}, fmt.Errorf("state %q of table %q: %w", status, table, err)
	}
	r := room{free: (total - used) * block * sector, total: total * block * sector, freeMetadata: totalMeta - usedMeta}
	switch mode := fields[4]; {
	case mode == "out_of_data_space" || used >= total:
		return r, fmt.Errorf("it is full (%d bytes): %w; make it larger, or remove containers and images", r.total, unix.ENOSPC)
	case mode != "rw":
		return r, fmt.Errorf("it is in mode %q: check and repair it (thin_check, thin_repair)", mode)
	case len(fields) > 7 && fields[7] == "needs_check":
		return r, errors.New("it needs to be checked (thin_check)")
	case r.freeMetadata < leastMetadata:
		return r, fmt.Errorf("its metadata have %d blocks left: %w; make their device larger", r.freeMetadata, unix.ENOSPC)
	}
	return r, nil
}

func parseRatio(s string) (used, total int64, err error) {
	a, b, _ := strings.Cut(s, "/")
	used, err = strconv.ParseInt(a, 10, 64)
	if err == nil {
		total, err = strconv.ParseInt(b, 10, 64)
	}
	return used, total, err
}

// create makes a thin device in the pool, which begins as origin, which is not active, or empty if that is 0. unix.EEXIST: the pool has
// one of that ID. unix.ENODATA: it has no such origin.
func (p pool) create(id, origin uint32) error {
	message := fmt.Sprintf("create_thin %d", id)
	if origin != 0 {
		message = fmt.Sprintf("create_snap %d %d", id, origin)
	}
	return dm.Message(p.name, message)
}

// fileSystem tells the UUID of the ext4 file system on a thin device, in the form of record.FileSystem; "" if there is none. The device is
// active then. unix.ENODATA: the pool has no such device.
func (p pool) fileSystem(id uint32, size int64) (string, error) {
	info, err := p.activate(id, max(size, LeastSize))
	if err != nil {
		return "", err
	}
	f, err := os.Open(info.Path())
	if err != nil {
		return "", err
	}
	// Documentation/filesystems/ext4/super.rst
	const superblock, magic, uuid = 1024, 0x38, 0x68
	block := make([]byte, 1024)
	_, err = f.ReadAt(block, superblock)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	if binary.LittleEndian.Uint16(block[magic:]) != 0xef53 {
		return "", nil
	}
	return formatUUID([16]byte(block[uuid:])), nil
}

func formatUUID(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// newUUID is a random one (RFC 9562, version 4).
func newUUID() string {
	var u [16]byte
	_, _ = rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return formatUUID(u)
}

// delete removes a thin device, which is not active, from the pool. It is idempotent.
func (p pool) delete(id uint32) error {
	err := dm.Message(p.name, fmt.Sprintf("delete %d", id))
	if errors.Is(err, unix.ENODATA) {
		return nil
	}
	return err
}

// deviceName is what an active thin device is called.
func (p pool) deviceName(id uint32) string { return fmt.Sprintf("%s-criserver-%d", p.name, id) }

// activate makes a block device of a thin device, unless there is one. One caller at a time for one device, and for what drops it.
func (p pool) activate(id uint32, size int64) (dm.Info, error) {
	above, err := dm.Find(p.name)
	if err != nil {
		return dm.Info{}, fmt.Errorf("thin pool: %w", err)
	}
	name := p.deviceName(id)
	info, err := dm.Create(name, dm.Target{Type: "thin", Sectors: uint64(size / sector), Params: fmt.Sprintf("%s %d", above.Number(), id)})
	if errors.Is(err, dm.ErrExists) {
		info, err = dm.Find(name)
	}
	if err != nil {
		return info, err
	}
	return info, node(info)
}

// node sees to a device node, for a /dev that the kernel does not keep.
func node(info dm.Info) error {
	want := unix.Mkdev(info.Major, info.Minor)
	var st unix.Stat_t
	err := unix.Lstat(info.Path(), &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == want {
		return nil
	}
	if err == nil {
		err = unix.Unlink(info.Path())
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		err = unix.Mknod(info.Path(), unix.S_IFBLK|0o600, int(want))
	}
	if err != nil {
		return fmt.Errorf("make device node: %w", &os.PathError{Op: "mknod", Path: info.Path(), Err: err})
	}
	return nil
}

// Whoever else looks at a new device, such as udev, has it open for a moment.
const (
	openFor  = 5 * time.Second
	openStep = 10 * time.Millisecond
)

// deactivate takes the block device away, if there is one, and waits a while for those who have it open. unix.EBUSY.
func (p pool) deactivate(ctx context.Context, id uint32) error {
	for deadline := time.Now().Add(openFor); ; {
		err := p.drop(id)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(openStep):
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

// drop takes the block device away, if there is one. unix.EBUSY: somebody has it open.
func (p pool) drop(id uint32) error {
	err := dm.Remove(p.deviceName(id))
	if errors.Is(err, dm.ErrNotFound) {
		return nil
	}
	return err
}
