package crilog

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// smallDisk is an ext4 file system of 4 MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	image, disk := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 4<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-m0", image}, {"mount", "-o", "loop", image, disk}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", disk).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return disk
}

// Every numbered line is in the log, whole and in its order, or its bytes are counted as lost and told of in the log.
func TestFullDisk(t *testing.T) {
	disk := smallDisk(t)
	path := filepath.Join(disk, "0.log")
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	const width = 100
	now, next := at, 0
	write := func() {
		var b bytes.Buffer
		for range 500 {
			fmt.Fprintf(&b, "%0*d\n", width, next)
			next++
		}
		now = now.Add(2 * time.Second)
		l.Write(Stdout, now, b.Bytes())
	}
	for l.Lost() < 1<<20 { // some megabytes past the end
		write()
		if next > 1_000_000 {
			t.Fatal("the disk does not fill up")
		}
	}
	full := l.Lost()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sync", "-f", disk).CombinedOutput(); err != nil {
		t.Fatalf("sync: %v: %s", err, out)
	}
	for range 3 {
		write()
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := l.Lost(); got != full {
		t.Errorf("%d bytes were lost once there was space", got-full)
	}
	checkNumbered(t, read(t, path), next, width, l.Lost())
}

var noticeText = regexp.MustCompile(`^\S+ stderr F criserver: (\d+) bytes of output were lost before this line: no space left on device$`)

func checkNumbered(t *testing.T, log string, lines, width int, lost int64) {
	t.Helper()
	last, kept, told := -1, 0, int64(0)
	for line := range strings.Lines(log) {
		line = strings.TrimSuffix(line, "\n")
		if m := noticeText.FindStringSubmatch(line); m != nil {
			n, _ := strconv.ParseInt(m[1], 10, 64)
			told += n
			continue
		}
		_, number, ok := strings.Cut(line, " stdout F ")
		n, err := strconv.Atoi(number)
		if !ok || err != nil || len(number) != width || n <= last {
			t.Fatalf("after line %d: %q", last, line)
		}
		last = n
		kept++
	}
	if want := int64(lines-kept) * int64(width); lost != want || told != want || want == 0 {
		t.Errorf("%d bytes lost, %d counted, %d told in the log", want, lost, told)
	}
	if last != lines-1 {
		t.Errorf("the last line is %d, want %d", last, lines-1)
	}
}
