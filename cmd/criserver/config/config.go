// Package config reads criserver's configuration. It tells what an operator has said, checked for form; what each
// package needs is made of it here, or where the daemon is wired up, and no other package sees a Config.
//
// The file is TOML. Files in config.d beside it are read after it, in the order of their names: a later value replaces
// an earlier one key by key, tables are merged, arrays are replaced.
package config

import (
	"fmt"
	"io"
	"time"

	"github.com/pelletier/go-toml/v2"

	"criserver/pkg/imagesvc/registry/hosts"
	"criserver/pkg/sandbox/cgroup/driver"
)

// Config is the whole configuration. Comments in the field tags are those of the sample file.
type Config struct {
	Socket string `toml:"socket" comment:"The Unix socket that the kubelet and crictl connect to (CRI v1)."`
	State  string `toml:"state" comment:"What does not outlive a reboot: namespaces, bundles, mounts. Best on a tmpfs."`
	Root   string `toml:"root" comment:"What outlives a reboot: images, snapshots, records."`

	Log       Log       `toml:"log"`
	Admin     Admin     `toml:"admin" comment:"How criserver image reaches the daemon."`
	Monitor   Monitor   `toml:"monitor" comment:"crimonitor, the parent process of all containers. It is started when it does not run."`
	Runtime   Runtime   `toml:"runtime"`
	Streaming Streaming `toml:"streaming" comment:"Where clients of exec, attach and port-forward connect to: the kubelet, which takes their place, and crictl. A process of its own serves them; it is started when it is needed, and outlives the daemon."`

	DefaultRuntime string                    `toml:"default_runtime" comment:"The runtime handler of pods whose RuntimeClass names none: builtin, or a name in runtimes."`
	Runtimes       map[string]RuntimeHandler `toml:"runtimes" comment:"Runtime handlers beside builtin, which is always there, by the name that a RuntimeClass has for them:\n[runtimes.runc]\ntype = \"oci\" # a program with the command line of runc; \"builtin\" is crimonitor's own runtime, under another name\npath = \"/usr/bin/runc\"\nroot = \"/run/criserver/runtimes/runc\" # for its state; this is the default, by name\nargs = [\"--debug\"] # options of the program that come before the operation\nenv = [\"NAME=value\"] # its environment, beside PATH\npod_annotations = [\"example.com/*\"] # annotations of pods, by pattern, that it is to see, and of containers, if they are orders to it\nannotations = {\"example.com/a\" = \"b\"} # for all containers\nOf both types, for what does not say otherwise itself:\ncontainer_env = [\"HTTP_PROXY=http://proxy.example:3128\"]\nulimits = {nofile = {soft = 1024, hard = 65536}}\nsysctls = {\"net.ipv4.ip_unprivileged_port_start\" = \"0\"} # of pods that have the namespace for themselves\ndevices = [\"/dev/fuse:rwm\"] # or \"/dev/fuse\", which is the same\ntimezone = \"local\" # the node's, or a name such as \"Europe/Berlin\"; containers see it as /etc/localtime\npids_limit = 4096 # of a container\nrdt_class = \"gold\" # of runtime.rdt_config\nblockio_class = \"slow\" # of runtime.blockio_config\nhooks_dirs = [\"/etc/containers/oci/hooks.d\"] # OCI hooks in the form of oci-hooks(5)\nhooks = [{stage = \"createRuntime\", path = \"/usr/bin/hook\", args = [\"hook\", \"-v\"], env = [\"A=b\"], timeout = \"5s\"}] # with builtin, 1m if there is none\ncni_conf_dir = \"/etc/cni/runc.d\" # networks of its pods, instead of those in cni.conf_dir\ncni_max_networks = 1 # instead of cni.max_networks\nsnapshotter = \"devmapper\" # instead of snapshot.driver\nOne whose program does not work fails the pods that want it, and no others."`
	NRI            NRI                       `toml:"nri" comment:"Plugins by the Node Resource Interface, which are told of pods and containers, and change containers."`
	Image          Image                     `toml:"image"`
	Registry       Registry                  `toml:"registry"`
	CNI            CNI                       `toml:"cni"`
	Snapshot       Snapshot                  `toml:"snapshot"`
	Trust          Trust                     `toml:"trust" comment:"Which images may be pulled, by their signatures; those that are there already, or are imported, are not looked at. A file that is named here is read again when it has changed.\n[[trust.policy]]\nscope = \"quay.io/org\" # a registry, or that and the beginning of a path; \"_default\" is all the rest\nrequire = \"signed\" # or \"reject\", or \"accept\", as without any policy\nkeys = [\"/etc/criserver/org.pub\"] # public keys (PEM); cosign's signatures by any key or identity suffice\nkeyless = [{identity_regexp = \"https://github\\\\.com/org/.*\", issuer = \"https://token.actions.githubusercontent.com\"}]\ntrusted_root = \"/etc/criserver/trusted_root.json\" # sigstore's authorities and logs, for keyless and the following\ntransparency_log = true # signatures must be in a log; the default for keyless, not for keys\ntimestamp_authority = true # must have the time of an authority; not the default\nsct = true # certificates must be in a log; the default"`

	// Files are those that Load has read, in order.
	Files []string `toml:"-"`
}

