// Package turns is what the benchmarks share: runtimes that take turns, and medians side by side.
package turns

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Dial connects to a CRI runtime and returns with it the name and version that it gives itself. The caller closes conn.
func Dial(ctx context.Context, endpoint string) (conn *grpc.ClientConn, name string, err error) {
	conn, err = grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, "", fmt.Errorf("connect to %s: %w", endpoint, err)
	}
	v, err := runtimeapi.NewRuntimeServiceClient(conn).Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		conn.Close()
		return nil, "", fmt.Errorf("ask %s for its version: %w", endpoint, err)
	}
	return conn, v.RuntimeName + " " + strings.TrimPrefix(v.RuntimeVersion, "v"), nil
}

// Take calls run n times for each side, in turn. Who goes first alternates too: the second finds the machine warmer.
func Take[S any](sides []S, n int, run func(side S, i int) error) error {
	for i := range n {
		for j := range sides {
			if err := run(sides[(i+j)%len(sides)], i); err != nil {
				return fmt.Errorf("run %d: %w", i, err)
			}
		}
	}
	return nil
}

// Median is the middle of values, of an even number the mean of the two in the middle. There must be one at least.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// Row is one thing that was measured, with a value for each side and the decimals to print.
type Row struct {
	Name     string
	Values   []float64
	Decimals int
}

// Print writes rows as a table: the sides in columns, with the ratio of each to the first.
func Print(to io.Writer, title string, sides []string, rows []Row) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, title)
	for i, s := range sides {
		fmt.Fprintf(w, "\t%c: %s", 'A'+i, s)
	}
	for i := range sides[1:] {
		fmt.Fprintf(w, "\t%c/A", 'B'+i)
	}
	fmt.Fprintln(w, "\t")
	for _, r := range rows {
		fmt.Fprint(w, r.Name)
		for _, v := range r.Values {
			fmt.Fprintf(w, "\t%.*f", r.Decimals, v)
		}
		for _, v := range r.Values[1:] {
			fmt.Fprintf(w, "\t%.2f", v/r.Values[0])
		}
		fmt.Fprintln(w, "\t")
	}
	return w.Flush()
}
