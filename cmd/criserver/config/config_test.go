package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// write makes a configuration directory of files by name and returns the path of config.toml in it.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "config.toml")
}

func TestDefaultIsValid(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Error(err)
	}
}

func TestWriteTOMLLoadsAgain(t *testing.T) {
	full := Default()
	full.Log.File, full.Monitor.Path = "/var/log/criserver.log", "/usr/bin/crimonitor"
	full.Image.Pinned = []string{"registry.k8s.io/*"}
	full.Registry.Mirrors["docker.io"] = Mirror{Endpoints: []Endpoint{
		{URL: "https://mirror.example", CA: Paths{"/etc/ca.pem"}}, {URL: "https://b.example:5000", SkipVerify: true}, {URL: "http://c.example"},
		{
			URL: "https://d.example/v2/hub", OverridePath: true, Capabilities: []string{"pull"}, CA: Paths{"/a.pem", "/etc/certs"},
			ClientCert: "/node.pem", ClientKey: "/node.key", Header: map[string]string{"X-Tenant": "a"},
			Rewrite: map[string]string{"^library/(.*)": "hub/$1"}, DialTimeout: Duration(time.Second), Proxy: "http://proxy.example:3128",
			TakesCredentials: true,
		},
	}}
	full.DefaultRuntime = "runc"
	full.Runtimes = map[string]RuntimeHandler{
		"runc": {
			Type: "oci", Path: "/usr/bin/runc", Root: "/run/runc", Args: []string{"--debug"}, Env: []string{"A=b"},
			PodAnnotations: []string{"a/*"}, Annotations: map[string]string{"a/b": "c"},
		},
		"builtin": {Type: "builtin", Snapshotter: "devmapper"},
	}
	full.Snapshot.Devmapper = ThinPool{Pool: "vg-pool", Size: 1 << 30}
	full.NRI = NRI{
		Enable: true, SocketPath: "/a", PluginPath: "/b", PluginConfigPath: "/c", RegistrationLimit: 1, RequestLimit: 2,
		Validator: NRIValidator{Enable: true, RejectHooks: true, RequiredPlugins: []string{"p"}, TolerateMissingByName: "a/b"},
	}
	full.Snapshot.WritableSizeLimit, full.Snapshot.WritableFilesLimit = 10<<30, 100000
	full.Registry.Mirrors["_default"] = Mirror{Endpoints: []Endpoint{{URL: "https://all.example"}}}
	full.Registry.ConfigPath = []string{"/etc/certs.d"}
	full.Registry.Auth["mirror.example:5000"] = Auth{Username: "u", Password: "p"}
	full.Registry.Auth["a.example"], full.Registry.Auth["b.example"] = Auth{Auth: "dTpw"}, Auth{IdentityToken: "t"}
	full.Registry.Auth["c.example"] = Auth{RegistryToken: "t"}
	full.Registry.DockerConfigs = []string{"/a/config.json"}
	full.Registry.CredentialProvider = CredentialProvider{Config: "/etc/provider.yaml", BinDir: "/opt/bin"}
	full.Registry.ShortNames = ShortNames{Mode: "search", Search: []string{"a.example", "docker.io"}, Aliases: map[string]string{"team/app": "a.example/b"}}
	for name, c := range map[string]*Config{"default": Default(), "full": full} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := c.WriteTOML(&b); err != nil {
				t.Fatal(err)
			}
			got, err := Load(write(t, map[string]string{"config.toml": b.String()}), true)
			if err != nil {
				t.Fatalf("%v in\n%s", err, &b)
			}
			got.Files = nil
			if !reflect.DeepEqual(got, c) {
				t.Errorf("got %+v\nwant %+v", got, c)
			}
		})
	}
}

