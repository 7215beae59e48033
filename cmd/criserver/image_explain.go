package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func (c *imageCommands) explain() *cobra.Command {
	var probe bool
	cmd := c.command("explain NAME", "Tell where an image would be pulled from, and why", cobra.ExactArgs(1),
		func(ctx context.Context, s *session, args []string) error {
			raw, err := s.client.Explain(ctx, args[0], probe)
			if err != nil {
				return err
			}
			var explanation map[string]any
			d := json.NewDecoder(bytes.NewReader(raw))
			d.UseNumber()
			if err := d.Decode(&explanation); err != nil {
				return fmt.Errorf("read explanation: %w", err)
			}
			return s.print(raw, func(w io.Writer) { printExplanation(w, explanation) })
		})
	cmd.Flags().BoolVar(&probe, "probe", false, "ask the registries too, whether they answer and what")
	return cmd
}

const keyEndpoints = "endpoints"

// endpointKeys is the order in which an endpoint is told of; other keys follow.
var endpointKeys = []string{"url", "from", "capabilities", "tls", "credential", "dead_until", "resolve", "pull"}

// printExplanation writes an explanation, of which it knows no more than the order: whatever else the daemon tells is shown.
func printExplanation(w io.Writer, explanation map[string]any) {
	printFields(w, "", explanation, nil, keyEndpoints)
	endpoints, ok := explanation[keyEndpoints].([]any)
	if !ok {
		return
	}
	if len(endpoints) == 0 {
		fmt.Fprintln(w, "no endpoint would be asked")
	}
	for i, e := range endpoints {
		fields, ok := e.(map[string]any)
		if !ok {
			fmt.Fprintf(w, "%d. %s\n", i+1, flat(e))
			continue
		}
		title := flat(fields["url"])
		if title == "" {
			title = "endpoint"
		}
		fmt.Fprintf(w, "%d. %s\n", i+1, title)
		printFields(w, "   ", fields, endpointKeys, "url")
	}
}

// printFields writes a line for each field that has a value: first those of order, then the others sorted, without one.
func printFields(w io.Writer, indent string, fields map[string]any, order []string, without string) {
	rest := slices.DeleteFunc(slices.Sorted(maps.Keys(fields)), func(key string) bool { return slices.Contains(order, key) })
	for _, key := range slices.Concat(order, rest) {
		text := flat(fields[key])
		if key == without || text == "" {
			continue
		}
		for line := range strings.Lines(text) {
			fmt.Fprintf(w, "%s%s:\t%s\n", indent, strings.ReplaceAll(key, "_", " "), strings.TrimSuffix(line, "\n"))
		}
	}
}

// flat writes a JSON value in a line; "" is a value that says nothing.
func flat(value any) string {
	var parts []string
	switch v := value.(type) {
	case nil:
	case bool:
		return map[bool]string{true: "yes", false: "no"}[v]
	case []any:
		for _, item := range v {
			parts = append(parts, flat(item))
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if text := flat(v[key]); text != "" {
				parts = append(parts, strings.ReplaceAll(key, "_", " ")+": "+text)
			}
		}
	default:
		return fmt.Sprint(v)
	}
	return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), ", ")
}