// Log is where messages go to.
type Log struct {
	Level  string `toml:"level" comment:"The least level that is logged: debug, info, warn or error."`
	Format string `toml:"format" comment:"text or json."`
	File   string `toml:"file" comment:"A file to append to. Empty is standard error."`
}

// Admin is how administrators reach the daemon.
type Admin struct {
	Socket string `toml:"socket" comment:"Its Unix socket, for root only. Empty is admin.sock in the state directory."`
}

// Monitor is how to reach and start crimonitor.
type Monitor struct {
	Path   string `toml:"path" comment:"The program. Empty is crimonitor beside criserver, or else in PATH."`
	Log    string `toml:"log" comment:"Its log file. Empty is crimonitor.log in the state directory."`
	Socket string `toml:"socket" comment:"Its Unix socket. Empty is crimonitor.sock in the state directory."`
}

// Streaming is how sessions are served.
type Streaming struct {
	Address         string       `toml:"address" comment:"An IP address of the node, or a name. The kubelet of this node connects to it: only clients from elsewhere need another than the loopback."`
	Port            int          `toml:"port" comment:"A TCP port; 0 is any that is free."`
	IdleTimeout     Duration     `toml:"idle_timeout" comment:"After how long a session ends in which nothing happens."`
	CreationTimeout Duration     `toml:"creation_timeout" comment:"How long a client may take to open its streams."`
	HangUpGrace     Duration     `toml:"hang_up_grace" comment:"How long a command has between SIGHUP and SIGKILL when its client has gone. Negative leaves it running."`
	TLS             StreamingTLS `toml:"tls" comment:"Without a certificate, HTTP is plain."`
}

// StreamingTLS is how sessions are protected.
type StreamingTLS struct {
	Certificate string   `toml:"certificate" comment:"A PEM file, with key. It is read again when it changes, and so is client_ca."`
	Key         string   `toml:"key" comment:"A PEM file."`
	Generate    bool     `toml:"generate" comment:"Use a certificate that the process makes for itself."`
	ClientCA    string   `toml:"client_ca" comment:"A PEM file of authorities. Only clients with a certificate by one of them are let in."`
	MinVersion  string   `toml:"min_version" comment:"1.2 or 1.3. Empty is 1.2."`
	Ciphers     []string `toml:"ciphers" comment:"The cipher suites for TLS 1.2, by their names of RFCs. Empty is a choice that is safe."`
}

