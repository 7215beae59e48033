// Package config reads criserver's configuration. It tells what an operator has said, checked for form; what each
// package needs is made of it where the daemon is wired up, and no other package sees a Config.
//
// The file is TOML. Files in config.d beside it are read after it, in the order of their names: a later value replaces
// an earlier one key by key, tables are merged, arrays are replaced.
package config

import (
	"fmt"
	"io"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Config is the whole configuration. Comments in the field tags are those of the sample file.
type Config struct {
	Socket string `toml:"socket" comment:"The Unix socket that the kubelet and crictl connect to (CRI v1)."`
	State  string `toml:"state" comment:"What does not outlive a reboot: namespaces, bundles, mounts. Best on a tmpfs."`
	Root   string `toml:"root" comment:"What outlives a reboot: images, snapshots, records."`

	Log      Log      `toml:"log"`
	Monitor  Monitor  `toml:"monitor" comment:"crimonitor, the parent process of all containers. It is started when it does not run."`
	Runtime  Runtime  `toml:"runtime"`
	Image    Image    `toml:"image"`
	Registry Registry `toml:"registry"`
	CNI      CNI      `toml:"cni"`
	Snapshot Snapshot `toml:"snapshot"`

	// Files are those that Load has read, in order.
	Files []string `toml:"-"`
}

// Log is where messages go to.
type Log struct {
	Level  string `toml:"level" comment:"The least level that is logged: debug, info, warn or error."`
	Format string `toml:"format" comment:"text or json."`
	File   string `toml:"file" comment:"A file to append to. Empty is standard error."`
}

// Monitor is how to reach and start crimonitor.
type Monitor struct {
	Path   string `toml:"path" comment:"The program. Empty is crimonitor beside criserver, or else in PATH."`
	Log    string `toml:"log" comment:"Its log file. Empty is crimonitor.log in the state directory."`
	Socket string `toml:"socket" comment:"Its Unix socket. Empty is crimonitor.sock in the state directory."`
}

// Runtime is how containers are run.
type Runtime struct {
	CgroupRoot string `toml:"cgroup_root" comment:"The parent cgroup of pods that come without one; the kubelet's come with one."`
}

// Image is how images are pulled and kept.
type Image struct {
	MaxParallelLayers int      `toml:"max_parallel_layers" comment:"How many layers of one image are fetched at the same time."`
	NoProgressTimeout Duration `toml:"no_progress_timeout" comment:"A pull that has got no byte for this long is given up."`
	Pinned            []string `toml:"pinned" comment:"Images that the kubelet shall not remove to free space, by name with * and ?, such as\n\"registry.k8s.io/kube-proxy:*\" (* does not match /)."`
}

// Registry is how registries are reached.
type Registry struct {
	Mirrors map[string]Mirror `toml:"mirrors" comment:"Where to pull from instead, by the host name in an image's name, in order; the registry itself comes last.\nAn endpoint is a URL, or a table with a certificate authority of its own:\n[registry.mirrors.\"docker.io\"]\nendpoints = [\"https://mirror.example\", {url = \"https://cache.example:5000\", ca = \"/etc/ssl/cache.pem\", takes_credentials = true}]\nno_fallback = true # never ask the registry itself\nWith insecure = true the registry itself may have any certificate, or none."`
	Auth    map[string]Auth   `toml:"auth" comment:"Who to be where, by host name of a registry or mirror, for pulls that come without good credentials:\n[registry.auth.\"mirror.example\"]\nusername = \"node\"\npassword = \"secret\"\nInstead of these two: auth (base64 of \"username:password\"), identity_token (OAuth2) or registry_token (bearer)."`

	DockerConfigs      []string           `toml:"docker_configs" comment:"Docker's files to look for credentials in next. They need not exist, and are read again when they change."`
	CredentialProvider CredentialProvider `toml:"credential_provider" comment:"The kubelet's credential provider plugins, which are asked last."`
	ShortNames         ShortNames         `toml:"short_names" comment:"Names of images that do not begin with a registry, such as \"busybox\"."`
}

// Mirror tells how to reach a registry.
type Mirror struct {
	Endpoints []Endpoint `toml:"endpoints"`
	// NoFallback asks the endpoints only, never the registry itself.
	NoFallback bool `toml:"no_fallback,omitempty"`
	// Insecure takes any certificate of the registry itself, and plain HTTP if it has no TLS.
	Insecure bool `toml:"insecure,omitempty"`
}

// Endpoint is the base URL of a registry's API, without "/v2/". A plain string in a file is the URL.
type Endpoint struct {
	URL string `toml:"url"`
	// CA is a PEM file of certificates that are trusted beside the system's.
	CA string `toml:"ca,omitempty"`
	// SkipVerify trusts any certificate.
	SkipVerify bool `toml:"skip_verify,omitempty"`
	// TakesCredentials lets it see the credentials of pulls, which are meant for the registry.
	TakesCredentials bool `toml:"takes_credentials,omitempty"`
}

// UnmarshalText takes the URL.
func (e *Endpoint) UnmarshalText(text []byte) error {
	*e = Endpoint{URL: string(text)}
	return nil
}

// Auth is a user of a registry, in one of four forms.
type Auth struct {
	Username string `toml:"username,omitempty"`
	Password string `toml:"password,omitempty"`
	// Auth is base64 of "username:password".
	Auth string `toml:"auth,omitempty"`
	// IdentityToken is an OAuth2 refresh token, RegistryToken a bearer token.
	IdentityToken string `toml:"identity_token,omitempty"`
	RegistryToken string `toml:"registry_token,omitempty"`
}

// CredentialProvider is where the kubelet's plugins are.
type CredentialProvider struct {
	Config string `toml:"config" comment:"The file of kind CredentialProviderConfig, or a directory of such, as for the kubelet's\n--image-credential-provider-config. Empty is none. It is read again when it changes."`
	BinDir string `toml:"bin_dir" comment:"The directory of the plugins."`
}

// ShortNames tells what names without a registry stand for.
type ShortNames struct {
	Mode    string            `toml:"mode" comment:"docker: in docker.io. refuse: nowhere. search: in the first of the registries in search that gives it."`
	Search  []string          `toml:"search" comment:"Registries, in order, such as \"registry.example\" or \"registry.example/library\"."`
	Aliases map[string]string `toml:"aliases" comment:"Full names by short name, both without tag, whatever the mode: busybox = \"registry.example/library/busybox\"."`
}

// CNI is how pods are networked.
type CNI struct {
	ConfDir string   `toml:"conf_dir" comment:"The directory of the network configuration. The first file in it counts; it is watched."`
	BinDirs []string `toml:"bin_dirs" comment:"The directories of the CNI plugins."`
	Builtin Builtin  `toml:"builtin" comment:"The network of a node without any configuration: a bridge, which needs no plugins."`
}

// Builtin is the network that needs no configuration.
type Builtin struct {
	Disabled bool     `toml:"disabled" comment:"Be not ready instead, until there is a configuration."`
	Bridge   string   `toml:"bridge" comment:"The name of the bridge."`
	Subnets  []string `toml:"subnets" comment:"The addresses of pods: one IPv4 range, one IPv6 range, or both."`
}

// Snapshot is how root file systems are made of layers.
type Snapshot struct {
	Driver string `toml:"driver" comment:"overlay."`
}

// Default returns the configuration of a machine that has none.
func Default() *Config {
	return &Config{
		Socket: "/run/criserver/criserver.sock",
		State:  "/run/criserver",
		Root:   "/var/lib/criserver",
		Log:    Log{Level: "info", Format: "text"},
		Runtime: Runtime{
			CgroupRoot: "/criserver",
		},
		Image: Image{MaxParallelLayers: 4, NoProgressTimeout: Duration(5 * time.Minute), Pinned: []string{}},
		Registry: Registry{
			Mirrors: map[string]Mirror{},
			Auth:    map[string]Auth{},
			// Where the kubelet looks as well.
			DockerConfigs: []string{"/var/lib/kubelet/config.json", "/root/.docker/config.json"},
			ShortNames:    ShortNames{Mode: "docker", Search: []string{}, Aliases: map[string]string{}},
		},
		CNI: CNI{
			ConfDir: "/etc/cni/net.d",
			BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"},
			Builtin: Builtin{Bridge: "criserver0", Subnets: []string{"10.87.0.0/16", "fd9e:8ab5:6cd2::/64"}},
		},
		Snapshot: Snapshot{Driver: "overlay"},
	}
}

// WriteTOML writes the configuration with a comment for each key, in a form that Load reads. It has passwords in it.
func (c *Config) WriteTOML(w io.Writer) error {
	if err := toml.NewEncoder(w).SetIndentTables(false).Encode(c); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

// Duration is a time.Duration in the form "5m30s".
type Duration time.Duration

// UnmarshalText takes what time.ParseDuration does.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a time such as \"90s\" or \"5m\"", text)
	}
	*d = Duration(v)
	return nil
}

// MarshalText is the opposite of UnmarshalText.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }
