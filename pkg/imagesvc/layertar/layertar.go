// Package layertar gives back the tar of a layer that has been unpacked, bit by bit, so that its blob need not be kept.
//
// A tar is more than its files: the order of its entries, forms of names, padding. Capture puts that aside while a tar
// passes by on its way to be unpacked: some per cent of its size, compressed. From it and the unpacked directory
// Rebuild writes the same tar again, and Verify tells what in the directory is no longer what the tar said. The form
// is that of github.com/vbatts/tar-split, as Docker and Podman keep it, JSON, but compressed with zstd and with another checksum.
//
// The directory is in the form of overlayfs, as package unpack leaves it: a whiteout is a character device 0/0, an opaque
// directory has the attribute trusted.overlay.opaque. None of them has content, so their entries come back from the
// captured data alone.
//
// Changes goes the other way: it makes a new layer's tar of the writable layer of a container.
package layertar

import (
	"errors"
	"hash"
	"hash/crc32"
	"path"
	"strings"
)

var (
	// ErrNotExact: the unpacked directory will not have all that the tar has, so that the blob is what to keep.
	ErrNotExact = errors.New("tar cannot be rebuilt from its files")
	// ErrDamaged: a file of the directory is not what the tar had.
	ErrDamaged = errors.New("layer is damaged")
	// ErrMetadata: what Capture wrote cannot be read.
	ErrMetadata = errors.New("tar metadata is damaged")
	// ErrChanged: a file changed while it was read.
	ErrChanged = errors.New("changed while it was read")
	// ErrUnsupported: a writable layer has what a layer's tar cannot express.
	ErrUnsupported = errors.New("not possible in a layer")
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // bookkeeping of aufs, which is not unpacked, apart from whiteoutOpaque
	whiteoutOpaque = ".wh..wh..opq"

	xattrRecord = "SCHILY.xattr." // of PAX headers
	capability  = "security.capability"
)

// maxDepth is how many components a name has at most: package unpack writes none deeper.
const maxDepth = 256

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// newSum is the checksum of a file's content: CRC-32C, which processors have an instruction for. tar-split's own CRC-64 takes as
// long as SHA-256 does where that has one too. It is for damage; forgery is found by the digest of the whole.
func newSum() hash.Hash { return crc32.New(castagnoli) }

// blockSize is what files are read by.
const blockSize = 128 << 10

// clean returns the place below the root that a name of a tar means, "" for the root itself.
func clean(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

// isMeta says whether a clean name is bookkeeping of aufs.
func isMeta(name string) bool {
	if !strings.Contains(name, whiteoutMeta) {
		return false
	}
	parts := strings.Split(name, "/")
	for i, part := range parts {
		if strings.HasPrefix(part, whiteoutMeta) && (i < len(parts)-1 || part != whiteoutOpaque) {
			return true
		}
	}
	return false
}

// isWhiteout says whether a clean name is a whiteout or the mark of an opaque directory.
func isWhiteout(name string) bool {
	return strings.HasPrefix(path.Base(name), whiteoutPrefix)
}

func parent(name string) string {
	if dir := path.Dir(name); dir != "." {
		return dir
	}
	return ""
}
