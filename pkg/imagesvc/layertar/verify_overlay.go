package layertar

import (
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/vbatts/tar-split/archive/tar"
	"golang.org/x/sys/unix"
)

const opaqueXattr = "trusted.overlay.opaque"

// noteWhiteout puts a whiteout aside until all names are known: the same layer may have the name that it hides.
func (v *verifier) noteWhiteout(name string) {
	if path.Base(name) == whiteoutOpaque {
		v.opaque[parent(name)] = true
	} else {
		v.whiteouts = append(v.whiteouts, path.Join(parent(name), strings.TrimPrefix(path.Base(name), whiteoutPrefix)))
	}
	_ = v.names.addParents(name) // which Capture has checked
}

// whiteout checks that a name is hidden. A file of the layer does that by itself, a directory if it is opaque.
func (v *verifier) whiteout(name string) error {
	switch was, _ := v.names.get(name); was {
	case other:
		return nil
	case directory, implied:
		v.opaque[name] = true
		return nil
	}
	v.names.set(name, other)
	n, err := v.tree.lookup(name)
	if isMissing(err) {
		return v.report(name, "is missing, a whiteout")
	}
	if err != nil {
		return err
	}
	defer n.Close()
	if !n.isWhiteout() {
		return v.report(name, "is no whiteout")
	}
	return nil
}

// extras looks for what the tar does not have, and for what directories hide.
func (v *verifier) extras() error {
	missing := maps.Clone(v.opaque)
	visit := func(name string, n node) (bool, error) {
		kind, known := v.names.get(name)
		if !known && name != "" {
			return false, v.report(name, "is not in the layer")
		}
		if !n.isDir() {
			if kind == implied {
				return false, v.report(name, "is no directory")
			}
			return false, nil
		}
		delete(missing, name)
		value, _, err := n.xattr(opaqueXattr)
		if err != nil {
			return false, err
		}
		switch opaque := value == "y"; {
		case opaque && !v.opaque[name]:
			return true, v.report(name, "is opaque")
		case !opaque && v.opaque[name]:
			return true, v.report(name, "is not opaque")
		}
		return true, nil
	}
	if _, err := visit("", v.tree.root); err != nil {
		return err
	}
	if err := v.tree.root.walk(v.ctx, "", visit); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		if was, _ := v.names.get(name); was == directory {
			continue // which its entry has told
		}
		if err := v.report(name, "is missing, an opaque directory"); err != nil {
			return err
		}
	}
	return nil
}

// xattrs compares those attributes that unpacking sets, and looks for a capability that somebody else has given.
func (v *verifier) xattrs(name string, n node, hdr *tar.Header) error {
	want := map[string]string{}
	for key, value := range hdr.PAXRecords {
		attr, ok := strings.CutPrefix(key, xattrRecord)
		if !ok || !strings.HasPrefix(attr, "user.") && !strings.HasPrefix(attr, "security.") {
			continue // not unpacked, or, as ACLs, with a form of the kernel's own
		}
		if strings.HasPrefix(attr, "user.") && hdr.Typeflag != tar.TypeReg && hdr.Typeflag != tar.TypeDir {
			continue // xattr(7): no others have any
		}
		want[attr] = value
	}
	if _, ok := want[capability]; !ok && hdr.Typeflag == tar.TypeReg {
		if _, ok, err := n.xattr(capability); err != nil {
			return err
		} else if ok {
			return v.report(name, "has a file capability")
		}
	}
	for _, attr := range slices.Sorted(maps.Keys(want)) {
		got, ok, err := n.xattr(attr)
		if err != nil {
			return err
		}
		if !ok && !n.hasXattrs(attr) {
			continue // and so unpacking left it out
		}
		if !ok || got != want[attr] {
			if err := v.report(name, "has another attribute %s", attr); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxTimes are the last seconds that file systems keep, to which the kernel sets what is later: those of 32 bits (ext4 with
// inodes of 128 bytes, XFS without bigtime) and of ext4.
var maxTimes = []int64{math.MaxInt32, 0x3_7fff_ffff}

// sameTime compares as unpacking sets times: those that do not fit in 64 bits of nanoseconds are 1970. A file system that
// keeps whole seconds, or has an end of time, is no reason to complain, nor is a tar that has whole seconds.
func sameTime(got unix.Timespec, want time.Time) bool {
	if want.Before(time.Unix(0, 0)) || want.After(time.Unix(0, math.MaxInt64)) {
		want = time.Unix(0, 0)
	}
	if want.Unix() > got.Sec && slices.Contains(maxTimes, got.Sec) {
		return true
	}
	return got.Sec == want.Unix() && (got.Nsec == int64(want.Nanosecond()) || got.Nsec == 0 || want.Nanosecond() == 0)
}
