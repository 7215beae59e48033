package trust

import (
	"fmt"
	"strings"
	"unicode"
)

// Bounds of an error's text, much of which anybody who may push has written.
const (
	maxReasons = 8
	maxReason  = 400
)

// report is what was found and why it did not count.
type report struct {
	found   int
	reasons []string
	more    int
}

func (r *report) add(what string, err error) {
	if len(r.reasons) == maxReasons {
		r.more++
		return
	}
	r.reasons = append(r.reasons, what+": "+printable(err.Error()))
}

// String continues a sentence.
func (r report) String() string {
	var b strings.Builder
	switch r.found {
	case 0:
		b.WriteString("no signature was found")
	case 1:
		b.WriteString("1 signature was found and does not count")
	default:
		fmt.Fprintf(&b, "%d signatures were found and none counts", r.found)
	}
	if r.found > maxSignatures {
		fmt.Fprintf(&b, " of the first %d, which are all that are looked at", maxSignatures)
	}
	if len(r.reasons) > 0 {
		b.WriteString(": " + strings.Join(r.reasons, "; "))
	}
	if r.more > 0 {
		fmt.Fprintf(&b, "; and %d more reasons", r.more)
	}
	return b.String()
}

// printable makes one line of readable length.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(text, "?"))
	if runes := []rune(text); len(runes) > maxReason {
		text = string(runes[:maxReason]) + "…"
	}
	return text
}
