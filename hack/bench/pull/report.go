package main

import (
	"context"
	"fmt"
	"os"

	"criserver/hack/bench/turns"
)

// columns are what is printed of the samples.
var columns = []struct {
	name     string
	decimals int
	of       func(sample) float64
}{
	{"PullImage, ms", 0, func(s sample) float64 { return 1e3 * s.pull.Seconds() }},
	{"then sync, ms", 0, func(s sample) float64 { return 1e3 * s.sync.Seconds() }},
	{"both, ms", 0, func(s sample) float64 { return 1e3 * (s.pull + s.sync).Seconds() }},
	{"CPU, ms", 0, func(s sample) float64 { return 1e3 * s.cpu.Seconds() }},
	{"of it in the kernel, ms", 0, func(s sample) float64 { return 1e3 * s.kernel.Seconds() }},
	{"written, MB", 1, func(s sample) float64 { return float64(s.written) / 1e6 }},
	{"on disk then, MB", 1, func(s sample) float64 { return float64(s.unpacked) / 1e6 }},
	{"peak RSS, MiB", 1, func(s sample) float64 { return float64(s.rss) / (1 << 20) }},
	{"peak RSS over fresh, MiB", 1, func(s sample) float64 { return float64(s.overRSSIdle) / (1 << 20) }},
	{"peak PSS, MiB", 1, func(s sample) float64 { return float64(s.pss) / (1 << 20) }},
}

// image compares the pulls of one image and prints the result.
func (b *bench) image(ctx context.Context, img shape) error {
	samples := map[*side][]sample{}
	if err := turns.Take(b.sides, 1+b.runs, func(s *side, i int) error {
		got, err := s.once(ctx, img.reference())
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if i > 0 {
			samples[s] = append(samples[s], got)
		}
		return nil
	}); err != nil {
		return err
	}
	var names []string
	for _, s := range b.sides {
		names = append(names, s.name)
	}
	var rows []turns.Row
	for _, c := range columns {
		row := turns.Row{Name: c.name, Decimals: c.decimals}
		for _, s := range b.sides {
			var values []float64
			for _, got := range samples[s] {
				values = append(values, c.of(got))
			}
			row.Values = append(row.Values, turns.Median(values))
		}
		rows = append(rows, row)
	}
	return turns.Print(os.Stdout, fmt.Sprintf("%s, median of %d", img.name, b.runs), names, rows)
}
