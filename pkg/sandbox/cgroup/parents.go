package cgroup

import (
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Parents remembers which cgroups above those of pods were made with them, so that the last pod below takes them away again. It
// forgets them with the process: what a former one has made may be somebody else's, and stays. The zero value knows of none.
type Parents struct {
	// mu is held while cgroups are made and removed, which would be in each other's way: the kernel does one at a time, too.
	mu   sync.Mutex
	made map[string]mark
}

// mark tells a cgroup from one that somebody has made later at the same path: the kernel does not use an inode again.
type mark struct {
	dir   string // in one of the hierarchies
	inode uint64
}

// Create is the function of that name, and remembers the parents that were in no hierarchy before.
func (p *Parents) Create(path string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var missing []string
	for parent := filepath.Dir(path); check(parent) == nil && !Exists(parent); parent = filepath.Dir(parent) {
		missing = append(missing, parent)
	}
	err := Create(path)
	for _, parent := range missing {
		for _, root := range roots() {
			if dir := filepath.Join(root, parent); inodeOf(dir) != 0 {
				if p.made == nil {
					p.made = map[string]mark{}
				}
				p.made[parent] = mark{dir: dir, inode: inodeOf(dir)}
				break
			}
		}
	}
	return err
}

// Prune is the function of that name, for the cgroup and then for its parents, up to the first one that p has not made or that others
// are in. In hierarchies that Create leaves out, it is the runtime that has made them.
func (p *Parents) Prune(path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	Prune(path)
	for parent := filepath.Dir(path); ; parent = filepath.Dir(parent) {
		m, made := p.made[parent]
		if !made {
			return
		}
		if inode := inodeOf(m.dir); inode == m.inode || inode == 0 {
			Prune(parent)
			if Exists(parent) {
				return
			}
		}
		delete(p.made, parent)
	}
}

// inodeOf is 0 for what is not there.
func inodeOf(dir string) uint64 {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return 0
	}
	return st.Ino
}
