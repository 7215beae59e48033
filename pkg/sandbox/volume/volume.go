// Package volume finds out where an image wants a container to have volumes (image-spec, config.md, "Volumes").
package volume

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
)

// Volume is a directory that a container has of its own, in the place of one of its image.
type Volume struct {
	// Name is the same whenever it is the same path of the same image.
	Name string
	// Destination is where it is in the container, without links.
	Destination string
	// Content is the directory of the image that it begins with; "" if the image has none there.
	Content string
}

// Ignored is a path of which there is no volume.
type Ignored struct {
	Path string
	// Reason is for people; "" if the path is mounted on anyway, which is no fault of the image.
	Reason string
}

// runtimes are what a runtime mounts itself; a volume there would take it away.
var (
	runtimes = []string{"/proc", "/sys", "/dev"}
	files    = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
)

// Of returns the volumes of the paths that an image declares. root is the container's root file system, which nobody changes,
// mounted the destinations of the container's mounts: what is at one of these or below is no volume, since the image's content is
// not to be seen there.
func Of(root string, declared map[string]struct{}, mounted []string) (volumes []Volume, ignored []Ignored, err error) {
	taken := slices.Clone(runtimes)
	for _, m := range mounted {
		at, err := resolve(root, m)
		if err != nil {
			return nil, nil, err
		}
		taken = append(taken, at)
	}
	paths := make([]string, 0, len(declared))
	for p := range declared {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for n, p := range paths {
		v, reason, err := one(root, p, taken)
		if err != nil {
			return nil, nil, err
		}
		if v.Destination == "" || slices.ContainsFunc(volumes, func(other Volume) bool { return other.Destination == v.Destination }) {
			ignored = append(ignored, Ignored{p, reason})
			continue
		}
		v.Name = strconv.Itoa(n)
		volumes = append(volumes, v)
	}
	return volumes, ignored, nil
}

// one is a volume without a name, or tells why it is none.
func one(root, declared string, taken []string) (v Volume, reason string, err error) {
	if !path.IsAbs(declared) {
		return v, "it is not absolute", nil
	}
	at, err := resolve(root, declared)
	if err != nil {
		return v, "", err
	}
	switch {
	case at == "/":
		return v, "it is the root directory", nil
	case slices.Contains(files, at):
		return v, "it is a file of the pod's", nil
	}
	for _, t := range taken {
		if at == t || strings.HasPrefix(at, t+"/") {
			if slices.Contains(runtimes, t) {
				reason = "the runtime mounts " + t
			}
			return v, reason, nil
		}
	}
	v.Destination, v.Content = at, filepath.Join(root, at)
	info, err := os.Lstat(v.Content)
	switch {
	case errors.Is(err, os.ErrNotExist):
		v.Content = ""
	case err != nil:
		return Volume{}, "", fmt.Errorf("find volume %s: %w", declared, err)
	case !info.IsDir():
		return Volume{}, "the image has no directory there", nil
	}
	return v, "", nil
}

// resolve follows the links of a path below root, as the runtime does when it mounts there.
func resolve(root, p string) (string, error) {
	full, err := securejoin.SecureJoin(root, p)
	if err != nil {
		return "", fmt.Errorf("find %s in the image: %w", p, err)
	}
	return filepath.Join("/", strings.TrimPrefix(full, root)), nil
}
