package config

import (
	"math"
	"strconv"
	"testing"
)

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "0GiB": 0, "1": 1, "1048577": 1<<20 + 1, "17B": 17, "10GiB": 10 << 30, "3KiB": 3 << 10, "512 MiB": 512 << 20, "2TiB": 2 << 40,
		"10GB": 10e9, "5MB": 5e6, "7KB": 7000, "4TB": 4e12, "9223372036854775807": math.MaxInt64, "8388607TiB": 8388607 << 40,
	} {
		var got Size
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", " ", "GiB", "-1", "-5GiB", "+5", "1.5GiB", "10G", "10Gi", "10gib", "10  GiB", " 10", "10 ", "0x10", "1_000", "ten", "10GiBB",
		"9223372036854775808", "8388608TiB", "99999999999999999999GiB", "1e3", "10GiB\x00",
	} {
		got := Size(7)
		if err := got.UnmarshalText([]byte(text)); err == nil || got != 7 {
			t.Errorf("%q: %d, %v; want an error", text, got, err)
		}
	}
}

func TestSizeMarshals(t *testing.T) {
	for size, want := range map[Size]string{
		0: "0", 1: "1", 1000: "1KB", 1024: "1KiB", 1536: "1536", 10 << 30: "10GiB", 1 << 50: "1024TiB", 1_500_000_000: "1500MB",
		math.MaxInt64: "9223372036854775807", 1_024_000: "1000KiB",
	} {
		text, err := size.MarshalText()
		if err != nil || string(text) != want {
			t.Errorf("%d: %q, %v; want %q", size, text, err, want)
		}
	}
}

func FuzzSize(f *testing.F) {
	for _, text := range []string{"10GiB", "5", "7KB", "-1", "1 B"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var size, again Size
		if size.UnmarshalText([]byte(text)) != nil {
			return
		}
		out, err := size.MarshalText()
		if err == nil {
			err = again.UnmarshalText(out)
		}
		if err != nil || size < 0 || again != size {
			t.Errorf("%s is %d, written %s, read %d, %v", strconv.Quote(text), size, out, again, err)
		}
	})
}
