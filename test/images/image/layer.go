// Package image builds container images from values, byte for byte the same each time, and pushes them
// to a registry. It is for tests: everything is held in memory.
package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"time"

	"github.com/klauspost/compress/zstd"
)

// epoch is the time of every file and image: a clock would change the digests.
var epoch = time.Unix(1700000000, 0).UTC()

// File is one entry of a layer. Paths have no leading slash.
type File struct {
	Path     string
	Type     byte  // tar.TypeReg (also 0), tar.TypeDir, tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeFifo
	Mode     int64 // permission bits with setuid, setgid, sticky
	UID, GID int
	Body     []byte            // of a regular file
	Target   string            // of a link: a path in the image for a hard link, as it is for a symbolic one
	Major    int64             // of a device
	Minor    int64             // of a device
	Xattrs   map[string]string // by name, such as security.capability
}

// Dir is a directory entry.
func Dir(path string, mode int64) File { return File{Path: path, Type: tar.TypeDir, Mode: mode} }

// Hardlink is another name of a file that comes earlier in the same layer.
func Hardlink(path, target string) File {
	return File{Path: path, Type: tar.TypeLink, Mode: 0o755, Target: target}
}

// Symlink is a symbolic link.
func Symlink(path, target string) File {
	return File{Path: path, Type: tar.TypeSymlink, Mode: 0o777, Target: target}
}

// Whiteout hides path, which a lower layer has.
// https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts
func Whiteout(dir, name string) File { return File{Path: dir + "/.wh." + name, Mode: 0o644} }

// Opaque hides all that lower layers have in dir.
func Opaque(dir string) File { return File{Path: dir + "/.wh..wh..opq", Mode: 0o644} }

// Compression of a layer.
type Compression int

// The compressions that the OCI image specification has media types for.
const (
	Gzip Compression = iota
	Zstd
	None
)

// Layer is a set of files with its serialized forms.
type Layer struct {
	Compression Compression
	plain       []byte // tar
	packed      []byte // as pushed
}

// NewLayer serializes files, in this order.
func NewLayer(c Compression, files ...File) (*Layer, error) {
	plain, err := archive(files)
	if err != nil {
		return nil, err
	}
	packed, err := pack(c, plain)
	if err != nil {
		return nil, err
	}
	return &Layer{Compression: c, plain: plain, packed: packed}, nil
}

func archive(files []File) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{
			Name: f.Path, Typeflag: f.Type, Linkname: f.Target, Mode: f.Mode, Uid: f.UID, Gid: f.GID,
			Size: int64(len(f.Body)), ModTime: epoch, Devmajor: f.Major, Devminor: f.Minor,
		}
		switch f.Type {
		case 0:
			h.Typeflag = tar.TypeReg
		case tar.TypeDir:
			h.Name += "/"
		}
		for name, value := range f.Xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+name] = value
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("write header of %s: %w", f.Path, err)
		}
		if _, err := w.Write(f.Body); err != nil {
			return nil, fmt.Errorf("write %s: %w", f.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("end archive: %w", err)
	}
	return buf.Bytes(), nil
}

func pack(c Compression, plain []byte) ([]byte, error) {
	switch c {
	case Gzip:
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		if _, err := w.Write(plain); err != nil {
			return nil, fmt.Errorf("gzip layer: %w", err)
		}
		if err := w.Close(); err != nil {
			return nil, fmt.Errorf("gzip layer: %w", err)
		}
		return buf.Bytes(), nil
	case Zstd:
		// One thread: with more, where blocks end depends on timing.
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("compress layer with zstd: %w", err)
		}
		return w.EncodeAll(plain, nil), nil
	case None:
		return plain, nil
	}
	return nil, fmt.Errorf("pack layer: unknown compression %d", c)
}
