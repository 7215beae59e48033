package cri

import (
	"errors"
	"fmt"
	"testing"
)

func TestDecodePodCIDRs(t *testing.T) {
	for in, want := range map[string]string{
		"":                            "[]",
		"10.244.1.0/24":               "[10.244.1.0/24]",
		"10.244.1.7/24":               "[10.244.1.0/24]",
		"10.244.1.0/24,fd00::/64":     "[10.244.1.0/24 fd00::/64]",
		" fd00::/64 , 10.244.1.0/24 ": "[fd00::/64 10.244.1.0/24]",
	} {
		if got, err := decodePodCIDRs(in); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%q: got %v, %v, want %s", in, got, err, want)
		}
	}
	for _, in := range []string{",", "10.244.1.0", "10.244.1.0/33", "10.244.1.0/24,", "10.244.1.0/24;fd00::/64", "fe80::1%eth0/64", "x"} {
		if got, err := decodePodCIDRs(in); !errors.Is(err, errInvalid) {
			t.Errorf("%q: got %v, %v, want that it is invalid", in, got, err)
		}
	}
}
