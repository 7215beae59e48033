package unpack

import (
	"archive/tar"
	"fmt"
	"strings"
)

// links are the symbolic links that a layer has made, by path, with their targets. They serve to find out whether an
// entry behind a link means a place above the root, which a kernel that resolves in the root would turn into a place
// in it. They are not what keeps the writer below the root.
type links map[string]string

// maxLinks is the kernel's MAXSYMLINKS.
const maxLinks = 40

// set notes what an entry made of the path. It says whether a link came or went.
func (l links) set(path string, hdr *tar.Header) bool {
	_, was := l[path]
	if hdr.Typeflag == tar.TypeSymlink {
		l[path] = hdr.Linkname
		return true
	}
	if target, ok := l[strings.Trim(hdr.Linkname, "/")]; ok && hdr.Typeflag == tar.TypeLink {
		l[path] = target // a hard link to a symbolic link is one
		return true
	}
	delete(l, path)
	return was
}

// resolve follows the links in a directory's path, relative to the root, all components included.
func (l links) resolve(dir string) (string, error) {
	if len(l) == 0 {
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
		target, ok := l[strings.Join(done, "/")]
		if !ok {
			continue
		}
		if hops++; hops > maxLinks {
			return "", fmt.Errorf("%w: name behind more than %d symbolic links", ErrInvalid, maxLinks)
		}
		done = done[:len(done)-1]
		if strings.HasPrefix(target, "/") {
			done = done[:0]
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return strings.Join(done, "/"), nil
}
