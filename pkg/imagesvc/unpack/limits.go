package unpack

import (
	"archive/tar"
	"fmt"
)

const (
	// maxSparse is what the holes and data of a layer's sparse files may add up to. They are written out in full, and a
	// sparse header can claim any size at no cost.
	maxSparse = 4 << 30
	// maxDepth is how many components a name may have. The way to a name is walked again for each entry.
	maxDepth = 256
	// maxName is how long a name may be, PATH_MAX: longer ones cannot be opened.
	maxName = 4096
	// maxImplied is what the names of directories without an entry may add up to: they are kept with the layer.
	maxImplied = 32 << 20
)

// Limits are what one layer may take. Zero values set no limit, but for Window.
type Limits struct {
	// Bytes that the uncompressed tar may have, and that its files may add up to: the setting image.max_layer_size.
	Bytes int64
	// Entries that the tar may have, counting directories that it only implies: the setting image.max_layer_files.
	Entries int
	// Window is the largest window, in bytes, that its zstd may need: the setting image.max_zstd_window. It is memory that is
	// taken while the layer is unpacked. Zero is DefaultWindow.
	Window int64
}

func errTooLarge(limit int64) error {
	return fmt.Errorf("%w: uncompressed it has more than %d bytes, which image.max_layer_size allows", ErrInvalid, limit)
}

// budget is what a layer has taken of its limits.
type budget struct {
	limits Limits
	sparse int64 // bytes that sparse files may still have
	bytes  int64
	count  int
}

// addFile counts what an inode of the layer is.
func (b *budget) addFile() error {
	b.count++
	if b.limits.Entries > 0 && b.count > b.limits.Entries {
		return fmt.Errorf("%w: it has more than %d files and directories, which image.max_layer_files allows",
			ErrInvalid, b.limits.Entries)
	}
	return nil
}

// addContent counts what the entry claims to have, before any of it is read. A sparse file is written out in full.
func (b *budget) addContent(hdr *tar.Header) error {
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
	default:
		return nil // no content, whatever the header's size
	}
	if b.limits.Bytes > 0 {
		if hdr.Size > b.limits.Bytes-b.bytes {
			return errTooLarge(b.limits.Bytes)
		}
		b.bytes += hdr.Size
	}
	if !isSparse(hdr) {
		return nil
	}
	if hdr.Size > b.sparse {
		return fmt.Errorf("%w: sparse files of more than %d bytes", ErrInvalid, int64(maxSparse))
	}
	b.sparse -= hdr.Size
	return nil
}

func isSparse(hdr *tar.Header) bool {
	return hdr.Typeflag == tar.TypeGNUSparse ||
		hdr.PAXRecords["GNU.sparse.major"] != "" || hdr.PAXRecords["GNU.sparse.map"] != ""
}
