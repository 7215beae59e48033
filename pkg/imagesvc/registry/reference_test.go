package registry_test

import (
	"errors"
	"strings"
	"testing"

	"criserver/pkg/imagesvc/registry"
)

func TestParse(t *testing.T) {
	const d = "@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for in, want := range map[string]string{
		"busybox":                         "docker.io/library/busybox:latest",
		"busybox:1.36":                    "docker.io/library/busybox:1.36",
		"user/app":                        "docker.io/user/app:latest",
		"index.docker.io/library/busybox": "docker.io/library/busybox:latest",
		"Quay.IO:443/org/app":             "quay.io/org/app:latest",
		"docker.io:443/busybox":           "docker.io/library/busybox:latest",
		"localhost:443/app":               "localhost:443/app:latest",
		"localhost/app":                   "localhost/app:latest",
		"localhost:5000/app":              "localhost:5000/app:latest",
		"registry.k8s.io/pause:3.10":      "registry.k8s.io/pause:3.10",
		"127.0.0.1:5000/a/b/c:x":          "127.0.0.1:5000/a/b/c:x",
		"busybox" + d:                     "docker.io/library/busybox" + d,
		"quay.io/a/b:tag" + d:             "quay.io/a/b" + d,
	} {
		ref, err := registry.Parse(in)
		if err != nil || ref.String() != want {
			t.Errorf("%s: %s, %v, want %s", in, ref, err, want)
			continue
		}
		if again, err := registry.Parse(ref.String()); err != nil || again.String() != want {
			t.Errorf("%s again: %s, %v", want, again, err)
		}
	}
	for _, bad := range []string{"", " ", "Busybox", "busybox:", "a//b", "-x", "a:b:c", "busybox@sha256:123", "https://a/b",
		"busybox@md5:d41d8cd98f00b204e9800998ecf8427e", strings.Repeat("a", 300),
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"} {
		if ref, err := registry.Parse(bad); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%q: %s, %v", bad, ref, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"busybox", "a.b:1/c/d:e", "x@sha256:00", "[::1]:5000/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := registry.Parse(s)
		if err != nil {
			return
		}
		again, err := registry.Parse(ref.String())
		if err != nil || again.String() != ref.String() || (ref.Tag() == "") == (ref.Digest() == "") {
			t.Errorf("%q: %s, then %s, %v", s, ref, again, err)
		}
	})
}
