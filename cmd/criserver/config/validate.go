package config

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"criserver/pkg/imagesvc/registry/hosts"
	"criserver/pkg/imagesvc/registry/names"
	"criserver/pkg/sandbox/cgroup/driver"
	"criserver/pkg/snapshot/devmapper"
)

// maxSocketPath is the longest address of a Unix socket, see unix(7): 108 bytes with the NUL.
const maxSocketPath = 107

// Validate checks the form of all values, for a Config that was changed after Load. The error joins Problems.
func (c *Config) Validate() error { return join(c.problems()) }

// problems are all that is wrong with the values.
func (c *Config) problems() []*Problem {
	var v validator
	v.paths(c)
	v.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	v.oneOf("log.format", c.Log.Format, "text", "json")
	v.runtime(c.Runtime)
	v.handlers(c)
	v.image(c.Image)
	v.streaming(c.Streaming)
	v.nri(c.NRI)
	for _, dir := range c.Registry.ConfigPath {
		v.absolute("registry.config_path", dir)
	}
	for _, host := range slices.Sorted(maps.Keys(c.Registry.Mirrors)) {
		v.mirror(host, c.Registry.Mirrors[host])
	}
	for _, host := range slices.Sorted(maps.Keys(c.Registry.Auth)) {
		key := joinKey("registry", "auth", host)
		v.registryHost(key, host)
		v.auth(key, c.Registry.Auth[host])
	}
	v.credentialFiles(c.Registry)
	v.shortNames(c.Registry.ShortNames)
	v.maxNetworks("cni.max_networks", c.CNI.MaxNetworks)
	v.check(c.CNI.CheckInterval == 0 || time.Duration(c.CNI.CheckInterval) >= time.Second, "cni.check_interval",
		"%s is less than a second; 0 is never", time.Duration(c.CNI.CheckInterval))
	if c.CNI.Template != "" {
		v.absolute("cni.template", c.CNI.Template)
	}
	v.builtin(c.CNI.Builtin)
	v.snapshot(c.Snapshot)
	v.trust(c.Trust)
	return v.problems
}

// validator collects what is wrong.
type validator struct{ problems []*Problem }

func (v *validator) check(ok bool, key, format string, args ...any) bool {
	if !ok {
		v.problems = append(v.problems, &Problem{Key: key, Reason: fmt.Sprintf(format, args...)})
	}
	return ok
}

func (v *validator) absolute(key, value string) bool {
	return v.check(path.IsAbs(value), key, "%q is not an absolute path", value) &&
		v.check(!strings.ContainsRune(value, 0), key, "%q contains a NUL byte", value)
}

func (v *validator) socket(key, value string) {
	if v.absolute(key, value) {
		v.check(len(value) <= maxSocketPath, key, "%s is %d bytes long; a socket's path has at most %d",
			value, len(value), maxSocketPath)
	}
}

func (v *validator) oneOf(key, value string, allowed ...string) {
	v.check(slices.Contains(allowed, value), key, "%q is not one of %s", value, strings.Join(allowed, ", "))
}

func (v *validator) runtime(r Runtime) {
	if r.CRIU != "" && v.absolute("runtime.criu", r.CRIU) {
		v.check(path.Base(r.CRIU) == "criu", "runtime.criu", "%q is not named criu: runtimes look for that name", r.CRIU)
	}
	for _, dir := range r.CDISpecDirs {
		v.check(path.IsAbs(dir), "runtime.cdi_spec_dirs", "%q is not absolute", dir)
	}
	v.check(path.Clean(r.CgroupRoot) != "/", "runtime.cgroup_root", "cannot be the root cgroup")
	v.oneOf("runtime.cgroup_driver", r.CgroupDriver, string(driver.Cgroupfs), string(driver.Systemd))
	v.oneOf("runtime.image_volumes", r.ImageVolumes, "directory", "ignore")
	v.check(r.LogRate >= 0, "runtime.log_rate", "%d is negative", r.LogRate)
	v.check(r.LogBurst >= 0, "runtime.log_burst", "%d is negative", r.LogBurst)
}

func (v *validator) image(i Image) {
	const most = 64
	v.check(i.MaxParallelLayers >= 1 && i.MaxParallelLayers <= most, "image.max_parallel_layers",
		"%d is not from 1 to %d", i.MaxParallelLayers, most)
	v.check(time.Duration(i.NoProgressTimeout) >= time.Second, "image.no_progress_timeout",
		"%s is less than a second", time.Duration(i.NoProgressTimeout))
	v.check(i.MinRate >= 0, "image.min_rate", "%d is negative", i.MinRate)
	v.check(i.ConnectionsPerLayer >= 1 && i.ConnectionsPerLayer <= most, "image.connections_per_layer",
		"%d is not from 1 to %d", i.ConnectionsPerLayer, most)
	v.check(i.KeepDownloads >= 0, "image.keep_downloads", "%s is negative", time.Duration(i.KeepDownloads))
	v.check(i.MaxLayerSize > 0, "image.max_layer_size", "%d is no size", i.MaxLayerSize)
	v.check(i.MaxZstdWindow >= 8<<20 && i.MaxZstdWindow <= 512<<20, "image.max_zstd_window", "%s is not from 8MiB to 512MiB", i.MaxZstdWindow)
	v.check(i.MaxLayerFiles > 0, "image.max_layer_files", "%d is no number of files", i.MaxLayerFiles)
	for _, glob := range i.Pinned {
		v.check(names.CheckPattern(glob) == nil, "image.pinned", "%q is not a pattern", glob)
	}
}

