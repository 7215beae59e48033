package rate

import "testing"

func TestParse(t *testing.T) {
	for in, want := range map[string]int64{
		"1k": 1000, "10M": 10_000_000, "1Mi": 1 << 20, "1.5G": 1_500_000_000, "1000": 1000, "1e6": 1_000_000, "2E3": 2000,
		"1P": 1e15, "0.001M": 1000, "1000.5": 1001, "+5k": 5000, "1000000m": 1000,
	} {
		if got, err := Parse(in); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "k", "M10", "10 M", "10Mb", "-1M", "999", "1001T", "1E", "1e", "1e999", "1/3", "0x10", ".", "1.2.3", "1e5k", "++1k", "1_000"} {
		if got, err := Parse(in); err == nil {
			t.Errorf("%q: got %d, want an error", in, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"10M", "1e6", "1.5Gi", "-1", "1e-3", "99999999999999999999E"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if rate, err := Parse(s); err == nil && (rate < 1000 || rate > 1e15) {
			t.Errorf("%q: %d is out of range", s, rate)
		}
	})
}
