package credential

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

const (
	configGroup   = "kubelet.config.k8s.io/"
	providerGroup = "credentialprovider.kubelet.k8s.io/"
)

// The versions of both groups have the same fields, as far as they count here.
var versions = []string{"v1", "v1beta1", "v1alpha1"}

// provider is an entry of the kubelet's CredentialProviderConfig (k8s.io/kubelet, config/v1).
type provider struct {
	Name                 string    `json:"name"`
	MatchImages          []string  `json:"matchImages"`
	DefaultCacheDuration *duration `json:"defaultCacheDuration"`
	APIVersion           string    `json:"apiVersion"`
	Args                 []string  `json:"args"`
	Env                  []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"env"`
	TokenAttributes *struct {
		RequireServiceAccount *bool `json:"requireServiceAccount"`
	} `json:"tokenAttributes"`
}

// needsPod tells that the plugin works with the token of a pod's service account, which only the kubelet can get.
func (p *provider) needsPod() bool {
	return p.TokenAttributes != nil && (p.TokenAttributes.RequireServiceAccount == nil || *p.TokenAttributes.RequireServiceAccount)
}

// fingerprint tells this entry from another one of the same name.
func (p *provider) fingerprint() string {
	text, err := json.Marshal(p)
	if err != nil {
		panic(err) // has nothing but strings
	}
	return string(text)
}

// duration is metav1.Duration: a string such as "10m".
type duration time.Duration

// UnmarshalJSON takes what time.ParseDuration does.
func (d *duration) UnmarshalJSON(text []byte) error {
	var s string
	if err := json.Unmarshal(text, &s); err != nil {
		return errors.New("a duration is a string such as \"10m\"")
	}
	v, err := time.ParseDuration(s)
	*d = duration(v)
	return err
}

// isProviderFile: of a directory the kubelet reads these.
func isProviderFile(name string) bool {
	return slices.Contains([]string{".json", ".yaml", ".yml"}, filepath.Ext(name))
}

// parseProviders reads one file or several, as the kubelet does.
func parseProviders(documents []document) ([]provider, error) {
	var all []provider
	for _, d := range documents {
		var file struct {
			APIVersion string     `json:"apiVersion"`
			Kind       string     `json:"kind"`
			Providers  []provider `json:"providers"`
		}
		if err := yaml.Unmarshal(d.data, &file); err != nil {
			return nil, fmt.Errorf("decode %s: %w", d.path, err)
		}
		if file.Kind != "CredentialProviderConfig" || !isVersion(file.APIVersion, configGroup) {
			return nil, fmt.Errorf("%s: want kind CredentialProviderConfig of %sv1, not kind %q of %q",
				d.path, configGroup, file.Kind, file.APIVersion)
		}
		for i := range file.Providers {
			if err := file.Providers[i].check(); err != nil {
				return nil, fmt.Errorf("%s: provider %q: %w", d.path, file.Providers[i].Name, err)
			}
		}
		all = append(all, file.Providers...)
	}
	seen := map[string]bool{}
	for _, p := range all {
		if seen[p.Name] {
			return nil, fmt.Errorf("provider %q is there twice", p.Name)
		}
		seen[p.Name] = true
	}
	return all, nil
}

func isVersion(s, group string) bool {
	version, ok := strings.CutPrefix(s, group)
	return ok && slices.Contains(versions, version)
}

func (p *provider) check() error {
	switch {
	case p.Name == "" || p.Name == "." || p.Name == ".." || strings.ContainsAny(p.Name, "/ \x00"):
		return errors.New("the name is not that of a program in the plugin directory")
	case !isVersion(p.APIVersion, providerGroup):
		return fmt.Errorf("apiVersion %q is not %sv1", p.APIVersion, providerGroup)
	case len(p.MatchImages) == 0:
		return errors.New("matchImages is missing")
	case p.DefaultCacheDuration == nil:
		return errors.New("defaultCacheDuration is missing")
	case *p.DefaultCacheDuration < 0:
		return errors.New("defaultCacheDuration is negative")
	}
	return nil
}
