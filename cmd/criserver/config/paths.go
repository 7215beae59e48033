package config

import (
	"errors"
	"path"
	"slices"
	"strings"

	"criserver/pkg/imagesvc/opfile"
)

func (v *validator) paths(c *Config) {
	v.socket("socket", c.Socket)
	for _, p := range []struct{ key, value string }{
		{"root", c.Root}, {"runtime.cgroup_root", c.Runtime.CgroupRoot}, {"cni.conf_dir", c.CNI.ConfDir},
	} {
		v.absolute(p.key, p.value)
	}
	for _, p := range []struct{ key, value string }{
		{"log.file", c.Log.File}, {"monitor.path", c.Monitor.Path}, {"monitor.log", c.Monitor.Log},
		{"runtime.rdt_config", c.Runtime.RDTConfig}, {"runtime.blockio_config", c.Runtime.BlockIOConfig},
	} {
		if p.value != "" {
			v.absolute(p.key, p.value)
		}
	}
	v.check(len(c.CNI.BinDirs) > 0, "cni.bin_dirs", "is empty")
	for _, dir := range c.CNI.BinDirs {
		v.absolute("cni.bin_dirs", dir)
	}
	v.stateSockets(c)
	v.ownDirectory("state", c.State)
	v.ownDirectory("root", c.Root)
	v.apart(path.Clean(c.State), path.Clean(c.Root))
	for _, p := range []struct{ key, value string }{
		{"log.file", c.Log.File}, {"monitor.log", c.Monitor.Log}, {"socket", c.Socket}, {"admin.socket", c.Admin.Socket},
		{"monitor.socket", c.Monitor.Socket},
	} {
		v.noDirectory(p.key, p.value)
	}
}

// system are directories that belong to the whole machine: what is of no record is removed from those of criserver.
var system = []string{
	"/", "/bin", "/boot", "/etc", "/home", "/lib", "/lib32", "/lib64", "/media", "/mnt", "/opt", "/root", "/run", "/sbin", "/srv",
	"/tmp", "/usr", "/var", "/var/lib", "/var/run", "/var/tmp",
}

// ownDirectory refuses directories that cannot be criserver's alone.
func (v *validator) ownDirectory(key, dir string) {
	if !path.IsAbs(dir) {
		return // is told already
	}
	dir = path.Clean(dir)
	v.check(!slices.Contains(system, dir), key, "%s belongs to the whole machine: name a directory in it, such as %s", dir,
		path.Join(dir, "criserver"))
	for _, kernel := range []string{"/proc", "/sys", "/dev"} {
		v.check(!within(dir, kernel), key, "%s is in %s, which is the kernel's and holds no files", dir, kernel)
	}
}

// apart refuses directories of which one is in the way of the other.
func (v *validator) apart(state, root string) {
	// One is emptied by a reboot, the other one must not be.
	if !v.check(state != root, "state", "%s is root as well", state) {
		return
	}
	v.check(!within(root, state), "root", "%s is in state, %s, which does not outlive a reboot", root, state)
	for _, name := range []string{"overlay", "content", "downloads", "imports", "cni"} {
		v.check(!within(state, path.Join(root, name)), "state", "%s is where root has files of its own: %s", state, path.Join(root, name))
	}
}

// within tells whether a clean path is dir, or below it.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// noDirectory refuses the path of a file, or of a socket, where there is a directory.
func (v *validator) noDirectory(key, file string) {
	if !path.IsAbs(file) {
		return
	}
	if !v.check(!strings.HasSuffix(file, "/"), key, "%s is the path of a directory", file) {
		return
	}
	info, err := opfile.Stat(file)
	v.check(err != nil || !info.IsDir(), key, "%s is a directory", file)
	v.check(!errors.Is(err, opfile.ErrHangs), key, "%v", err)
}

// stateSockets checks the sockets that are in the state directory if nothing else is said.
func (v *validator) stateSockets(c *Config) {
	absolute := v.absolute("state", c.State)
	for _, s := range []struct{ key, value, name string }{
		{"admin.socket", c.Admin.Socket, "admin.sock"}, {"monitor.socket", c.Monitor.Socket, "crimonitor.sock"},
	} {
		switch {
		case s.value != "":
			v.socket(s.key, s.value)
		case absolute:
			v.check(len(path.Join(c.State, s.name)) <= maxSocketPath, "state",
				"%s is too long for %s in it, whose path has at most %d bytes; set %s", c.State, s.name, maxSocketPath, s.key)
		}
	}
}
