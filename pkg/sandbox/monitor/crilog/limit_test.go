package crilog

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestLimit(t *testing.T) {
	const rate, burst, seconds = 100_000, 200_000, 10
	l, path := newLog(t)
	l.Limit(rate, burst)
	block := []byte(strings.Repeat(strings.Repeat("x", 99)+"\n", 100))
	printed := int64(0)
	now := at
	for range seconds * 100 { // ten times as much as is let through
		l.Write(Stdout, now, block)
		printed += 99 * 100
		now = now.Add(10 * time.Millisecond)
	}
	now = now.Add(5 * time.Second)
	l.Write(Stdout, now, []byte("after\n"))
	log := read(t, path)
	kept, told := int64(0), int64(0)
	for line := range strings.Lines(log) {
		_, text, _ := strings.Cut(line, " stderr F ")
		var n int64
		if _, err := fmt.Sscanf(text, "criserver: %d bytes of output were dropped before this line: more than 100000 bytes a second", &n); err == nil {
			told += n
		} else if strings.HasSuffix(line, " stdout F "+strings.Repeat("x", 99)+"\n") {
			kept += 99
		} else if !strings.HasSuffix(line, " stdout F after\n") {
			t.Fatalf("unexpected line %q", line)
		}
	}
	if want := int64(burst + rate*seconds); kept > want || kept < want*98/100 {
		t.Errorf("%d bytes were let through, want %d", kept, want)
	}
	if d := l.Dropped(); d != printed-kept || told != d {
		t.Errorf("%d bytes dropped, %d counted, %d told in the log", printed-kept, d, told)
	}
	if !strings.HasSuffix(log, "after\n") || l.Lost() != 0 {
		t.Errorf("lost %d, the log ends with %q", l.Lost(), log[len(log)-50:])
	}
}
