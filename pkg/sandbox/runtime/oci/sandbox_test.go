package oci

import (
	"slices"
	"testing"
)

func TestParseGuests(t *testing.T) {
	got, err := parseGuests("UID       PID       PPID      PGID      C         TTY       STIME     TIME      CMD\n" +
		"0         1         0         1         0         ?         00:43     10ms      sleep\n" +
		"0         12        0         12        0         pty/4     00:43     10ms      a b\n")
	if want := []guest{{1, 0, 1}, {12, 0, 12}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "[1,12]", "PID PPID\n1 0", "PID PPID PGID\n1 x 2"} {
		if got, err := parseGuests(bad); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

func TestFamily(t *testing.T) {
	guests := []guest{
		{1, 0, 1},    // init
		{2, 1, 1},    // its child
		{10, 0, 10},  // the command
		{11, 10, 10}, // a child
		{12, 1, 10},  // an orphan
		{13, 11, 13}, // a session of its own
		{14, 1, 13},  // an orphan of that
		{15, 1, 15},  // an orphan with a session
		{20, 0, 20},  // another command
		{21, 20, 20},
	}
	f := family{pids: map[int]bool{10: true}, groups: map[int]bool{}}
	if got, want := f.grow(guests), []int{10, 11, 12, 13, 14}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	// What was known stays known, when those that told it have gone.
	if got, want := f.grow([]guest{{1, 0, 1}, {16, 1, 13}, {17, 16, 1}, {2, 1, 1}}), []int{16, 17}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	// Of a command that has ended its group is left.
	f = family{pids: map[int]bool{10: true}, groups: map[int]bool{10: true}}
	if got, want := f.grow([]guest{{1, 0, 1}, {2, 1, 1}, {12, 1, 10}, {13, 12, 13}}), []int{12, 13}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	// A command in the group of init has no group.
	f = family{pids: map[int]bool{10: true}, groups: map[int]bool{}}
	if got, want := f.grow([]guest{{1, 0, 1}, {2, 1, 1}, {10, 0, 1}, {11, 10, 1}}), []int{10, 11}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
