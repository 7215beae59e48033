package registry

import (
	"context"
	"fmt"
	"time"

	"criserver/pkg/imagesvc/registry/credential"
	"criserver/pkg/imagesvc/registry/hosts"
)

// Config says how registries are reached. The zero value reaches each by HTTPS, those on localhost by HTTP too.
type Config struct {
	// Mirrors are tried in order before a registry's own host. The key is that host, as in the names of images:
	// "docker.io", "localhost:5000"; "_default" is for registries that have no settings of their own, here or in a
	// ConfigPath. One that is the registry itself replaces the last try.
	Mirrors map[string][]Endpoint
	// Hosts are other settings of registries, by the same key.
	Hosts map[string]HostConfig
	// ConfigPath are directories of the layout certs.d/<host>/hosts.toml, for registries that are not keys of Mirrors or
	// Hosts. They are read again when they change.
	ConfigPath []string
	// Auth are credentials by host of a registry or mirror, for when a pull comes without any for that host.
	Auth map[string]Auth
	// DockerConfigs are configuration files of docker to look for credentials in after that.
	DockerConfigs []string
	// Providers are the kubelet's credential provider plugins, which are asked last.
	Providers credential.ProviderConfig
	// ShortNames says what names without a registry stand for.
	ShortNames ShortNames
	// NoProgress is how long to wait for the next byte of a registry. 0 is 5 minutes.
	NoProgress time.Duration
	// MinRate is how many bytes a second one connection must bring of a blob, over the time of NoProgress: less counts as
	// nothing. 0: any byte is progress.
	MinRate int64
	// Backoff is the wait before the first repetition of a request; it doubles each time. 0 is 250 ms.
	Backoff time.Duration
	// UserAgent is sent with each request. "" is criserver.
	UserAgent string
}

// HostConfig is how to reach a registry's own host.
type HostConfig struct {
	// NoFallback leaves it out: only mirrors are asked.
	NoFallback bool
	// Insecure accepts any certificate, and plain HTTP if the host has no TLS.
	Insecure bool
}

// Endpoint is a server to pull from.
type Endpoint = hosts.Entry

// hosts is how registries are reached, without what it takes to be let in.
func (c *Config) hosts() hosts.Config {
	out := hosts.Config{Registries: map[string]hosts.Registry{}, Dirs: c.ConfigPath}
	for host, mirrors := range c.Mirrors {
		r := out.Registries[host]
		r.Mirrors, r.Source = mirrors, fmt.Sprintf("registry.mirrors.%q", host)
		out.Registries[host] = r
	}
	for host, hc := range c.Hosts {
		r := out.Registries[host]
		r.NoFallback, r.Insecure, r.Source = hc.NoFallback, hc.Insecure, fmt.Sprintf("registry.mirrors.%q", host)
		out.Registries[host] = r
	}
	return out
}

// least is how many bytes of a blob are progress in the time of NoProgress.
func (c *Config) least() int64 { return int64(c.NoProgress.Seconds() * float64(c.MinRate)) }

// pause waits before a request is made once more, the longer the more often that was.
func (c *Config) pause(ctx context.Context, attempt int) error {
	timer := time.NewTimer(hosts.Backoff(c.Backoff, attempt))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// apiHost is where a registry's API is. Docker's is not where its name says.
func apiHost(domain string) string { return hosts.APIHost(domain) }
