// Package confdir reads the networks that a directory of CNI configuration names, and notices when it changes.
package confdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// Dir is a configuration directory. Its fields are not to be changed once it is in use; Networks may be called at the
// same time.
type Dir struct {
	Path string
	// Max is how many networks count, in the order of the names of their files; 0 is all.
	Max int
	// Fallback is the network if the directory has no configuration. It may be nil; then Empty tells what more there is to
	// say of that.
	Fallback *libcni.NetworkConfigList
	Empty    string
	// Check refuses networks that cannot be a pod's together. It may be nil.
	Check func([]*libcni.NetworkConfigList) error

	mu    sync.Mutex
	seen  string // what the directory looked like when lists and err were made
	lists []*libcni.NetworkConfigList
	err   error
	begun bool
}

// Networks are those that the directory names now, at least one. They are the very same as before if nothing changed.
func (d *Dir) Networks() ([]*libcni.NetworkConfigList, error) {
	seen, err := d.look()
	if err != nil {
		return nil, fmt.Errorf("read CNI configuration: %w", err)
	}
	d.mu.Lock()
	lists, err, known := d.lists, d.err, d.begun && d.seen == seen
	d.mu.Unlock()
	if known {
		return lists, err
	}
	lists, err = d.load()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen, d.lists, d.err, d.begun = seen, lists, err, true
	return lists, err
}

// look describes the directory by what changes with any change of a file in or below it. The change time is part of it
// as an editor may restore the modification time.
func (d *Dir) look() (string, error) {
	var b strings.Builder
	err := filepath.WalkDir(d.Path, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Stat(path, &st) // follows links: a mounted ConfigMap consists of them
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %d %d %d.%d %d.%d\n", path, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
		return nil
	})
	return b.String(), err
}

// Files lists the configuration files of a directory in the order in which they count. It is no error if there is none.
func Files(dir string) ([]string, error) {
	files, err := libcni.ConfFiles(dir, []string{".conflist", ".conf", ".json"})
	if err != nil {
		return nil, fmt.Errorf("read CNI configuration: %w", err)
	}
	slices.Sort(files)
	return files, nil
}

func (d *Dir) load() ([]*libcni.NetworkConfigList, error) {
	files, err := Files(d.Path)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 && d.Fallback != nil {
		return []*libcni.NetworkConfigList{d.Fallback}, nil
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no CNI configuration in %s%s", d.Path, d.Empty)
	}
	if d.Max > 0 {
		files = files[:min(d.Max, len(files))]
	}
	var lists []*libcni.NetworkConfigList
	of := map[string]string{}
	for _, file := range files {
		list, err := loadFile(file)
		if err != nil {
			return nil, fmt.Errorf("CNI configuration %s: %w", file, err)
		}
		// Plugins know what they keep by the name of its network (CNI SPEC.md, name).
		if other := of[list.Name]; other != "" {
			return nil, fmt.Errorf("CNI configuration %s: %s is a network %q as well", file, other, list.Name)
		}
		of[list.Name] = file
		lists = append(lists, list)
	}
	if d.Check != nil {
		if err := d.Check(lists); err != nil {
			return nil, fmt.Errorf("CNI configuration in %s: %w", d.Path, err)
		}
	}
	return lists, nil
}

func loadFile(path string) (*libcni.NetworkConfigList, error) {
	var list *libcni.NetworkConfigList
	if filepath.Ext(path) == ".conflist" {
		var err error
		if list, err = libcni.NetworkConfFromFile(path); err != nil {
			return nil, err
		}
	} else {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		plugin, err := libcni.NetworkPluginConfFromBytes(b)
		if err != nil {
			return nil, err
		}
		//nolint:staticcheck // deprecated, but the kubelet's users still have such files
		if list, err = libcni.ConfListFromConf(plugin); err != nil {
			return nil, err
		}
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, err
	}
	if newer, err := version.GreaterThan(list.CNIVersion, version.Current()); err != nil || newer {
		return nil, errors.Join(err, fmt.Errorf("cniVersion %q is not supported: the newest is %s", list.CNIVersion, version.Current()))
	}
	return list, nil
}
