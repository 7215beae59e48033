// Package rate reads rates of network traffic as Kubernetes' annotations have them.
package rate

import (
	"fmt"
	"math/big"
	"strings"
)

// The limits of a rate are Kubernetes' own, 1 kbit/s to 1 Pbit/s.
var minRate, maxRate = big.NewRat(1_000, 1), big.NewRat(1_000_000_000_000_000, 1)

// suffixes of a quantity, as powers of ten and of two.
var (
	decimalSuffixes = map[string]int64{"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
	binarySuffixes  = map[string]uint{"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
)

// Parse reads a Kubernetes quantity (k8s.io/apimachinery/pkg/api/resource), rounded up, of bits per second.
func Parse(s string) (int64, error) {
	value, err := parseQuantity(s)
	if err != nil {
		return 0, err
	}
	if value.Cmp(minRate) < 0 || value.Cmp(maxRate) > 0 {
		return 0, fmt.Errorf("bandwidth %q is not between 1k and 1P bits per second", s)
	}
	rounded := new(big.Int).Add(value.Num(), new(big.Int).Sub(value.Denom(), big.NewInt(1)))
	return rounded.Div(rounded, value.Denom()).Int64(), nil
}

func parseQuantity(s string) (*big.Rat, error) {
	bad := fmt.Errorf("bandwidth %q is not a quantity such as 10M", s)
	number := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	suffix := s[len(number):]
	var exponent string
	if i := strings.IndexAny(s, "eE"); i > 0 && i < len(s)-1 && suffix == "" {
		number, exponent = s[:i], s[i+1:]
	}
	digits := strings.TrimLeft(number, "+-")
	if len(number)-len(digits) > 1 || len(s) > 64 || digits == "" || digits == "." || strings.Trim(digits, "0123456789.") != "" {
		return nil, bad
	}
	value, ok := new(big.Rat).SetString(number)
	if !ok {
		return nil, bad
	}
	power, ok := decimalSuffixes[suffix]
	if exponent != "" {
		// More than two digits are out of the range of rates anyway, and would cost time.
		sign := strings.TrimLeft(exponent, "+-")
		if len(exponent)-len(sign) > 1 || sign == "" || len(sign) > 2 || strings.Trim(sign, "0123456789") != "" {
			return nil, bad
		}
		_, _ = fmt.Sscan(exponent, &power)
	}
	if shift, binary := binarySuffixes[suffix]; binary {
		return value.Mul(value, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), shift))), nil
	}
	if !ok {
		return nil, bad
	}
	scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(max(power, -power)), nil)
	if power < 0 {
		return value.Mul(value, new(big.Rat).SetFrac(big.NewInt(1), scale)), nil
	}
	return value.Mul(value, new(big.Rat).SetInt(scale)), nil
}
