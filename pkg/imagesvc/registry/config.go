package registry

import (
	"time"

	"criserver/pkg/imagesvc/registry/credential"
)

// Config says how registries are reached. The zero value reaches each by HTTPS, those on localhost by HTTP too.
type Config struct {
	// Mirrors are tried in order before a registry's own host. The key is that host, as in the names of images:
	// "docker.io", "localhost:5000". One that is the registry itself replaces the last try.
	Mirrors map[string][]Endpoint
	// Hosts are other settings of registries, by the same key.
	Hosts map[string]HostConfig
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
type Endpoint struct {
	// URL is the base of its API, without "/v2/". Plain HTTP is used only if it begins with http://.
	URL string
	// CA is a PEM file of certificates to trust beside the system's. It is read once, by New.
	CA string
	// SkipVerify accepts any certificate.
	SkipVerify bool
	// TakesCredentials says that the endpoint may see the credentials of pulls, which are meant for the registry it is a
	// mirror of. Those configured for the endpoint's own host need no permission.
	TakesCredentials bool
}

// apiHost is where a registry's API is. Docker's is not where its name says.
func apiHost(domain string) string {
	switch domain {
	case "docker.io", "index.docker.io":
		return "registry-1.docker.io"
	}
	return domain
}
