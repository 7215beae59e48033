package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // bookkeeping of aufs, apart from whiteoutOpaque
	whiteoutOpaque = ".wh..wh..opq"
)

// layer follows what one tar has written so far. Paths are relative to dir, clean and free of symbolic links.
type layer struct {
	dir    string
	entry  string // name of the entry at hand, as in the tar, for errors
	xattrs int    // bytes of its attributes
	linked int64  // what the target of a hard link is
	budget budget

	// What has been made of names that matter to later ones. Hashes do for the names, of which a tar may have any amount:
	// 64 bits of a seed that nobody knows.
	seed     maphash.Seed
	names    map[uint64]int64
	hasLinks bool

	lastParent, lastResolved string // most entries have the parent of the one before
}

// What a name of layer.names is; what is not negative is the time, in nanoseconds, of a directory that has an entry.
const (
	isOther    = -iota - 1
	isImplied  // a directory with entries below it and none of its own
	isWhiteout // one that was made
	isLink     // a symbolic link
)

func newLayer(dir string, limits Limits) *layer {
	return &layer{
		dir:    dir,
		budget: budget{limits: limits, sparse: maxSparse},
		seed:   maphash.MakeSeed(),
		names:  map[uint64]int64{},
	}
}

func (l *layer) get(path string) int64 {
	if what, ok := l.names[maphash.String(l.seed, path)]; ok {
		return what
	}
	return isOther
}

// set notes what a path is, and tells what it was.
func (l *layer) set(path string, what int64) (was int64) {
	key := maphash.String(l.seed, path)
	was, ok := l.names[key]
	if !ok {
		was = isOther
	}
	if what == isOther {
		delete(l.names, key)
	} else {
		l.names[key] = what
	}
	return was
}

func isDir(what int64) bool { return what >= 0 || what == isImplied }

// admit says whether to write an entry, whose name is clean, and an error for an entry that makes the layer invalid.
func (l *layer) admit(hdr *tar.Header) (bool, error) {
	l.entry = hdr.Name
	if err := l.budget.addFile(); err != nil {
		return false, err
	}
	if len(hdr.Name) >= maxName || len(hdr.Linkname) >= maxName {
		return false, fmt.Errorf("%w: name of more than %d bytes", ErrInvalid, maxName-1)
	}
	name := strings.TrimPrefix(hdr.Name, "/")
	if name == "" || name == "." {
		return false, nil
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return false, nil
	}
	if skip, err := checkWhiteoutName(name); skip || err != nil {
		return false, err
	}
	path, err := l.resolve(name)
	if err != nil {
		return false, err
	}
	if hdr.Typeflag == tar.TypeLink {
		if err := l.admitHardLink(hdr); err != nil {
			return false, fmt.Errorf("hard link to %.256q: %w", hdr.Linkname, err)
		}
	}
	if err := l.admitContent(hdr); err != nil {
		return false, err
	}
	if err := admitAttributes(hdr); err != nil {
		return false, err
	}
	l.xattrs = 0
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		switch {
		case ok && strings.HasPrefix(name, "trusted."):
			delete(hdr.PAXRecords, key) // overlayfs's own marks are not the image's to set
		case ok:
			l.xattrs += len(name) + len(value)
		}
	}
	return true, l.record(hdr, path)
}

// resolve returns where a name of the tar leads without following its last component.
func (l *layer) resolve(name string) (string, error) {
	if !filepath.IsLocal(name) {
		return "", fmt.Errorf("%w: name leaves the root of the image", ErrInvalid)
	}
	if strings.Count(name, "/") >= maxDepth {
		return "", fmt.Errorf("%w: name of more than %d components", ErrInvalid, maxDepth)
	}
	parent, base := filepath.Split(name)
	if parent == "" {
		return base, nil
	}
	if parent != l.lastParent {
		resolved, err := l.follow(parent)
		if err != nil {
			return "", err
		}
		l.lastParent, l.lastResolved = parent, resolved
	}
	return filepath.Join(l.lastResolved, base), nil
}

// record notes what the entry at path is about to become.
func (l *layer) record(hdr *tar.Header, path string) error {
	for parent := filepath.Dir(path); parent != "." && !isDir(l.get(parent)); parent = filepath.Dir(parent) {
		if err := l.revive(parent); err != nil {
			return err
		}
		if err := l.budget.addFile(); err != nil {
			return err
		}
		l.set(parent, isImplied)
	}
	if strings.HasPrefix(filepath.Base(path), whiteoutPrefix) {
		return nil
	}
	what := int64(isOther)
	switch hdr.Typeflag {
	case tar.TypeDir:
		if err := l.revive(path); err != nil {
			return err
		}
		what = bound(hdr.ModTime)
	case tar.TypeSymlink:
		what = isLink
	case tar.TypeLink:
		what = l.linked // a hard link to a symbolic link is one
	}
	l.made(path, what)
	return nil
}

// made notes what an entry makes of a path.
func (l *layer) made(path string, what int64) {
	if was := l.set(path, what); was == isLink || what == isLink {
		l.lastParent = ""
	}
	l.hasLinks = l.hasLinks || what == isLink
}

