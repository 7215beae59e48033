package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot/treecopy"
)

// Implied directories (see snapshot.Inheritor) get the attributes of the layers below not in the layer, which is shared
// with images that have other layers below, but in the snapshot: its upper directory holds a directory of that name
// with the right attributes, and overlayfs takes those of the uppermost.

// inheritedDir is a directory to be made in an upper directory, looking like an example from a layer.
type inheritedDir struct {
	name    string // relative to the root of the image
	example string
}

// inherit finds the directories that show default attributes but should show those of a lower layer, each after its
// parents. layers are uppermost first.
func (s *Snapshotter) inherit(ctx context.Context, layers []layerRecord) ([]inheritedDir, error) {
	if len(layers) < 2 || !slices.ContainsFunc(layers, func(l layerRecord) bool { return len(l.Implied) > 0 }) {
		return nil, nil
	}
	return inheritance(ctx, s.trees(layers))
}

func (s *Snapshotter) trees(layers []layerRecord) []tree {
	trees := make([]tree, len(layers))
	for i, l := range layers {
		trees[i] = newTree(filepath.Join(s.layerPath(l.DiffID), layerTree), l.Implied)
	}
	return trees
}

// inheritance is what inherit finds in trees, the uppermost first.
func inheritance(ctx context.Context, trees []tree) ([]inheritedDir, error) {
	examples := map[string]string{}
	for _, t := range trees {
		for name := range t.implied {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if err := addExamples(examples, trees, name); err != nil {
				return nil, err
			}
		}
	}
	dirs := make([]inheritedDir, 0, len(examples))
	for name, example := range examples {
		dirs = append(dirs, inheritedDir{name, example})
	}
	slices.SortFunc(dirs, func(a, b inheritedDir) int { return strings.Compare(a.name, b.name) })
	return dirs, nil
}

// addExamples finds what name and its parents should look like, if name's attributes are not those that show anyway:
// a directory made in the upper directory needs its parents there, and they need their attributes as well.
func addExamples(examples map[string]string, trees []tree, name string) error {
	if _, known := examples[name]; known {
		return nil
	}
	shown, wanted, err := example(trees, name)
	if err != nil || wanted == "" || wanted == shown {
		return err
	}
	examples[name] = wanted
	for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
		shown, wanted, err := example(trees, dir)
		if err != nil {
			return err
		}
		if wanted == "" { // implied all the way down
			wanted = shown
		}
		examples[dir] = wanted
	}
	return nil
}

// example returns the directory whose attributes show at name, and the uppermost whose layer has an entry for it.
// Both are empty if nothing is there, or nothing that is a directory.
func example(trees []tree, name string) (shown, wanted string, err error) {
	for _, t := range trees {
		found, ends, err := t.find(name)
		if err != nil {
			return "", "", err
		}
		if found != "" && shown == "" {
			shown = found
		}
		if found != "" && !t.implied[name] {
			return shown, found, nil
		}
		if ends {
			break
		}
	}
	return shown, "", nil
}

// tree is the content of a layer.
type tree struct {
	root    string
	implied map[string]bool
}

func newTree(root string, implied []string) tree {
	t := tree{root: root, implied: make(map[string]bool, len(implied))}
	for _, name := range implied {
		t.implied[name] = true
	}
	return t
}

// find looks for the directory name, and tells whether the layer hides that name of the layers below: by an opaque
// directory, or by something else in the directory's or a parent's place. No symbolic link is followed.
func (t tree) find(name string) (path string, ends bool, err error) {
	path = t.root
	for part := range strings.SplitSeq(name, "/") {
		path = filepath.Join(path, part)
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return "", ends, nil
		case err != nil:
			return "", false, fmt.Errorf("look up implied directory: %w", err)
		case !info.IsDir():
			return "", true, nil
		}
		opaque, err := treecopy.IsOpaque(path)
		if err != nil {
			return "", false, err
		}
		ends = ends || opaque
	}
	return path, ends, nil
}

// copyTo makes the directory below upper, unless it is there, look like the example. The parents exist.
func (d inheritedDir) copyTo(upper string) error {
	var st unix.Stat_t
	if err := unix.Lstat(d.example, &st); err != nil {
		return fmt.Errorf("read implied directory %s: %w", d.example, err)
	}
	path := filepath.Join(upper, d.name)
	if err := unix.Mkdir(path, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make directory %s: %w", path, err)
	}
	return treecopy.Attributes(d.example, path, &st)
}
