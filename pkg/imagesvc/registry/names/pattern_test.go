package names_test

import (
	"testing"

	"criserver/pkg/imagesvc/registry/names"
)

func TestMatch(t *testing.T) {
	const app = "registry.example/team/app:v1"
	for pattern, want := range map[string]bool{
		app:                              true, // exact
		"registry.example/team/app":      false,
		"registry.example/team/app:v10":  false,
		"registry.example/team/app:*":    true,
		"registry.example/team/app*":     true,
		"registry.example/team/*":        true,
		"registry.example/*":             true, // / too, at the end
		"registry.example/**":            true,
		"registry.example*":              true,
		"registry.example/t*":            true,
		"registry.other/*":               false,
		"example/*":                      false,
		"*":                              true,
		"**":                             true,
		"*team/app*":                     true, // a keyword
		"*app:v1*":                       true,
		"*other*":                        false,
		"*/app:v1":                       false, // else not /
		"*:v1":                           false,
		"registry.example/*:v1":          false,
		"registry.example/*/app:v1":      true,
		"registry.example/*/app:*":       true,
		"registry.example/*/*":           true,
		"registry.example/*/app*":        true,
		"registry.example/*/ap":          false,
		"registry.example/t?am/app:v[1]": true,
		"registry.example/t?am/*":        true,
		"registry.example/x?am/*":        false,
		"*/team/*":                       true,
		`registry.example/team/app\:v1`:  true,
		`registry.example/\*`:            false,
		"":                               false,
		"[":                              false,
	} {
		if got := names.Match(pattern, app); got != want {
			t.Errorf("%q: %v, want %v", pattern, got, want)
		}
	}
	digest := "registry.example/team/app@sha256:" + "0123456789abcdef"
	if !names.Match("registry.example/team/app*", digest) || names.Match("registry.example/team/app:*", digest) {
		t.Error("a digest is a tag, or no name")
	}
	for pattern, want := range map[string]bool{"a": true, "*": true, "a[b]*": true, "": false, "[": false, `a\`: false} {
		if err := names.CheckPattern(pattern); (err == nil) != want {
			t.Errorf("%q: %v", pattern, err)
		}
	}
}
