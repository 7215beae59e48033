package config

import (
	"time"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/credential"
)

// RegistryConfig is the form in which package registry takes what is said of registries and pulls.
func (c *Config) RegistryConfig(userAgent string) registry.Config {
	out := registry.Config{
		Mirrors: map[string][]registry.Endpoint{}, Auth: map[string]registry.Auth{}, Hosts: map[string]registry.HostConfig{},
		NoProgress: time.Duration(c.Image.NoProgressTimeout), UserAgent: userAgent,
		MinRate:    c.Image.MinRate,
		ConfigPath: c.Registry.ConfigPath,
	}
	for host, m := range c.Registry.Mirrors {
		for _, e := range m.Endpoints {
			out.Mirrors[host] = append(out.Mirrors[host], e.Entry())
		}
		out.Hosts[host] = registry.HostConfig{NoFallback: m.NoFallback, Insecure: m.Insecure}
	}
	for host, a := range c.Registry.Auth {
		out.Auth[host] = registry.Auth{
			Username: a.Username, Password: a.Password, Auth: a.Auth, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
		}
	}
	out.DockerConfigs = c.Registry.DockerConfigs
	out.Providers = credential.ProviderConfig{Config: c.Registry.CredentialProvider.Config, BinDir: c.Registry.CredentialProvider.BinDir}
	short := c.Registry.ShortNames
	out.ShortNames = registry.ShortNames{Mode: short.Mode, Search: short.Search, Aliases: short.Aliases}
	return out
}
