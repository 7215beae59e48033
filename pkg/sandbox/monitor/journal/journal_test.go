package journal

import (
	"encoding/binary"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// listen is a journal that takes nothing by itself.
func listen(t *testing.T) (*net.UnixConn, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	c, e := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if e != nil {
		t.Fatal(e)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, path
}

func received(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 64<<10)
	n, e := c.Read(buf)
	if e != nil {
		t.Fatal(e)
	}
	return string(buf[:n])
}

// field is a field in the form for any bytes.
func field(name, value string) string {
	return name + "\n" + string(binary.LittleEndian.AppendUint64(nil, uint64(len(value)))) + value + "\n"
}

// message is what the journal is sent for a line.
func message(before, line string) string { return before + field("MESSAGE", line) }

func TestWrite(t *testing.T) {
	c, path := listen(t)
	w, e := Open(path, map[string]string{"CONTAINER_ID": "c1", "A": "b\nPRIORITY=0"})
	if e != nil {
		t.Fatal(e)
	}
	defer w.Close()
	fields := field("A", "b\nPRIORITY=0") + field("CONTAINER_ID", "c1")
	for _, row := range []struct {
		line            string
		stderr, partial bool
		want            string
	}{
		{"hello", false, false, message(fields+"PRIORITY=6\n", "hello")},
		{"a\nb\x00\xff=", true, false, message(fields+"PRIORITY=3\n", "a\nb\x00\xff=")},
		{"part", false, true, message(fields+"PRIORITY=6\nCONTAINER_PARTIAL_MESSAGE=true\n", "part")},
		{"", false, false, message(fields+"PRIORITY=6\n", "")},
	} {
		w.Write([]byte(row.line), row.stderr, row.partial)
		if got := received(t, c); got != row.want {
			t.Errorf("%q: sent %q, want %q", row.line, got, row.want)
		}
	}
}

// A journal that does not take messages drops them and holds nobody up; when it takes some again it is told.
func TestJournalThatIsSlowOrGone(t *testing.T) {
	c, path := listen(t)
	w, e := Open(path, nil)
	if e != nil {
		t.Fatal(e)
	}
	defer w.Close()
	sent := 0
	for ; w.dropped == 0; sent++ {
		if sent > 1_000_000 {
			t.Fatal("the socket takes any number of messages")
		}
		w.Write([]byte("x"), false, false)
	}
	w.Write([]byte("x"), false, false)
	for range sent - 1 {
		received(t, c)
	}
	w.Write([]byte("after"), false, false)
	if got := received(t, c); !strings.Contains(got, "PRIORITY=4\n") || !strings.Contains(got, "criserver: 2 lines before this one") {
		t.Errorf("notice %q", got)
	}
	if got := received(t, c); !strings.HasSuffix(got, "after\n") {
		t.Errorf("after the notice %q", got)
	}
	_ = c.Close()
	w.Write([]byte("nobody"), false, false)
	if w.dropped != 1 {
		t.Errorf("%d dropped with nobody there", w.dropped)
	}
}
