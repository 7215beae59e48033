package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes. In a file it is a plain integer, or a string of an integer and a unit such as "10GiB".
// Only a string is checked when it is read: Validate must refuse negative integers.
type Size int64

// sizeUnits are the units of a Size, each after those that are a multiple of it, the binary ones first: MarshalText takes
// the first that fits.
var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1},
}

// UnmarshalText takes an integer that is not negative, with or without a unit, of which KiB, MiB, GiB and TiB are powers
// of 1024, and KB, MB, GB and TB powers of 1000.
func (s *Size) UnmarshalText(text []byte) error {
	number, unit := string(text), int64(1)
	for _, u := range sizeUnits {
		if digits, found := strings.CutSuffix(number, u.name); found {
			number, unit = strings.TrimSuffix(digits, " "), u.bytes
			break
		}
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil || int64(n) > math.MaxInt64/unit {
		return fmt.Errorf("%q is not a size such as 1048576, \"512MiB\" or \"10GB\"", text)
	}
	*s = Size(int64(n) * unit)
	return nil
}

// MarshalText is the opposite of UnmarshalText: the largest unit in which the size is an integer.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && u.bytes > 1 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