// Runtime is how containers are run.
type Runtime struct {
	CgroupRoot    string   `toml:"cgroup_root" comment:"The parent cgroup of pods that come without one; the kubelet's come with one."`
	CgroupDriver  string   `toml:"cgroup_driver" comment:"Who makes cgroups: cgroupfs, by the file system, or systemd, which then has a slice for each pod and a scope for each\ncontainer. The kubelet must have the same one; since 1.28 it asks. With systemd, pods that come without a cgroup are in the slice that is\nnamed as the last part of cgroup_root."`
	LogRate       Size     `toml:"log_rate" comment:"How much output of each container goes to its log, in bytes a second. More is dropped, counted and told of in the log.\n0 is no limit. Counts for containers that are made from then on."`
	LogToJournal  bool     `toml:"log_to_journal" comment:"Copy the logs to systemd's journal as well, with the fields CONTAINER_ID, CONTAINER_NAME, POD_NAME, POD_NAMESPACE and\nPOD_UID. What the journal does not take at once is left out there, and told of. Counts for containers that are made from then on."`
	LogBurst      Size     `toml:"log_burst" comment:"How much may come at once above log_rate; 16KiB at least is let through."`
	CDISpecDirs   []string `toml:"cdi_spec_dirs" comment:"Directories of the files that describe CDI devices; of two descriptions of a device that in the later directory counts."`
	RDTConfig     string   `toml:"rdt_config" comment:"The file of goresctrl with the RDT classes (cache, memory bandwidth), which the annotation\nrdt.resources.beta.kubernetes.io/pod chooses from, among others. Empty is none: containers that want one are refused."`
	CRIU          string   `toml:"criu" comment:"The program criu, for checkpoints, whose name must be just that. Empty: it is looked for in PATH when it is needed."`
	RestoreImages bool     `toml:"restore_images" comment:"Whether containers may be restored from images that are checkpoints. Such an image says itself who its processes are and what they\nmay do, and criu, which is root, does what it says: allow it only where all who can choose an image may be root on the node."`
	ImageVolumes  string   `toml:"image_volumes" comment:"What containers have where their image declares a volume (VOLUME) and nothing is mounted: directory, one of their own, which begins with\nwhat the image has there and goes with the container, or ignore, just what the image has there. Counts for containers that are made from\nthen on."`
	BlockIOConfig string   `toml:"blockio_config" comment:"The same for block I/O: blockio.resources.beta.kubernetes.io/pod."`
}

// RuntimeHandler is a way to run containers.
type RuntimeHandler struct {
	// Type is oci or builtin.
	Type string `toml:"type"`
	// Path is the program of type oci, Root the directory for its state.
	Path string `toml:"path,omitempty"`
	Root string `toml:"root,omitempty"`
	// Args are options of the program, Env are "NAME=value".
	Args []string `toml:"args,omitempty"`
	Env  []string `toml:"env,omitempty"`
	// PodAnnotations are patterns of names of annotations of pods that are passed on, and of containers' that are orders to the runtime;
	// Annotations are added.
	PodAnnotations []string          `toml:"pod_annotations,omitempty"`
	Annotations    map[string]string `toml:"annotations,omitempty"`

	// What pods and containers get that do not say otherwise.
	ContainerEnv []string          `toml:"container_env,omitempty"`
	Ulimits      map[string]Ulimit `toml:"ulimits,omitempty"`
	Sysctls      map[string]string `toml:"sysctls,omitempty"`
	Devices      []string          `toml:"devices,omitempty"`
	Timezone     string            `toml:"timezone,omitempty"`
	PidsLimit    int64             `toml:"pids_limit,omitempty"`
	RDTClass     string            `toml:"rdt_class,omitempty"`
	BlockIOClass string            `toml:"blockio_class,omitempty"`
	HooksDirs    []string          `toml:"hooks_dirs,omitempty"`
	Hooks        []Hook            `toml:"hooks,omitempty"`

	// Snapshotter is the driver of root file systems; "" is that of the node.
	Snapshotter string `toml:"snapshotter,omitempty"`

	// CNIConfDir and CNIMaxNetworks are networks of its own; what is not said is as for all pods.
	CNIConfDir     string `toml:"cni_conf_dir,omitempty"`
	CNIMaxNetworks *int   `toml:"cni_max_networks,omitempty"`
}

// Ulimit is a limit of a process (getrlimit(2)).
type Ulimit struct {
	Soft uint64 `toml:"soft"`
	Hard uint64 `toml:"hard"`
}

// Hook is a program that the runtime executes at a stage of a container's life (OCI runtime-spec, config.md, "POSIX-platform Hooks").
type Hook struct {
	Stage string   `toml:"stage"`
	Path  string   `toml:"path"`
	Args  []string `toml:"args,omitempty"`
	Env   []string `toml:"env,omitempty"`
	// Timeout is in whole seconds; 0 is what the runtime has: a minute with builtin, and none with runc.
	Timeout Duration `toml:"timeout,omitempty"`
}

