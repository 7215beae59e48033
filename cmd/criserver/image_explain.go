package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"criserver/pkg/imagesvc/registry"
)

func (c *imageCommands) explain() *cobra.Command {
	var probe bool
	cmd := c.command("explain NAME", "Tell where an image would be pulled from, as whom, and why", cobra.ExactArgs(1),
		func(ctx context.Context, s *session, args []string) error {
			raw, err := s.client.Explain(ctx, args[0], probe)
			if err != nil {
				return err
			}
			var explanation registry.Explanation
			if err := json.Unmarshal(raw, &explanation); err != nil {
				return fmt.Errorf("read explanation: %w", err)
			}
			return s.print(raw, func(w io.Writer) { printExplanation(w, explanation) })
		})
	cmd.Flags().BoolVar(&probe, "probe", false, "ask the registries too, whether they answer and what")
	return cmd
}

// printExplanation writes an explanation, endpoint by endpoint, in the order in which they would be asked.
func printExplanation(w io.Writer, x registry.Explanation) {
	fmt.Fprintf(w, "image:\t%s\n", x.Reference)
	fmt.Fprintf(w, "configured by:\t%s\n", cmp.Or(x.Source, "nothing; the registry itself is asked"))
	if x.Error != "" {
		fmt.Fprintf(w, "error:\t%s\n", x.Error)
	}
	if len(x.Endpoints) == 0 {
		fmt.Fprintln(w, "no endpoint would be asked")
	}
	for i, e := range x.Endpoints {
		fmt.Fprintf(w, "%d. %s\n", i+1, e.URL)
		for _, line := range endpointLines(e) {
			if line[1] != "" {
				fmt.Fprintf(w, "   %s:\t%s\n", line[0], line[1])
			}
		}
	}
}

// endpointLines are what there is to say of an endpoint; those without a text are left out.
func endpointLines(e registry.EndpointExplanation) [][2]string {
	tls := e.TLS.Verify
	if len(e.TLS.CA) > 0 {
		tls += ", " + strings.Join(e.TLS.CA, ", ")
	}
	if len(e.TLS.Client) > 0 {
		tls += "; client certificate " + strings.Join(e.TLS.Client, ", ")
	}
	if e.TLS.PlainAllowed != "" {
		tls += ": " + e.TLS.PlainAllowed
	}
	lines := [][2]string{
		{"from", e.Source},
		{"tags", decision(e.Resolve)},
		{"content", decision(e.Pull)},
		{"credential", e.Credential},
		{"TLS", tls},
		{"named there", e.Rewritten},
		{"headers", strings.Join(e.Headers, ", ")},
		{"proxy", e.Proxy},
		{"dial timeout", e.DialTimeout},
	}
	if e.RestsUntil != nil {
		lines = append(lines, [2]string{"rests until", e.RestsUntil.Local().Format(time.TimeOnly) + ", because it gave no answer; others are asked first"})
	}
	if p := e.Probe; p != nil {
		answer := fmt.Sprintf("status %d after %s", p.Status, p.Took)
		if p.Error != "" {
			answer = p.Error + ", after " + p.Took
		}
		lines = append(lines, [2]string{"probe", answer})
	}
	return lines
}

func decision(d registry.Decision) string {
	if d.In {
		return "yes, " + d.Why
	}
	return "no, " + d.Why
}