// bound is the time that the writer gives to a file.
func bound(t time.Time) int64 {
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) {
		return 0
	}
	return t.UnixNano()
}

// revive makes an opaque directory of a whiteout. A whiteout is about lower layers only, so a layer may have both the
// whiteout of a name and a directory of that name, in any order: the directory, without what lies below it.
func (l *layer) revive(path string) error {
	if l.get(path) != isWhiteout {
		return nil
	}
	l.set(path, isOther)
	full := filepath.Join(l.dir, path)
	if err := os.Remove(full); err != nil {
		return fmt.Errorf("replace whiteout: %w", err)
	}
	if err := os.Mkdir(full, 0o755); err != nil {
		return fmt.Errorf("replace whiteout: %w", err)
	}
	if err := os.Chmod(full, 0o755); err != nil { // whatever the umask
		return fmt.Errorf("replace whiteout: %w", err)
	}
	return setOpaque(full)
}

// convertWhiteout makes the whiteout that the file at the full path, resolved by the caller, stands for. It says
// whether the path is an ordinary file, to be written.
func (l *layer) convertWhiteout(hdr *tar.Header, full string) (bool, error) {
	dir, base := filepath.Split(full)
	if base == whiteoutOpaque || !strings.HasPrefix(base, whiteoutPrefix) {
		return archive.OverlayConvertWhiteout(hdr, full)
	}
	victim := filepath.Join(dir, strings.TrimPrefix(base, whiteoutPrefix))
	info, err := os.Lstat(victim)
	switch {
	case err == nil && info.IsDir(): // of this layer: stays, without what lies below it
		return false, setOpaque(victim)
	case err == nil: // a file of this layer hides lower ones anyway
		return false, nil
	case !errors.Is(err, os.ErrNotExist):
		return false, fmt.Errorf("look up whiteout: %w", err)
	}
	rel, err := filepath.Rel(l.dir, victim)
	if err != nil {
		return false, fmt.Errorf("locate whiteout: %w", err)
	}
	l.set(rel, isWhiteout)
	return archive.OverlayConvertWhiteout(hdr, full)
}

// admitHardLink checks the target, and gives the header the target's attributes: the writer applies the header to the
// file that both names share, but what tars say there is often nothing. A file capability is among them because
// chown(2) takes it away.
func (l *layer) admitHardLink(hdr *tar.Header) error {
	path, err := l.resolve(filepath.Clean(strings.TrimLeft(hdr.Linkname, "/")))
	if err != nil {
		return err
	}
	target := filepath.Join(l.dir, path)
	var st unix.Stat_t
	switch err := unix.Lstat(target, &st); {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: the layer has no such file before it", ErrInvalid)
	case err != nil:
		return fmt.Errorf("read target: %w", err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return fmt.Errorf("%w: it is a directory", ErrInvalid)
	}
	l.linked = isOther
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		l.linked = isLink
	}
	hdr.Mode, hdr.Uid, hdr.Gid = int64(st.Mode&0o7777), int(st.Uid), int(st.Gid)
	hdr.ModTime, hdr.AccessTime = time.Unix(st.Mtim.Unix()), time.Unix(st.Atim.Unix())
	hdr.PAXRecords = nil
	capability := make([]byte, 64) // struct vfs_ns_cap_data has 24 bytes
	if n, err := unix.Lgetxattr(target, "security.capability", capability); err == nil {
		hdr.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": string(capability[:n])}
	}
	return nil
}

// admitContent refuses what the writer does not know, and lets a sparse file be written out in full.
func (l *layer) admitContent(hdr *tar.Header) error {
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeLink, tar.TypeDir, tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
	case tar.TypeSymlink:
		if hdr.Linkname == "" {
			return fmt.Errorf("%w: symbolic link without a target", ErrInvalid)
		}
	default:
		return fmt.Errorf("%w: unknown type %q of entry", ErrInvalid, hdr.Typeflag)
	}
	if err := l.budget.addContent(hdr); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeGNUSparse {
		hdr.Typeflag = tar.TypeReg // the reader fills the holes; the writer knows regular files only
	}
	return nil
}

// checkWhiteoutName says whether to skip a name, because it is bookkeeping of aufs that old images contain.
func checkWhiteoutName(name string) (skip bool, err error) {
	if !strings.Contains(name, whiteoutPrefix) {
		return false, nil
	}
	parts := strings.Split(name, "/")
	last := len(parts) - 1
	for i, part := range parts {
		switch {
		case i == last && part == whiteoutOpaque:
		case strings.HasPrefix(part, whiteoutMeta):
			return true, nil
		case i < last && strings.HasPrefix(part, whiteoutPrefix):
			return false, fmt.Errorf("%w: whiteout used as a directory", ErrInvalid)
		case i == last && slices.Contains([]string{".wh.", ".wh..", ".wh..."}, part):
			return false, fmt.Errorf("%w: whiteout of no name", ErrInvalid)
		}
	}
	return false, nil
}

func setOpaque(dir string) error {
	if err := unix.Setxattr(dir, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("mark opaque: %w", err)
	}
	return nil
}
