// Package dm asks the kernel's device mapper for block devices (include/uapi/linux/dm-ioctl.h).
//
// Its calls wait for the kernel, and a call about a device that is suspended may wait for ever: none of them takes a context, who
// cannot wait calls them on a goroutine of its own.
package dm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxName is the longest name of a device, in bytes.
const MaxName = unix.DM_NAME_LEN - 1

var (
	// ErrNone: the kernel has no device mapper, or this process no access to it.
	ErrNone = errors.New("no device mapper")
	// ErrNotFound: no device of that name.
	ErrNotFound = errors.New("no such device")
	// ErrExists: a device of that name exists.
	ErrExists = errors.New("device exists")
)

// Target is a stretch of a device: all of its sectors, of 512 bytes.
type Target struct {
	Type    string // such as "thin"
	Sectors uint64
	// Params are what the target type wants.
	Params string
}

// Info tells of a device.
type Info struct {
	Major, Minor uint32
	// Active: it has a table. Who makes a device and is killed may leave one that has none.
	Active bool
	// Opened is how often it is open: mounted, or used by another device.
	Opened int
}

// Path is where devtmpfs has the device.
func (i Info) Path() string { return fmt.Sprintf("/dev/dm-%d", i.Minor) }

// Number is the device as tables name it.
func (i Info) Number() string { return fmt.Sprintf("%d:%d", i.Major, i.Minor) }

// Create makes a device of one target, also of one that was left without a table. ErrExists, ErrNone.
func Create(name string, t Target) (Info, error) {
	err := newCall(name).do(unix.DM_DEV_CREATE, "create")
	if errors.Is(err, ErrExists) {
		if there, ferr := Find(name); ferr != nil || there.Active {
			return Info{}, errors.Join(err, ferr)
		}
		err = nil
	}
	if err != nil {
		return Info{}, err
	}
	err = load(name, t)
	var info Info
	if err == nil {
		c := newCall(name)
		err = c.do(unix.DM_DEV_SUSPEND, "resume") // without DM_SUSPEND_FLAG
		info = c.info()
	}
	if err != nil {
		return Info{}, errors.Join(err, Remove(name))
	}
	return info, nil
}

func load(name string, t Target) error {
	c := newCall(name)
	if len(t.Type) >= unix.DM_MAX_TYPE_NAME {
		return fmt.Errorf("load the table of %s: target type %q is too long", name, t.Type)
	}
	spec := unix.DmTargetSpec{Length: t.Sectors}
	copy(spec.Target_type[:], t.Type)
	c.header().Target_count = 1
	if err := c.put(unsafe.Slice((*byte)(unsafe.Pointer(&spec)), unix.SizeofDmTargetSpec), t.Params); err != nil {
		return fmt.Errorf("load the table of %s: %w", name, err)
	}
	return c.do(unix.DM_TABLE_LOAD, "load the table of")
}

// Remove takes a device away. unix.EBUSY: it is open. ErrNotFound.
func Remove(name string) error { return newCall(name).do(unix.DM_DEV_REMOVE, "remove") }

// Find tells of a device by its name. ErrNotFound, ErrNone.
func Find(name string) (Info, error) {
	c := newCall(name)
	err := c.do(unix.DM_DEV_STATUS, "find")
	return c.info(), err
}

// Status returns what the first target of a device says of its state, which is not written to disk for that. ErrNotFound, ErrNone.
func Status(name string) (Target, error) { return table(name, unix.DM_NOFLUSH_FLAG) }

// Table returns what the first target of a device was made with. ErrNotFound, ErrNone.
func Table(name string) (Target, error) { return table(name, unix.DM_STATUS_TABLE_FLAG) }

func table(name string, flags uint32) (Target, error) {
	c := newCall(name)
	c.header().Flags |= flags
	if err := c.do(unix.DM_TABLE_STATUS, "read the state of"); err != nil {
		return Target{}, err
	}
	h := c.header()
	if h.Target_count == 0 || h.Flags&unix.DM_BUFFER_FULL_FLAG != 0 || int(h.Data_start)+unix.SizeofDmTargetSpec > len(c.buf) {
		return Target{}, fmt.Errorf("read the state of %s: %d targets, more than fits or none", name, h.Target_count)
	}
	at := c.buf[h.Data_start:]
	t := Target{Sectors: binary.NativeEndian.Uint64(at[8:]), Type: text(at[24:40]), Params: text(at[unix.SizeofDmTargetSpec:])}
	return t, nil
}

// Message sends a target of a device a message, and returns its refusal as it is.
func Message(name, message string) error {
	c := newCall(name)
	var sector [8]byte
	if err := c.put(sector[:], message); err != nil {
		return fmt.Errorf("message to %s: %w", name, err)
	}
	return c.do(unix.DM_TARGET_MSG, fmt.Sprintf("send %q to", message))
}

// call is the buffer of an ioctl: the header, and behind it what a command has besides.
type call struct {
	name string
	buf  []byte
}

// bufferSize has room for what a device of one target says.
const bufferSize = 16 << 10

func newCall(name string) *call {
	c := &call{name: name, buf: make([]byte, bufferSize)}
	h := c.header()
	h.Version = [3]uint32{unix.DM_VERSION_MAJOR, 0, 0}
	h.Data_size = bufferSize
	h.Data_start = unix.SizeofDmIoctl
	copy(h.Name[:unix.DM_NAME_LEN-1], name)
	return c
}

func (c *call) header() *unix.DmIoctl { return (*unix.DmIoctl)(unsafe.Pointer(&c.buf[0])) }

// put writes a structure and a string with its terminating zero behind the header.
func (c *call) put(structure []byte, text string) error {
	at := unix.SizeofDmIoctl
	if at+len(structure)+len(text)+1 > len(c.buf) {
		return unix.E2BIG
	}
	at += copy(c.buf[at:], structure)
	copy(c.buf[at:], text)
	return nil
}

func (c *call) info() Info {
	h := c.header()
	return Info{
		Major: unix.Major(h.Dev), Minor: unix.Minor(h.Dev), Opened: int(h.Open_count), Active: h.Flags&unix.DM_ACTIVE_PRESENT_FLAG != 0,
	}
}

func (c *call) do(command uint, what string) error {
	if len(c.name) == 0 || len(c.name) > MaxName {
		return fmt.Errorf("%s device %q: its name has %d bytes, want 1 to %d", what, c.name, len(c.name), MaxName)
	}
	f, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: %w (load the modules dm_mod and dm_thin_pool)", ErrNone, err)
	}
	defer f.Close()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(command), uintptr(unsafe.Pointer(&c.buf[0])))
	runtime.KeepAlive(c)
	switch {
	case errno == 0:
		return nil
	case errno == unix.ENXIO:
		err = ErrNotFound
	case errno == unix.EBUSY && command == unix.DM_DEV_CREATE:
		err = ErrExists
	default:
		err = errno
	}
	return fmt.Errorf("%s device %s: %w", what, c.name, err)
}

// text is what is before the first zero.
func text(b []byte) string {
	before, _, _ := bytes.Cut(b, []byte{0})
	return string(before)
}
