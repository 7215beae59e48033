// Package opfile reads files that an operator names, and may change at any time. They may be on a file system that hangs:
// nothing here takes longer than Patience.
package opfile

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Read returns the content of a regular file that has limit bytes at most: it may have been named by mistake.
func Read(path string, limit int64) ([]byte, error) {
	return Within(path, func() ([]byte, error) { return read(path, limit) })
}

func read(path string, limit int64) ([]byte, error) {
	// Opening a pipe would wait for somebody to write into it, and nothing could end that.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && !info.Mode().IsRegular() && !info.IsDir() { // of a directory, reading tells
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, nil
}

// Stamp tells one state of a file, or of what is in a directory, from others. A rename over it changes the inode; the time of
// the last change of the inode, which no program can set, catches what was written within one tick of the modification
// time, or had that set back. The zero stamp is of a file that is not there.
type Stamp struct {
	device, inode           uint64
	size, modified, changed int64
}

// StampOf tells the state that a file has now.
func StampOf(path string) (Stamp, error) {
	return Within(path, func() (Stamp, error) { return stampOf(path) })
}

func stampOf(path string) (Stamp, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Stamp{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return Stamp{st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, nil
}

// Changed is when the file was changed last, by its own account or by the kernel's.
func (s Stamp) Changed() time.Time { return time.Unix(0, max(s.modified, s.changed)) }