func (v *validator) registryHost(key, host string) {
	u, err := url.Parse("https://" + host)
	v.check(err == nil && u.Host == host && u.Hostname() != "" && u.Port() != "0", key,
		"%q is not a host name, or host:port", host)
}

func (v *validator) mirror(host string, m Mirror) {
	table := joinKey("registry", "mirrors", host)
	if host != hosts.Default {
		v.registryHost(table, host)
	}
	v.check(len(m.Endpoints) > 0 || m.Insecure && !m.NoFallback, table, "endpoints is missing")
	for _, e := range m.Endpoints {
		v.endpoint(table+".endpoints", e)
	}
}

func (v *validator) endpoint(key string, e Endpoint) {
	u, err := url.Parse(e.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		v.check(false, key, "%q is not a URL such as https://mirror.example", e.URL)
		return
	}
	v.check(u.User == nil, key, "the URL of %s has credentials in it; they belong in registry.auth", u.Host)
	v.check(u.RawQuery == "" && u.Fragment == "", key, "%q has more than a host and a path", e.URL)
	withoutTLS := len(e.CA) == 0 && !e.SkipVerify && e.ClientCert == ""
	v.check(u.Scheme == "https" || withoutTLS, key, "%q: ca, client_cert and skip_verify need https", e.URL)
	for _, file := range append([]string{e.ClientCert, e.ClientKey}, e.CA...) {
		if file != "" {
			v.absolute(key, file)
		}
	}
	v.check(e.ClientKey == "" || e.ClientCert != "", key, "client_key without client_cert")
	if err := e.Entry().Check(); err != nil {
		v.check(false, key, "%s: %v", u.Host, err)
	}
}

// snapshot refuses limits that the directories of an empty writable layer nearly fill.
func (v *validator) snapshot(s Snapshot) {
	const leastSize, leastFiles = Size(1 << 20), 100
	v.oneOf("snapshot.driver", s.Driver, Overlay, Devmapper)
	v.thinPool("snapshot.devmapper", s)
	v.check(s.WritableSizeLimit == 0 || s.WritableSizeLimit >= leastSize, "snapshot.writable_size_limit",
		"%s is less than %s; 0 is no limit", s.WritableSizeLimit, leastSize)
	v.check(s.WritableFilesLimit == 0 || s.WritableFilesLimit >= leastFiles, "snapshot.writable_files_limit",
		"%d is less than %d; 0 is no limit", s.WritableFilesLimit, leastFiles)
}

// poolName is what a device of the device mapper can be called; what snapshots are called begins with it.
var poolName = regexp.MustCompile(`^[A-Za-z0-9_.+:-]{1,100}$`)

func (v *validator) thinPool(key string, s Snapshot) {
	const leastSize, mostSize = Size(devmapper.LeastSize), Size(16 << 40) // the latter is ext4's, with 32 bits
	pool := s.Devmapper.Pool
	v.check(pool == "" || poolName.MatchString(pool) && strings.Trim(pool, ".") != "", key+".pool",
		"%q is not a name as in /dev/mapper of 1 to 100 letters, digits and _.+:-", pool)
	v.check(pool != "" || s.Driver != Devmapper, key+".pool", "it is empty, and snapshot.driver is %s", Devmapper)
	v.check(s.Devmapper.Size >= leastSize && s.Devmapper.Size <= mostSize, key+".size", "%s is not between %s and %s", s.Devmapper.Size, leastSize, mostSize)
}

func (v *validator) maxNetworks(key string, n int) {
	v.check(n >= 0, key, "%d is negative; 0 is all networks", n)
}

func (v *validator) builtin(b Builtin) {
	const maxName = 15 // IFNAMSIZ less the NUL
	v.check(b.Bridge != "" && len(b.Bridge) <= maxName && b.Bridge != "." && b.Bridge != ".." &&
		!strings.ContainsAny(b.Bridge, "/: \t\n\v\f\r%\x00"), "cni.builtin.bridge",
		"%q is not a name of 1 to %d characters for an interface", b.Bridge, maxName)
	const key = "cni.builtin.subnets"
	seen := map[bool]string{}
	for _, s := range b.Subnets {
		p, err := netip.ParsePrefix(s)
		if !v.check(err == nil, key, "%q is not a range such as 10.87.0.0/16", s) {
			continue
		}
		v.check(p == p.Masked(), key, "%s is not the start of its range, %s", s, p.Masked())
		v.check(!p.Addr().Is4In6(), key, "%s is an IPv4 range written as IPv6", s)
		v.check(p.Addr().BitLen()-p.Bits() >= 3, key, "%s is too small for a network of pods", s)
		v.check(p.Bits() > 0, key, "%s is all addresses: the machine would reach nothing but pods", s)
		a := p.Addr()
		unusable := a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || p.Bits() > 0 && a.IsUnspecified()
		v.check(!unusable, key, "%s has addresses that cannot be those of pods (loopback, link-local, multicast, or none)", s)
		is4 := p.Addr().Is4()
		v.check(seen[is4] == "", key, "%s and %s are of the same family", seen[is4], s)
		seen[is4] = s
	}
}
