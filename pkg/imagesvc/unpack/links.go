package unpack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is the kernel's MAXSYMLINKS.
const maxLinks = 40

// follow follows the symbolic links of the layer in a directory's path, relative to the root, all components included. It
// serves to find out whether an entry behind a link means a place above the root, which a kernel that resolves in the root
// would turn into a place in it. It is not what keeps the writer below the root.
func (l *layer) follow(dir string) (string, error) {
	if !l.hasLinks {
		return strings.Trim(dir, "/"), nil
	}
	todo := strings.Split(dir, "/")
	var done []string
	for hops := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(done) == 0 {
				return "", fmt.Errorf("%w: name leaves the root of the image behind a symbolic link", ErrInvalid)
			}
			done = done[:len(done)-1]
			continue
		}
		if done = append(done, part); len(done) > maxDepth {
			return "", fmt.Errorf("%w: name of more than %d components behind a symbolic link", ErrInvalid, maxDepth)
		}
		target, ok, err := l.target(strings.Join(done, "/"))
		if err != nil {
			return "", err
		}
		if !ok {
			continue
		}
		if hops++; hops > maxLinks {
			return "", fmt.Errorf("%w: name behind more than %d symbolic links", ErrInvalid, maxLinks)
		}
		// No file system that is packed has names behind a link to its root: they are an attempt at the host's.
		if strings.HasPrefix(target, "/") && path.Clean(target) == "/" {
			return "", fmt.Errorf("%w: name behind a symbolic link to the root of the image", ErrInvalid)
		}
		done = done[:len(done)-1]
		if strings.HasPrefix(target, "/") {
			done = done[:0]
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return strings.Join(done, "/"), nil
}

// target tells where a symbolic link that the layer has made leads to.
func (l *layer) target(name string) (target string, ok bool, err error) {
	if l.get(name) != isLink {
		return "", false, nil
	}
	target, err = os.Readlink(filepath.Join(l.dir, name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) {
		return "", false, nil // another name of the same hash, or one that was not written
	}
	return target, err == nil, err
}