func TestEveryKeyHasAComment(t *testing.T) {
	var walk func(key string, typ reflect.Type)
	walk = func(key string, typ reflect.Type) {
		for f := range typ.Fields() {
			name := f.Tag.Get("toml")
			if name == "-" {
				continue
			}
			if f.Type.Kind() == reflect.Struct {
				walk(key+name+".", f.Type)
			} else if f.Tag.Get("comment") == "" {
				t.Errorf("%s%s has none", key, name)
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
}

func TestLoadMerges(t *testing.T) {
	path := write(t, map[string]string{
		"config.toml": `
state = "/run/a"
[log]
level = "debug"
format = "json"
[cni]
bin_dirs = ["/a", "/b"]
[registry.mirrors."docker.io"]
endpoints = ["https://one.example", {url = "https://two.example", ca = "/two.pem"}, {url = "https://two.example", ca = ["/two.pem", "/too"]}]
[registry.mirrors.quay]
endpoints = ["http://quay.example"]
`,
		"config.d/20-b.toml": "log.level = \"error\"\n",
		"config.d/10-a.toml": `
log.level = "warn"
image.no_progress_timeout = "90s"
cni.bin_dirs = ["/c"]
[registry.mirrors."docker.io"]
endpoints = ["https://three.example"]
`,
		"config.d/30-off.toml.bak": "this is not TOML",
	})
	c, err := Load(path, false)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.State, want.Log.Level, want.Log.Format = "/run/a", "error", "json"
	want.CNI.BinDirs = []string{"/c"}
	want.Image.NoProgressTimeout = Duration(90 * time.Second)
	want.Registry.Mirrors = map[string]Mirror{
		"docker.io": {Endpoints: []Endpoint{{URL: "https://three.example"}}},
		"quay":      {Endpoints: []Endpoint{{URL: "http://quay.example"}}},
	}
	dir := filepath.Dir(path)
	want.Files = []string{path, dir + "/config.d/10-a.toml", dir + "/config.d/20-b.toml"}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestLoadSizes(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "1048576": 1 << 20, "'10GiB'": 10 << 30, "\"5 GB\"": 5e9, "1_000_000_000": 1e9} {
		c, err := Load(write(t, map[string]string{"config.toml": "snapshot.writable_size_limit = " + text}), true)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if got := c.Snapshot.WritableSizeLimit; got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
	for _, text := range []string{"1.5", "true", "[1]", "{}"} {
		if _, err := Load(write(t, map[string]string{"config.toml": "snapshot.writable_size_limit = " + text}), true); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}

func TestLoadWithoutFile(t *testing.T) {
	missing := write(t, nil)
	c, err := Load(missing, false)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c, Default()) {
		t.Errorf("got %+v", c)
	}
	if _, err := Load(missing, true); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("explicitly named: got %v", err)
	}
	dropIn := write(t, map[string]string{"config.d/a.toml": `root = "/r"`})
	if c, err = Load(dropIn, false); err != nil || c.Root != "/r" {
		t.Errorf("with a drop-in alone: got %+v, %v", c, err)
	}
}

// loadError is where the error of a document must be.
type loadError struct {
	doc  string
	line int
	key  string
}

func loadErrors(t *testing.T, all map[string]loadError) {
	t.Helper()
	for name, tc := range all {
		t.Run(name, func(t *testing.T) {
			path := write(t, map[string]string{"config.toml": tc.doc})
			_, err := Load(path, false)
			var p *Problem
			if !errors.As(err, &p) {
				t.Fatalf("got %v", err)
			}
			if p.File != path || p.Line != tc.line || p.Key != tc.key || p.Reason == "" {
				t.Errorf("got %+v, want line %d, key %s", p, tc.line, tc.key)
			}
			if want := path + ":" + strconv.Itoa(tc.line) + ": "; !strings.HasPrefix(err.Error(), want) {
				t.Errorf("got %q, want it to begin with %q", err, want)
			}
		})
	}
}

func TestLoadErrors(t *testing.T) {
	loadErrors(t, map[string]loadError{
		"no TOML":            {"\nsocket = \n", 2, ""},
		"unknown key":        {"\n[log]\nlevel = 'info'\nlevle = 'debug'\n", 4, "log.levle"}, //nolint:misspell // wanted
		"unknown table":      {"[lgo]\nlevel = 'info'\n", 1, "lgo"},
		"unknown nested":     {"[registry.mirrors.'a.io']\nendpoints = [\n  {url = 'http://b', cert = 'c'}]\n", 3, `registry.mirrors."a.io".cert`},
		"wrong type":         {"[log]\nlevel = 7\n", 2, "log.level"},
		"string for a list":  {"[cni]\nbin_dirs = '/opt/cni/bin'\n", 2, "cni.bin_dirs"},
		"key twice":          {"root = '/a'\nroot = '/b'\n", 2, "root"},
		"bad duration":       {"[image]\n\nno_progress_timeout = '5'\n", 3, "image.no_progress_timeout"},
		"duration in digits": {"[image]\nno_progress_timeout = 5\n", 2, "image.no_progress_timeout"},
		"short timeout":      {"[image]\nno_progress_timeout = '5ms'\n", 2, "image.no_progress_timeout"},
		"negative timeout":   {"[image]\nno_progress_timeout = '-5s'\n", 2, "image.no_progress_timeout"},
		"level":              {"[log]\nlevel = 'loud'\n", 2, "log.level"},
		"format":             {"log = {level = 'info', format = 'xml'}\n", 1, "log.format"},
		"relative socket":    {"socket = 'cri.sock'\n", 1, "socket"},
		"long socket":        {"\n\nsocket = '/" + strings.Repeat("a", 107) + "'\n", 3, "socket"},
		"long state":         {"state = '/" + strings.Repeat("a", 100) + "'\n", 1, "state"},
		"NUL in path":        {"root = \"/a\\u0000b\"\n", 1, "root"},
		"relative log":       {"[log]\nfile = 'a.log'\n", 2, "log.file"},
		"relative bin dir":   {"[cni]\nbin_dirs = [\n'/a',\n'b']\n", 2, "cni.bin_dirs"},
		"no bin dirs":        {"[cni]\nbin_dirs = []\n", 2, "cni.bin_dirs"},
		"image volumes":      {"[runtime]\nimage_volumes = 'mkdir'\n", 2, "runtime.image_volumes"},
		"check interval":     {"[cni]\ncheck_interval = '5ms'\n", 2, "cni.check_interval"},
		"cgroup driver":      {"[runtime]\ncgroup_driver = 'runc'\n", 2, "runtime.cgroup_driver"},
		"root cgroup":        {"[runtime]\ncgroup_root = '/'\n", 2, "runtime.cgroup_root"},
		"no layers":          {"[image]\nmax_parallel_layers = 0\n", 2, "image.max_parallel_layers"},
		"bad glob":           {"[image]\npinned = ['a', '[']\n", 2, "image.pinned"},
		"mirror not a URL":   {"[registry.mirrors.'docker.io']\nendpoints = ['mirror.example']\n", 2, `registry.mirrors."docker.io".endpoints`},
		"mirror is a number": {"[registry.mirrors.'docker.io']\nendpoints = [7]\n", 2, `registry.mirrors."docker.io".endpoints`},
		"mirror with query":  {"registry.mirrors.'docker.io' = {endpoints = ['http://a/?b']}\n", 1, `registry.mirrors."docker.io".endpoints`},
		"CA without TLS":     {"[registry.mirrors.a]\nendpoints = [{url = 'http://a', ca = '/c'}]\n", 2, `registry.mirrors.a.endpoints`},
		"relative CA":        {"[registry.mirrors.a]\nendpoints = [{url = 'https://a', ca = 'c'}]\n", 2, `registry.mirrors.a.endpoints`},
		"no endpoints":       {"\n[registry.mirrors.a]\n", 2, `registry.mirrors.a`},
		"only insecure":      {"\n[registry.mirrors.a]\ninsecure = true\nno_fallback = true\n", 2, `registry.mirrors.a`},
		"relative CA of two": {"[registry.mirrors.a]\nendpoints = [{url = 'https://a', ca = ['/b', 'c']}]\n", 2, `registry.mirrors.a.endpoints`},
		"key without cert":   {"[registry.mirrors.a]\nendpoints = [{url = 'https://a', client_key = '/b'}]\n", 2, `registry.mirrors.a.endpoints`},
		"capability":         {"[registry.mirrors.a]\nendpoints = [{url = 'https://a', capabilities = ['fly']}]\n", 2, `registry.mirrors.a.endpoints`},
		"rewrite":            {"[registry.mirrors.a]\nendpoints = [{url = 'https://a', rewrite = {'(' = ''}}]\n", 2, `registry.mirrors.a.endpoints`},
		"header":             {"[registry.mirrors.a]\nendpoints = [{url = 'https://a', header = {'a b' = ''}}]\n", 2, `registry.mirrors.a.endpoints`},
		"proxy":              {"[registry.mirrors.a]\nendpoints = [{url = 'https://a', proxy = 'b'}]\n", 2, `registry.mirrors.a.endpoints`},
		"dial timeout":       {"[registry.mirrors.a]\nendpoints = [{url = 'https://a', dial_timeout = '-1s'}]\n", 2, `registry.mirrors.a.endpoints`},
		"relative config":    {"[registry]\nconfig_path = ['certs.d']\n", 2, `registry.config_path`},
		"host is a URL":      {"[registry.mirrors.'https://a']\nendpoints = ['https://b']\n", 1, `registry.mirrors."https://a"`},
		"auth without user":  {"[registry.auth.'a:5000']\npassword = 'x'\n", 1, `registry.auth."a:5000"`},
		"auth of nothing":    {"[registry.auth.a]\n", 1, `registry.auth.a`},
		"auth of two forms":  {"[registry.auth.a]\nusername = 'u'\nidentity_token = 't'\n", 1, `registry.auth.a`},
		"auth not base64":    {"[registry.auth.a]\nauth = 'x'\n", 2, `registry.auth.a.auth`},
		"docker config":      {"[registry]\ndocker_configs = ['config.json']\n", 2, "registry.docker_configs"},
		"provider path":      {"[registry.credential_provider]\nconfig = 'x'\nbin_dir = '/b'\n", 2, "registry.credential_provider.config"},
		"provider, no dir":   {"[registry.credential_provider]\nconfig = '/x'\n", 1, "registry.credential_provider"},
		"dir, no provider":   {"[registry.credential_provider]\nbin_dir = '/x'\n", 2, "registry.credential_provider.bin_dir"},
		"NRI socket":         {"[nri]\nsocket_path = 'nri.sock'\n", 2, "nri.socket_path"},
		"NRI time":           {"[nri]\nenable = true\nplugin_request_timeout = '0s'\n", 3, "nri.plugin_request_timeout"},
		"NRI plugins":        {"[nri]\nplugin_path = 'opt'\n", 2, "nri.plugin_path"},
		"short names":        {"[registry.short_names]\nmode = 'guess'\n", 2, "registry.short_names.mode"},
		"search nothing":     {"[registry.short_names]\nmode = 'search'\n", 2, "registry.short_names.mode"},
		"search no host":     {"[registry.short_names]\nsearch = ['https://a']\n", 2, "registry.short_names.search"},
		"alias":              {"[registry.short_names.aliases]\nbusybox = 'b:1'\n", 2, "registry.short_names.aliases.busybox"},
		"bridge name":        {"[cni.builtin]\nbridge = 'a-bridge-of-a-name'\n", 2, "cni.builtin.bridge"},
		"networks":           {"[cni]\nmax_networks = -1\n", 2, "cni.max_networks"},
		"subnet":             {"[cni.builtin]\nsubnets = ['10.0.0.0']\n", 2, "cni.builtin.subnets"},
		"subnet's start":     {"[cni.builtin]\nsubnets = ['10.0.0.1/24']\n", 2, "cni.builtin.subnets"},
		"two of a family":    {"[cni.builtin]\nsubnets = ['10.0.0.0/24', '10.1.0.0/24']\n", 2, "cni.builtin.subnets"},
		"tiny subnet":        {"[cni.builtin]\nsubnets = ['10.0.0.0/30']\n", 2, "cni.builtin.subnets"},
		"driver":             {"[snapshot]\ndriver = 'aufs'\n", 2, "snapshot.driver"},
		"no pool":            {"[snapshot]\ndriver = 'devmapper'\n", 1, "snapshot.devmapper.pool"},
		"path of a pool":     {"[snapshot.devmapper]\npool = '/dev/mapper/a'\n", 2, "snapshot.devmapper.pool"},
		"small devices":      {"[snapshot.devmapper]\nsize = '63MiB'\n", 2, "snapshot.devmapper.size"},
		"handler's driver":   {"[runtimes.a]\ntype = 'builtin'\nsnapshotter = 'btrfs'\n", 3, "runtimes.a.snapshotter"},
		"handler's pool":     {"[runtimes.a]\ntype = 'builtin'\nsnapshotter = 'devmapper'\n", 3, "runtimes.a.snapshotter"},
		"bad size":           {"[snapshot]\nwritable_size_limit = '10G'\n", 2, "snapshot.writable_size_limit"},
		"negative size":      {"[snapshot]\nwritable_size_limit = -1\n", 2, "snapshot.writable_size_limit"},
		"tiny size":          {"[snapshot]\nwritable_size_limit = 4096\n", 2, "snapshot.writable_size_limit"},
		"few files":          {"[snapshot]\nwritable_files_limit = 99\n", 2, "snapshot.writable_files_limit"},
		"negative files":     {"[snapshot]\nwritable_files_limit = -1\n", 2, "snapshot.writable_files_limit"},
	})
}

func TestLoadErrorsOfPlaces(t *testing.T) {
	loadErrors(t, map[string]loadError{
		"root of all":         {"root = '/'\n", 1, "root"},
		"root of all, hidden": {"root = '/var/../'\n", 1, "root"},
		"root of others":      {"root = '/var/lib'\n", 1, "root"},
		"root in sys":         {"root = '/sys/fs/criserver'\n", 1, "root"},
		"state in proc":       {"\nstate = '/proc'\n", 2, "state"},
		"state in dev":        {"state = '/dev/criserver'\n", 1, "state"},
		"state of all":        {"state = '/run/'\n", 1, "state"},
		"state is root":       {"root = '/a'\nstate = '/a/'\n", 2, "state"},
		"root in state":       {"root = '/run/criserver/root'\n", 1, "root"},
		"state in layers":     {"root = '/a'\nstate = '/a/overlay/l'\n", 2, "state"},
		"log is a directory":  {"[log]\nfile = '/var'\n", 2, "log.file"},
		"log ends in /":       {"[log]\nfile = '/var/log/none/'\n", 2, "log.file"},
		"socket directory":    {"socket = '/run'\n", 1, "socket"},
		"all addresses":       {"cni.builtin.subnets = ['0.0.0.0/0']\n", 1, "cni.builtin.subnets"},
		"all IPv6 addresses":  {"cni.builtin.subnets = ['::/0']\n", 1, "cni.builtin.subnets"},
		"no address":          {"cni.builtin.subnets = ['0.0.0.0/8']\n", 1, "cni.builtin.subnets"},
		"loopback":            {"cni.builtin.subnets = ['127.0.0.0/8']\n", 1, "cni.builtin.subnets"},
		"link-local":          {"cni.builtin.subnets = ['fe80::/64']\n", 1, "cni.builtin.subnets"},
		"multicast":           {"cni.builtin.subnets = ['224.0.0.0/8']\n", 1, "cni.builtin.subnets"},
		"IPv4 as IPv6":        {"cni.builtin.subnets = ['::ffff:10.0.0.0/112']\n", 1, "cni.builtin.subnets"},
		"one address":         {"cni.builtin.subnets = ['10.0.0.0/32']\n", 1, "cni.builtin.subnets"},
	})
}

func TestLoadNamesTheFileThatCounts(t *testing.T) {
	path := write(t, map[string]string{
		"config.toml":     "[log]\nlevel = 'loud'\n",
		"config.d/a.toml": "\nlog.level = 'louder'\n",
		"config.d/b.toml": "root = '/b'\n",
	})
	_, err := Load(path, false)
	var p *Problem
	if !errors.As(err, &p) || p.File != filepath.Join(filepath.Dir(path), "config.d/a.toml") || p.Line != 2 {
		t.Errorf("got %v", err)
	}
}

func TestLoadTellsAllProblems(t *testing.T) {
	path := write(t, map[string]string{"config.toml": "socket = 's'\nroot = 'r'\n[log]\nformat = 'x'\n"})
	_, err := Load(path, false)
	var keys []string
	for _, line := range strings.Split(err.Error(), "\n") {
		keys = append(keys, strings.Split(line, ": ")[1])
	}
	if slices.Sort(keys); !slices.Equal(keys, []string{"log.format", "root", "socket"}) {
		t.Errorf("got %v", err)
	}
}

func TestLoadRefusesAHugeFile(t *testing.T) {
	path := write(t, map[string]string{"config.toml": "#"})
	if err := os.Truncate(path, maxFileSize+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path, false); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("got %v", err)
	}
}

func TestValidateNamesKeys(t *testing.T) {
	c := Default()
	c.Log.Level = "loud"
	var p *Problem
	if err := c.Validate(); !errors.As(err, &p) || p.Key != "log.level" || p.File != "" {
		t.Errorf("got %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	var b bytes.Buffer
	if err := Default().WriteTOML(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("registry.mirrors.'docker.io' = {endpoints = ['https://a', {url = 'b'}]}\n"))
	f.Add([]byte("[[registry.mirrors.a.endpoints]]\nurl = 'http://b'\n[image]\npinned = [\"\\u0000\"]"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		c, err := Load(write(t, map[string]string{"config.toml": string(doc)}), true)
		if err != nil {
			return
		}
		if err := c.Validate(); err != nil {
			t.Errorf("loaded, but not valid: %v", err)
		}
		var out bytes.Buffer
		if err := c.WriteTOML(&out); err != nil {
			t.Error(err)
		}
	})
}
