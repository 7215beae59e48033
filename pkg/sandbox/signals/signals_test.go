package signals

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	for s, want := range map[string]unix.Signal{
		"SIGTERM": 15, "TERM": 15, "sigquit": 3, "9": 9, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "rtmax-1": 63, "64": 64,
	} {
		if got, err := Parse(s); got != want || err != nil {
			t.Errorf("Parse(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for n := unix.Signal(1); n <= 64; n++ {
		name := Name(n)
		if got, err := Parse(name); n != 32 && n != 33 && (got != n || err != nil) {
			t.Errorf("signal %d is %q, which is %d, %v", n, name, got, err)
		}
	}
	for _, s := range []string{"", "SIGNONE", "0", "65", "-1", "SIGRTMIN+31", "SIGRTMAX+1", "RTMIN+x"} {
		if got, err := Parse(s); err == nil {
			t.Errorf("Parse(%q) = %d, want an error", s, got)
		}
	}
}