// Image is how images are pulled and kept.
type Image struct {
	MaxParallelLayers   int      `toml:"max_parallel_layers" comment:"How many layers of one image are fetched at the same time."`
	ConnectionsPerLayer int      `toml:"connections_per_layer" comment:"How many connections fetch one large layer."`
	NoProgressTimeout   Duration `toml:"no_progress_timeout" comment:"A pull that has got no byte for this long is given up."`
	MinRate             int64    `toml:"min_rate" comment:"A connection that brings fewer bytes a second of a layer than this, over no_progress_timeout, counts as one that brings none:\nanother endpoint is asked for the rest. With 0 a byte now and then is enough."`
	KeepDownloads       Duration `toml:"keep_downloads" comment:"How long what is there of an aborted download waits for the next pull."`
	KeepLayers          bool     `toml:"keep_layers" comment:"Keep the compressed layers beside the unpacked ones, so that images are exported and pushed exactly as they came.\nWithout them the image ID stays the same, the digest of the manifest does not."`
	MaxLayerSize        Size     `toml:"max_layer_size" comment:"The most that one layer may have uncompressed."`
	MaxLayerFiles       int      `toml:"max_layer_files" comment:"The most files, directories and links that one layer may have."`
	MaxZstdWindow       Size     `toml:"max_zstd_window" comment:"The largest window of a layer's zstd: memory that is taken while it is unpacked. What builds images needs 8 MiB,\nunless it is told otherwise, as by zstd --ultra or --long (128 MiB)."`
	Pinned              []string `toml:"pinned" comment:"Images that the kubelet shall not remove to free space, as CRI-O's pinned_images: by their full\nname with tag or digest (\"registry.k8s.io/pause:3.10\"), by how it begins (\"registry.k8s.io/*\") or by what is in it (\"*/kube-proxy*\").\nElsewhere in a pattern *, ? and [a-z] stand for anything but /: \"registry.example/*/agent:v?\"."`
}

// Registry is how registries are reached.
type Registry struct {
	ConfigPath []string          `toml:"config_path" comment:"Directories of certs.d/<host>/hosts.toml, in the form that containerd reads, or with the certificates that docker reads.\nThe first directory that has anything for a host counts. Changes need no restart."`
	Mirrors    map[string]Mirror `toml:"mirrors" comment:"Where to pull from instead, by the host name in an image's name, in order; the registry itself comes last.\nWhat is said here of a host counts instead of config_path; \"_default\" is for hosts that neither names.\nAn endpoint is a URL, or a table with settings of its own:\n[registry.mirrors.\"docker.io\"]\nendpoints = [\"https://mirror.example\", {url = \"https://cache.example:5000\", ca = \"/etc/ssl/cache.pem\", takes_credentials = true}]\nno_fallback = true # never ask the registry itself\nWith insecure = true the registry itself may have any certificate, or none.\nskip_verify, insecure and client certificates are for that host and port alone: a token server or a store of blobs elsewhere\nis known by the ca of the registry, and what more it takes is said of it, here or in its own certs.d/<host>/hosts.toml.\nMore keys of an endpoint:\noverride_path = true # the URL is the root of the API: no /v2 is added\ncapabilities = [\"pull\"] # not \"resolve\": tags are looked up elsewhere\nca = [\"/etc/ssl/a.pem\", \"/etc/ssl/certs.d\"] # a directory counts for the *.crt in it\nclient_cert = \"/etc/ssl/node.pem\"\nclient_key = \"/etc/ssl/node.key\"\nskip_verify = true # any certificate will do\nheader = {x-tenant = \"a\"} # sent to this host\nrewrite = {\"^library/(.*)\" = \"hub/$1\"} # its name for the repository, by regular expression\ndial_timeout = \"5s\" # then the next endpoint is tried; one that does not answer is tried last for a while\nproxy = \"http://proxy.example:3128\" # instead of what the environment says"`
	Auth       map[string]Auth   `toml:"auth" comment:"Who to be where, by host name of a registry or mirror, for pulls that come without good credentials:\n[registry.auth.\"mirror.example\"]\nusername = \"node\"\npassword = \"secret\"\nInstead of these two: auth (base64 of \"username:password\"), identity_token (OAuth2) or registry_token (bearer)."`

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
	// OverridePath says that the URL is the root of the API: no /v2 is added.
	OverridePath bool `toml:"override_path,omitempty"`
	// Capabilities are resolve, pull, push; none are all.
	Capabilities []string `toml:"capabilities,omitempty"`
	// CA are PEM files, or directories of *.crt, of certificates that are trusted beside the system's.
	CA Paths `toml:"ca,omitempty"`
	// ClientCert and ClientKey are shown to the server. Without ClientKey the key is in ClientCert too.
	ClientCert string `toml:"client_cert,omitempty"`
	ClientKey  string `toml:"client_key,omitempty"`
	// SkipVerify trusts any certificate.
	SkipVerify bool `toml:"skip_verify,omitempty"`
	// Header is sent with each request to the server.
	Header map[string]string `toml:"header,omitempty"`
	// Rewrite changes names of repositories: regular expressions, and replacements with $1 and so on.
	Rewrite map[string]string `toml:"rewrite,omitempty"`
	// DialTimeout is how long to wait for a connection.
	DialTimeout Duration `toml:"dial_timeout,omitempty"`
	// Proxy is the URL of a proxy.
	Proxy string `toml:"proxy,omitempty"`
	// TakesCredentials lets it see the credentials of pulls, which are meant for the registry.
	TakesCredentials bool `toml:"takes_credentials,omitempty"`
}

