package cni

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

// configs is the configuration directory.
type configs struct {
	dir string
	// fallback is the network if the directory has no configuration; nil for none.
	fallback *libcni.NetworkConfigList

	mu    sync.Mutex
	seen  string // what the directory looked like when list and err were made
	list  *libcni.NetworkConfigList
	err   error
	begun bool
}

// current is the network that the directory names now. The list is equal to, not a copy of, the former one if nothing
// changed.
func (c *configs) current() (*libcni.NetworkConfigList, error) {
	seen, err := c.look()
	if err != nil {
		return nil, fmt.Errorf("%w: read CNI configuration: %w", ErrNotReady, err)
	}
	c.mu.Lock()
	list, err, known := c.list, c.err, c.begun && c.seen == seen
	c.mu.Unlock()
	if known {
		return list, err
	}
	list, err = c.load()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen, c.list, c.err, c.begun = seen, list, err, true
	return list, err
}

// look describes the directory by what changes with any change of a file in or below it. The change time is part of it
// as an editor may restore the modification time.
func (c *configs) look() (string, error) {
	var b strings.Builder
	err := filepath.WalkDir(c.dir, func(path string, _ fs.DirEntry, err error) error {
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

func (c *configs) load() (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(c.dir, []string{".conflist", ".conf", ".json"})
	if err != nil {
		return nil, fmt.Errorf("%w: read CNI configuration: %w", ErrNotReady, err)
	}
	if len(files) == 0 {
		if c.fallback == nil {
			return nil, fmt.Errorf("%w: no CNI configuration in %s, and the built-in network is off", ErrNotReady, c.dir)
		}
		return c.fallback, nil
	}
	slices.Sort(files)
	list, err := loadFile(files[0])
	if err != nil {
		return nil, fmt.Errorf("%w: CNI configuration %s: %w", ErrNotReady, files[0], err)
	}
	return list, nil
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
