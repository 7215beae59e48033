package config

import (
	"encoding/base64"
	"maps"
	"slices"
	"strings"

	"criserver/pkg/imagesvc/registry/names"
)

// auth checks one table of registry.auth. Nothing that it says has any of the values.
func (v *validator) auth(key string, a Auth) {
	var forms []string
	for _, f := range []struct{ name, value string }{
		{"username", a.Username + a.Password}, {"auth", a.Auth}, {"identity_token", a.IdentityToken}, {"registry_token", a.RegistryToken},
	} {
		if f.value != "" {
			forms = append(forms, f.name)
		}
	}
	if !v.check(len(forms) > 0, key, "there is no username, auth, identity_token or registry_token") {
		return
	}
	v.check(len(forms) == 1, key, "%s are one too many", strings.Join(forms, " and "))
	v.check(a.Password == "" || a.Username != "", key, "username is missing")
	if a.Auth != "" {
		decoded, err := base64.StdEncoding.DecodeString(a.Auth)
		v.check(err == nil && strings.Contains(string(decoded), ":"), key+".auth", "is not base64 of \"username:password\"")
	}
}

func (v *validator) credentialFiles(r Registry) {
	for _, file := range r.DockerConfigs {
		v.absolute("registry.docker_configs", file)
	}
	const table = "registry.credential_provider"
	p := r.CredentialProvider
	if p.Config == "" {
		v.check(p.BinDir == "", table+".bin_dir", "is set without config")
		return
	}
	v.absolute(table+".config", p.Config)
	if v.check(p.BinDir != "", table, "bin_dir is missing") {
		v.absolute(table+".bin_dir", p.BinDir)
	}
}

func (v *validator) shortNames(s ShortNames) {
	const table = "registry.short_names"
	v.oneOf(table+".mode", s.Mode, names.ShortDocker, names.ShortRefuse, names.ShortSearch)
	v.check(s.Mode != names.ShortSearch || len(s.Search) > 0, table+".mode", "search needs registries in search")
	for _, host := range s.Search {
		err := names.CheckSearch(host)
		v.check(err == nil, table+".search", "%v", err)
	}
	for _, short := range slices.Sorted(maps.Keys(s.Aliases)) {
		err := names.CheckAlias(short, s.Aliases[short])
		v.check(err == nil, joinKey("registry", "short_names", "aliases", short), "%v", err)
	}
}
