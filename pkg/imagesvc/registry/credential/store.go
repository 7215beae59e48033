package credential

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"
)

// Config says where to look, in this order.
type Config struct {
	// Hosts are credentials by host of a registry or mirror.
	Hosts map[string]Auth
	// DockerConfigs are files such as /root/.docker/config.json. They need not exist, and are read again when they have
	// changed.
	DockerConfigs []string
	// Provider are the kubelet's plugins.
	Provider ProviderConfig
}

// ProviderConfig is where the kubelet's credential provider plugins are.
type ProviderConfig struct {
	// Config is a file of kind CredentialProviderConfig, or a directory of such files; "" is none. It is read again when it
	// has changed.
	Config string
	// BinDir is the directory of the plugins.
	BinDir string
	// Limit is how long a plugin may take. 0 is a minute.
	Limit time.Duration
}

// Store finds credentials. Its methods may be called at the same time.
type Store struct {
	hosts   map[string]Credential // by canonical host
	files   []*dockerFile
	plugins *plugins // nil: none
}

// New checks the configuration, and reads that of the plugins.
func New(c Config) (*Store, error) {
	s := &Store{hosts: map[string]Credential{}}
	for _, host := range slices.Sorted(maps.Keys(c.Hosts)) {
		v, err := c.Hosts[host].Credential("the configuration for " + host)
		if err != nil {
			return nil, fmt.Errorf("credentials for %s: %w", host, err)
		}
		s.hosts[canonicalHost(host)] = v
	}
	asked := &helpers{}
	for _, path := range c.DockerConfigs {
		s.files = append(s.files, &dockerFile{watched[*dockerConfig]{path: path, parse: parseDocker}, asked})
	}
	if c.Provider.Config == "" {
		return s, nil
	}
	if !filepath.IsAbs(c.Provider.BinDir) {
		return nil, fmt.Errorf("credential providers: %q is not the absolute path of the plugin directory", c.Provider.BinDir)
	}
	s.plugins = &plugins{
		config: watched[[]provider]{path: c.Provider.Config, pick: isProviderFile, parse: parseProviders},
		binDir: c.Provider.BinDir, limit: c.Provider.Limit, cache: map[cacheKey]cached{},
	}
	if _, err := s.plugins.config.get(); err != nil {
		return nil, fmt.Errorf("credential provider configuration: %w", err)
	}
	return s, nil
}

// Lookup finds what to try at a host for an image, best first. image is a full name without tag and digest
// ("docker.io/library/busybox"), host that of the API to be talked to, which may be a mirror's: then the credentials are
// those for the mirror. The error joins what the sources complained about; the credentials of the others are good
// nevertheless. It may run programs, for at most a minute each.
func (s *Store) Lookup(ctx context.Context, image, host string) ([]Credential, error) {
	name := nameAt(image, host)
	var found []Credential
	var problems []error
	if c, ok := s.hosts[canonicalHost(host)]; ok && !c.IsZero() {
		found = append(found, c)
	}
	for _, f := range s.files {
		more, errs := f.lookup(ctx, name)
		found, problems = append(found, more...), append(problems, errs...)
	}
	if s.plugins != nil {
		more, errs := s.plugins.lookup(ctx, name)
		found, problems = append(found, more...), append(problems, errs...)
	}
	return found, errors.Join(problems...)
}
