package user

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/spec"
)

const (
	passwdFile = "/etc/passwd"
	groupFile  = "/etc/group"
	// maxFileSize bounds the time that an image can have us spend. 4 MiB is some 60,000 users.
	maxFileSize = 4 << 20
)

// image is the root directory of an image.
type image struct{ root string }

// findUser returns the first match in /etc/passwd, or nil.
func (f image) findUser(match func(user.User) bool) (*user.User, error) {
	var found *user.User
	err := f.read(passwdFile, func(r io.Reader) error {
		_, err := user.ParsePasswdFilter(r, func(u user.User) bool {
			if found == nil && match(u) {
				found = &u
			}
			return false
		})
		return err
	})
	return found, err
}

// findGroups returns the IDs of the matches in /etc/group.
func (f image) findGroups(match func(user.Group) bool) ([]uint32, error) {
	var groups []user.Group
	err := f.read(groupFile, func(r io.Reader) (err error) {
		groups, err = user.ParseGroupFilter(r, match)
		return err
	})
	if err != nil {
		return nil, err
	}
	ids := make([]uint32, len(groups))
	for i, g := range groups {
		if ids[i], err = checkID(groupFile+" of the image: "+g.Name, int64(g.Gid)); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// read hands the file to parse; none is an empty one. Symbolic links, absolute ones too, resolve inside the image. The
// file is opened only when it is known to be a regular one: a FIFO blocks who opens it, a device may do anything.
func (f image) read(path string, parse func(io.Reader) error) error {
	field := path + " of the image"
	root, err := os.OpenFile(f.root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open root file system: %w", err)
	}
	defer root.Close()
	handle, err := pathrs.OpenatInRoot(root, path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if errors.Is(err, unix.ELOOP) {
		return spec.Invalidf(field, "too many symbolic links")
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", field, err)
	}
	defer handle.Close()
	info, err := handle.Stat()
	if err != nil {
		return fmt.Errorf("inspect %s: %w", field, err)
	}
	if !info.Mode().IsRegular() {
		return spec.Invalidf(field, "is not a regular file")
	}
	if info.Size() > maxFileSize {
		return spec.Invalidf(field, "has %d bytes, more than %d", info.Size(), maxFileSize)
	}
	file, err := pathrs.Reopen(handle, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open %s: %w", field, err)
	}
	defer file.Close()
	err = parse(io.LimitReader(file, maxFileSize))
	if errors.Is(err, bufio.ErrTooLong) {
		return spec.Invalidf(field, "a line is too long")
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", field, err)
	}
	return nil
}
