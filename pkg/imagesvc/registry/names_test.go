package registry_test

import (
	"errors"
	"strings"
	"testing"

	"criserver/pkg/imagesvc/registry"
)

const aDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseNames(t *testing.T) {
	aliases := map[string]string{"busybox": "registry.example/lib/busybox", "team/app": "localhost:5000/x"}
	docker := registry.ShortNames{Aliases: aliases}
	refuse := registry.ShortNames{Mode: registry.ShortRefuse, Aliases: aliases}
	search := registry.ShortNames{Mode: registry.ShortSearch, Search: []string{"a.example", "docker.io", "localhost:5000/team"}, Aliases: aliases}
	for _, test := range []struct {
		rules      registry.ShortNames
		name, want string
	}{
		{registry.ShortNames{}, "busybox", "docker.io/library/busybox:latest"},
		{docker, "busybox", "registry.example/lib/busybox:latest"},
		{docker, "busybox:1", "registry.example/lib/busybox:1"},
		{docker, "busybox:1@" + aDigest, "registry.example/lib/busybox@" + aDigest},
		{docker, "team/app@" + aDigest, "localhost:5000/x@" + aDigest},
		{docker, "library/busybox", "docker.io/library/busybox:latest"},
		{docker, "docker.io/busybox", "docker.io/library/busybox:latest"},
		{docker, "localhost/busybox", "localhost/busybox:latest"},
		{refuse, "busybox", "registry.example/lib/busybox:latest"},
		{refuse, "docker.io/alpine:3", "docker.io/library/alpine:3"},
		{refuse, "localhost/alpine:3", "localhost/alpine:3"},
		{refuse, "localhost:5000/alpine", "localhost:5000/alpine:latest"},
		{search, "alpine:3", "a.example/alpine:3 docker.io/library/alpine:3 localhost:5000/team/alpine:3"},
		{search, "user/app@" + aDigest, "a.example/user/app@" + aDigest + " docker.io/user/app@" + aDigest + " localhost:5000/team/user/app@" + aDigest},
		{search, "team/app", "localhost:5000/x:latest"},
		{search, "quay.io/a/b", "quay.io/a/b:latest"},
	} {
		refs, err := registry.ParseNames(test.name, test.rules)
		var got []string
		for _, r := range refs {
			got = append(got, r.String())
		}
		if err != nil || strings.Join(got, " ") != test.want {
			t.Errorf("%s: %q, want %q, %v", test.name, got, test.want, err)
		}
	}
	_, err := registry.ParseNames("alpine:3", refuse)
	if !errors.Is(err, registry.ErrInvalid) || !strings.Contains(err.Error(), `"docker.io/library/alpine:3"`) {
		t.Errorf("refused: %v", err)
	}
	for _, bad := range []string{"a.example:0/x", "a.example:65536/x", "localhost:99999999999999999999/x:1", "a.example:70000/x@" + aDigest} {
		if _, err := registry.ParseNames(bad, docker); !errors.Is(err, registry.ErrInvalid) || !strings.Contains(err.Error(), "port") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := registry.ParseNames("a.example:65535/x", docker); err != nil {
		t.Error(err)
	}
	if _, err := registry.ParseNames("Alpine", search); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("bad name: %v", err)
	}
}

func TestShortNamesAreChecked(t *testing.T) {
	for name, s := range map[string]registry.ShortNames{
		"mode":              {Mode: "guess"},
		"nothing to search": {Mode: registry.ShortSearch},
		"no host":           {Mode: registry.ShortSearch, Search: []string{"library"}},
		"URL":               {Mode: registry.ShortSearch, Search: []string{"https://a.io"}},
		"alias of a tag":    {Aliases: map[string]string{"busybox:1": "a.io/b"}},
		"alias of a host":   {Aliases: map[string]string{"a.io/b": "b.io/b"}},
		"alias to a tag":    {Aliases: map[string]string{"busybox": "a.io/b:1"}},
		"alias to a short":  {Aliases: map[string]string{"busybox": "b"}},
		"alias to nothing":  {Aliases: map[string]string{"busybox": ""}},
	} {
		if _, err := registry.New(registry.Config{ShortNames: s}); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := registry.New(registry.Config{ShortNames: registry.ShortNames{
		Mode: registry.ShortSearch, Search: []string{"a.io", "localhost/x"}, Aliases: map[string]string{"busybox": "a.io/b", "x/y": "localhost/b"},
	}}); err != nil {
		t.Error(err)
	}
}

func TestAuthForShortNames(t *testing.T) {
	for name, want := range map[string]string{"busybox": "docker.io", "a/b:1": "docker.io", "quay.io/a/b": "", "localhost/a": ""} {
		if got := registry.AuthFor(name, secret); got.ServerAddress != want || got.Password != secret.Password {
			t.Errorf("%s: for %q, want %q", name, got.ServerAddress, want)
		}
	}
	if got := registry.AuthFor("busybox", registry.Auth{}); got != (registry.Auth{}) {
		t.Errorf("of nothing came %v", got)
	}
	if got := registry.AuthFor("busybox", registry.Auth{Password: "x", ServerAddress: "a.io"}); got.ServerAddress != "a.io" {
		t.Errorf("it is for %s now", got.ServerAddress)
	}
}

func FuzzParseNames(f *testing.F) {
	for _, s := range []string{"busybox", "a.b:1/c/d:e", "x@sha256:00", "team/app:1@" + aDigest} {
		f.Add(s, true)
		f.Add(s, false)
	}
	rules := registry.ShortNames{Mode: registry.ShortSearch, Search: []string{"a.example", "docker.io"}, Aliases: map[string]string{"team/app": "b.example/c"}}
	f.Fuzz(func(t *testing.T, s string, search bool) {
		r := rules
		if !search {
			r.Mode = registry.ShortRefuse
		}
		refs, err := registry.ParseNames(s, r)
		if err != nil {
			if !errors.Is(err, registry.ErrInvalid) {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		for _, ref := range refs {
			if again, err := registry.Parse(ref.String()); err != nil || again.String() != ref.String() {
				t.Errorf("%q: %s, then %s, %v", s, ref, again, err)
			}
		}
	})
}
