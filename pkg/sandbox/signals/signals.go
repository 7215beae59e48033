// Package signals reads and writes the names of signals.
package signals

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Real-time signals as programs see them: the C library keeps the first two for itself (signal(7)).
const (
	sigRTMin = 34
	sigRTMax = 64
)

// aliases are second names of signals (signal(7)).
var aliases = map[string]unix.Signal{"IOT": unix.SIGIOT, "POLL": unix.SIGPOLL, "CLD": unix.SIGCHLD}

// Name is the name of a signal that programs see, "SIGTERM" or "SIGRTMIN+3"; "" if it has none.
func Name(s unix.Signal) string {
	switch n := int(s); {
	case n == sigRTMin:
		return "SIGRTMIN"
	case n > sigRTMin && n <= (sigRTMin+sigRTMax)/2:
		return fmt.Sprintf("SIGRTMIN+%d", n-sigRTMin)
	case n > sigRTMin && n < sigRTMax:
		return fmt.Sprintf("SIGRTMAX-%d", sigRTMax-n)
	case n == sigRTMax:
		return "SIGRTMAX"
	}
	return unix.SignalName(s)
}

// Parse reads a signal as images and pods write it: "SIGTERM", "term", "15", "SIGRTMIN+3", "RTMAX-1".
func Parse(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, fmt.Errorf("unknown signal %q", s)
		}
		return unix.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return n, nil
	}
	if n, ok := aliases[name]; ok {
		return n, nil
	}
	base := map[string]int{"RTMIN": sigRTMin, "RTMAX": sigRTMax}
	for prefix, n := range base {
		offset, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		if offset != "" {
			d, err := strconv.Atoi(offset) // with its sign
			if err != nil {
				break
			}
			n += d
		}
		if n >= sigRTMin && n <= sigRTMax {
			return unix.Signal(n), nil
		}
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}
