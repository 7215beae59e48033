// Package idmap holds what the users and groups of a user namespace are on the host (user_namespaces(7)).
package idmap

import (
	"errors"
	"fmt"
	"math"
	"os"
)

// Range maps Size IDs from Container on, in the namespace, to those from Host on.
type Range struct {
	Container, Host, Size uint32
}

// Mappings are the users and groups of a user namespace.
type Mappings struct {
	UIDs, GIDs []Range
}

// maxRanges is how many lines the kernel takes (UID_GID_MAP_MAX_EXTENTS).
const maxRanges = 340

// Check refuses what the kernel would, what a container could not be set up in, which takes root and the group of terminals, and the
// host's root.
func (m Mappings) Check() error {
	if err := check(m.UIDs); err != nil {
		return fmt.Errorf("uids: %w", err)
	}
	if err := check(m.GIDs); err != nil {
		return fmt.Errorf("gids: %w", err)
	}
	if !m.HasGID(terminals) {
		return fmt.Errorf("gids: the ID %d, of terminals, is not mapped", terminals)
	}
	return nil
}

// terminals is the group of the devices below /dev/pts (config-linux.md, "Default Filesystems").
const terminals = 5

func check(ranges []Range) error {
	if len(ranges) > maxRanges {
		return fmt.Errorf("%d ranges, the kernel takes %d", len(ranges), maxRanges)
	}
	for i, a := range ranges {
		if a.Size == 0 {
			return fmt.Errorf("the range from %d to host ID %d has no length", a.Container, a.Host)
		}
		// The last ID stands for none (chown(2)).
		if math.MaxUint32-a.Container < a.Size || math.MaxUint32-a.Host < a.Size {
			return fmt.Errorf("the range of %d from %d to host ID %d is too long", a.Size, a.Container, a.Host)
		}
		if a.Host == 0 {
			return fmt.Errorf("the range from %d has the host's ID 0, whose rights a user namespace is to keep away", a.Container)
		}
		for _, b := range ranges[:i] {
			if overlap(a.Container, b.Container, a.Size, b.Size) || overlap(a.Host, b.Host, a.Size, b.Size) {
				return fmt.Errorf("the ranges from %d to host ID %d and from %d to %d overlap", b.Container, b.Host, a.Container, a.Host)
			}
		}
	}
	if _, ok := host(ranges, 0); !ok {
		return errors.New("the ID 0 is not mapped")
	}
	return nil
}

func overlap(a, b, sizeA, sizeB uint32) bool { return a < b+sizeB && b < a+sizeA }

// host is what an ID in the namespace is on the host.
func host(ranges []Range, id uint32) (uint32, bool) {
	for _, r := range ranges {
		if id >= r.Container && id-r.Container < r.Size {
			return r.Host + id - r.Container, true
		}
	}
	return 0, false
}

// Root is who root in the namespace is on the host. The mappings have been checked.
func (m Mappings) Root() (uid, gid int) {
	u, _ := host(m.UIDs, 0)
	g, _ := host(m.GIDs, 0)
	return int(u), int(g)
}

// Mkdir makes a directory that the host's root passes alone, or with mappings, root of the namespace too.
func Mkdir(path string, m *Mappings) error {
	if m == nil {
		return os.Mkdir(path, 0o700)
	}
	if err := os.Mkdir(path, 0o710); err != nil {
		return err
	}
	_, gid := m.Root()
	return os.Chown(path, 0, gid)
}

// HasUID and HasGID tell whether the namespace has that ID.
func (m Mappings) HasUID(id uint32) bool { _, ok := host(m.UIDs, id); return ok }
func (m Mappings) HasGID(id uint32) bool { _, ok := host(m.GIDs, id); return ok }
