package spec

import (
	"fmt"
	"strconv"
	"strings"
)

// Range are the numbers from First to Last, of CPUs or memory nodes.
type Range struct{ First, Last int }

// ParseSet reads a list such as "0-3,7" (cpuset(7), "List format").
func ParseSet(s string) ([]Range, error) {
	var out []Range
	for part := range strings.SplitSeq(s, ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		a, err := strconv.ParseUint(first, 10, 16)
		b, berr := strconv.ParseUint(last, 10, 16)
		if err != nil || berr != nil || a > b {
			return nil, fmt.Errorf(`%q is not a list such as "0-3,7"`, s)
		}
		out = append(out, Range{int(a), int(b)})
	}
	return out, nil
}