// Paths are file names. A plain string in a file is one.
type Paths []string

// UnmarshalText takes one.
func (p *Paths) UnmarshalText(text []byte) error {
	*p = Paths{string(text)}
	return nil
}

// UnmarshalText takes the URL.
func (e *Endpoint) UnmarshalText(text []byte) error {
	*e = Endpoint{URL: string(text)}
	return nil
}

// Entry is the endpoint as the registry client takes it.
func (e Endpoint) Entry() hosts.Entry {
	out := hosts.Entry{
		URL: e.URL, OverridePath: e.OverridePath, Capabilities: e.Capabilities, CA: e.CA, SkipVerify: e.SkipVerify,
		Rewrite: e.Rewrite, DialTimeout: time.Duration(e.DialTimeout), Proxy: e.Proxy, TakesCredentials: e.TakesCredentials,
	}
	if e.ClientCert != "" {
		out.Client = []hosts.KeyPair{{Cert: e.ClientCert, Key: e.ClientKey}}
	}
	if len(e.Header) > 0 {
		out.Header = map[string][]string{}
		for name, value := range e.Header {
			out.Header[name] = []string{value}
		}
	}
	return out
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
	Mode    string            `toml:"mode" comment:"docker: in docker.io. refuse: nowhere. search: in the first of the registries in search that has it.\nOne that is out of order, refuses the credentials, or whose image is not trusted ends the search with an error: the next one's image of that\nname might be another. Names with a digest are looked for further. Some registries refuse what they do not have: write them last."`
	Search  []string          `toml:"search" comment:"Registries, in order, such as \"registry.example\" or \"registry.example/library\"."`
	Aliases map[string]string `toml:"aliases" comment:"Full names by short name, both without tag, whatever the mode: busybox = \"registry.example/library/busybox\"."`
}

// CNI is how pods are networked.
type CNI struct {
	ConfDir       string   `toml:"conf_dir" comment:"The directory of the network configuration; it is watched. One file in it is one network."`
	MaxNetworks   int      `toml:"max_networks" comment:"How many networks of conf_dir each pod is attached to, in the order of the names of their files; 0 is all. The first one is eth0,\nwhose addresses are the pod's, and has its host ports if it can; the others are eth1, eth2 and so on. Pods that are there stay as they are."`
	BinDirs       []string `toml:"bin_dirs" comment:"The directories of the CNI plugins."`
	Template      string   `toml:"template" comment:"A template (Go's text/template) of a configuration with plugins, as containerd's conf_template, for {{.PodCIDR}}, {{.PodCIDRRanges}}\nand {{.Routes}}. When the kubelet tells the pod CIDR it becomes 10-criserver.conflist in conf_dir, if there is no other configuration;\nuntil then the network is not ready. Empty is none."`
	CheckInterval Duration `toml:"check_interval" comment:"How often the plugins are asked whether each pod is connected as they left it (CHECK); where it is not, the log says so. 0 is never."`
	Builtin       Builtin  `toml:"builtin" comment:"The network of a node without any configuration: a bridge, which needs no plugins."`
}

