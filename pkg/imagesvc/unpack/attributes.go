package unpack

import (
	"archive/tar"
	"fmt"
	"math"
	"path/filepath"
	"strings"
)

const (
	// maxID is the highest owner: chown(2) takes the number above it as "leave as it is".
	maxID = math.MaxUint32 - 1
	// What the kernel has of a device number (MINORBITS of linux/kdev_t.h); mknod(2) drops the rest.
	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

// admitAttributes refuses what an inode cannot have, so that no layer is unpacked to something else than it says. Of the mode,
// tars are known to have anything beside the permissions: it is left out, the type is that of the entry. Times that cannot be
// kept become what the writer and the file system make of them, which comparing knows.
func admitAttributes(hdr *tar.Header) error {
	hdr.Mode &= 0o7777
	if strings.HasPrefix(filepath.Base(hdr.Name), whiteoutPrefix) {
		hdr.Uid, hdr.Gid = 0, 0 // of something that nobody sees
		return nil
	}
	if !isID(hdr.Uid) || !isID(hdr.Gid) {
		return fmt.Errorf("%w: no owner %d:%d, at most %d is possible", ErrInvalid, hdr.Uid, hdr.Gid, uint32(maxID))
	}
	if hdr.Typeflag != tar.TypeChar && hdr.Typeflag != tar.TypeBlock {
		return nil
	}
	if hdr.Devmajor < 0 || hdr.Devmajor > maxMajor || hdr.Devminor < 0 || hdr.Devminor > maxMinor {
		return fmt.Errorf("%w: no device %d:%d, at most %d:%d is possible", ErrInvalid, hdr.Devmajor, hdr.Devminor, maxMajor, maxMinor)
	}
	return nil
}

func isID(id int) bool { return id >= 0 && int64(id) <= maxID }
