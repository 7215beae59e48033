package config

import (
	"time"

	"criserver/pkg/nri"
)

// NRI is how NRI plugins have a say in pods and containers.
type NRI struct {
	Enable             bool         `toml:"enable" comment:"Off, no plugin is started or let in."`
	SocketPath         string       `toml:"socket_path" comment:"The Unix socket that plugins connect to, root's alone. It must be free: containerd, where it runs as well, has it at the same place."`
	DisableConnections bool         `toml:"disable_connections" comment:"Do not make the socket: only the plugins of plugin_path count."`
	PluginPath         string       `toml:"plugin_path" comment:"The directory of plugins that are started with the daemon. Their names say in which order plugins are asked, such as 10-logger."`
	PluginConfigPath   string       `toml:"plugin_config_path" comment:"The directory of their configurations, such as 10-logger.conf or logger.conf."`
	RegistrationLimit  Duration     `toml:"plugin_registration_timeout" comment:"How long a plugin may take to register."`
	RequestLimit       Duration     `toml:"plugin_request_timeout" comment:"How long a plugin may take to answer. One that takes longer is disconnected, and what it was asked about goes on without it."`
	Validator          NRIValidator `toml:"default_validator" comment:"Which adjustments of containers make their creation fail."`
}

// NRIValidator is the NRI module's default validator.
type NRIValidator struct {
	Enable                bool     `toml:"enable" comment:"Off, none do but those that other plugins refuse."`
	RejectHooks           bool     `toml:"reject_oci_hook_adjustment" comment:"Those of OCI hooks."`
	RejectRuntimeDefault  bool     `toml:"reject_runtime_default_seccomp_adjustment" comment:"Those of the seccomp policy of containers that have the profile RuntimeDefault."`
	RejectUnconfined      bool     `toml:"reject_unconfined_seccomp_adjustment" comment:"Those of containers that have none."`
	RejectCustom          bool     `toml:"reject_custom_seccomp_adjustment" comment:"Those of containers that have a Localhost profile."`
	RejectNamespaces      bool     `toml:"reject_namespace_adjustment" comment:"Those of namespaces."`
	RejectSysctls         bool     `toml:"reject_sysctl_adjustment" comment:"Those of sysctls."`
	RequiredPlugins       []string `toml:"required_plugins" comment:"Plugins without which no container is created, static pods' neither."`
	TolerateMissingByName string   `toml:"tolerate_missing_plugins_annotation" comment:"The annotation by which a pod says, with the value true, that it does without required plugins. Empty is none."`
}

func defaultNRI() NRI {
	return NRI{
		SocketPath: "/var/run/nri/nri.sock", PluginPath: "/opt/nri/plugins", PluginConfigPath: "/etc/nri/conf.d",
		RegistrationLimit: Duration(5 * time.Second), RequestLimit: Duration(2 * time.Second),
		Validator: NRIValidator{RequiredPlugins: []string{}},
	}
}

func (v *validator) nri(n NRI) {
	v.socket("nri.socket_path", n.SocketPath)
	v.noDirectory("nri.socket_path", n.SocketPath)
	v.absolute("nri.plugin_path", n.PluginPath)
	v.absolute("nri.plugin_config_path", n.PluginConfigPath)
	v.check(n.RegistrationLimit > 0, "nri.plugin_registration_timeout", "%s is not positive", time.Duration(n.RegistrationLimit))
	v.check(n.RequestLimit > 0, "nri.plugin_request_timeout", "%s is not positive", time.Duration(n.RequestLimit))
}

// Config is the form in which package nri takes it.
func (n NRI) Config() nri.Config {
	v := n.Validator
	return nri.Config{
		Socket: n.SocketPath, NoConnections: n.DisableConnections, PluginDir: n.PluginPath, ConfigDir: n.PluginConfigPath,
		Registration: time.Duration(n.RegistrationLimit), Request: time.Duration(n.RequestLimit),
		Validator: nri.Validator{
			Enable: v.Enable, RejectOCIHookAdjustment: v.RejectHooks,
			RejectRuntimeDefaultSeccompAdjustment: v.RejectRuntimeDefault, RejectUnconfinedSeccompAdjustment: v.RejectUnconfined,
			RejectCustomSeccompAdjustment: v.RejectCustom, RejectNamespaceAdjustment: v.RejectNamespaces,
			RejectSysctlAdjustment: v.RejectSysctls, RequiredPlugins: v.RequiredPlugins, TolerateMissingAnnotation: v.TolerateMissingByName,
		},
	}
}