// Builtin is the network that needs no configuration.
type Builtin struct {
	Disabled bool     `toml:"disabled" comment:"Be not ready instead, until there is a configuration."`
	Bridge   string   `toml:"bridge" comment:"The name of the bridge."`
	Subnets  []string `toml:"subnets" comment:"The addresses of pods: one IPv4 range, one IPv6 range, or both. What is said here counts whatever the kubelet tells. Empty is\nthe pod CIDR that the kubelet tells, and, until it has, 10.87.0.0/16 and fd9e:8ab5:6cd2::/64. Pods keep their addresses when it changes."`
}

// DefaultSubnets are those of the built-in network as long as nobody has said any.
var DefaultSubnets = []string{"10.87.0.0/16", "fd9e:8ab5:6cd2::/64"}

// Snapshot is how root file systems are made of layers.
type Snapshot struct {
	Driver             string `toml:"driver" comment:"How runtime handlers that name none have it: overlay, or devmapper, for which snapshot.devmapper.pool must be set."`
	WritableSizeLimit  Size   `toml:"writable_size_limit" comment:"What one container may write to its root file system, in bytes or such as \"10GiB\"; 0 is no limit. A limit\nneeds project quotas: ext4 with the features quota and project and mounted with prjquota, or xfs mounted with pquota."`
	WritableFilesLimit int64  `toml:"writable_files_limit" comment:"How many files and directories one container may have there; 0 is no limit. It needs project quotas as well."`

	Devmapper ThinPool `toml:"devmapper" comment:"Root file systems on block devices of their own: ext4 on thin devices. Layers stay in root; the first container of an image\ncopies what they show to a device, and each container has a copy on write of that."`
}

// Drivers of snapshots.
const (
	Overlay   = "overlay"
	Devmapper = "devmapper"
)

// ThinPool is where the snapshots of devmapper are.
type ThinPool struct {
	Pool string `toml:"pool" comment:"The name of a thin pool of the device mapper, as in /dev/mapper, that nobody else uses. The operator makes it, before criserver starts,\nand makes it larger. Empty is none."`
	Size Size   `toml:"size" comment:"How large each root file system is, the image in it: what a container can write is what its image leaves of that.\nContainers that are there keep theirs."`
}

// Bytes is the size of a device, which is made of whole blocks.
func (t ThinPool) Bytes() int64 { return int64(t.Size) &^ (1<<16 - 1) }

// Default returns the configuration of a machine that has none.
func Default() *Config {
	return &Config{
		Socket: "/run/criserver/criserver.sock",
		State:  "/run/criserver",
		Root:   "/var/lib/criserver",
		Log:    Log{Level: "info", Format: "text"},
		Runtime: Runtime{
			CgroupRoot: "/criserver", CgroupDriver: string(driver.Cgroupfs), ImageVolumes: "directory", LogBurst: 1 << 20, CDISpecDirs: []string{"/etc/cdi", "/var/run/cdi"},
		},
		Streaming: Streaming{
			Address: "127.0.0.1", IdleTimeout: Duration(4 * time.Hour), CreationTimeout: Duration(30 * time.Second),
			HangUpGrace: Duration(10 * time.Second), TLS: StreamingTLS{Ciphers: []string{}},
		},
		DefaultRuntime: "builtin", Runtimes: map[string]RuntimeHandler{},
		NRI: defaultNRI(),
		Image: Image{
			MaxParallelLayers: 4, ConnectionsPerLayer: 3, NoProgressTimeout: Duration(5 * time.Minute), MinRate: 100,
			KeepDownloads: Duration(24 * time.Hour), MaxLayerSize: 64 << 30, MaxLayerFiles: 5_000_000, MaxZstdWindow: 32 << 20, Pinned: []string{},
		},
		Registry: Registry{
			ConfigPath: []string{"/etc/criserver/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"},
			Mirrors:    map[string]Mirror{},
			Auth:       map[string]Auth{},
			// Where the kubelet looks as well.
			DockerConfigs: []string{"/var/lib/kubelet/config.json", "/root/.docker/config.json"},
			ShortNames:    ShortNames{Mode: "docker", Search: []string{}, Aliases: map[string]string{}},
		},
		CNI: CNI{
			ConfDir: "/etc/cni/net.d", MaxNetworks: 1, CheckInterval: Duration(time.Hour),
			BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"},
			Builtin: Builtin{Bridge: "criserver0", Subnets: []string{}},
		},
		Snapshot: Snapshot{Driver: Overlay, Devmapper: ThinPool{Size: 10 << 30}},
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
