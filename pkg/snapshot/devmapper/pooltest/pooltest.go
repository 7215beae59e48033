// Package pooltest gives tests a thin pool of the device mapper, on loop devices.
package pooltest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"criserver/pkg/snapshot/devmapper/dm"
)

// Make makes a thin pool that is there until the test's end, when no device in it may be used any more, and returns its name. It has
// data of size bytes, and features of the kernel's. It skips the test if the kernel has no device mapper.
func Make(t testing.TB, size int64, features ...string) (name string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the device mapper needs root")
	}
	_ = exec.Command("modprobe", "-aq", "loop", "dm_mod", "dm_thin_pool").Run() // built in, or else the next calls tell
	if _, err := dm.Find("criserver-no-such"); errors.Is(err, dm.ErrNone) {
		t.Skip(err)
	}
	name = fmt.Sprintf("criservertest-%d-%d", os.Getpid(), time.Now().UnixNano())
	Create(t, name, Loop(t, 16<<20), Loop(t, size), size, features...)
	t.Cleanup(func() { Remove(t, name) })
	return name
}

// Create makes a pool on block devices for metadata, which are zeros or those of a pool, and for data of size bytes.
func Create(t testing.TB, name, metadata, data string, size int64, features ...string) {
	t.Helper()
	const sector, block = 512, 128
	features = append([]string{"skip_block_zeroing"}, features...)
	Run(t, "dmsetup", "create", name, "--noudevsync", "--table",
		fmt.Sprintf("0 %d thin-pool %s %s %d 0 %d %s", size/sector, metadata, data, block, len(features), strings.Join(features, " ")))
}

// Remove takes a pool away, with the block devices of what is in it.
func Remove(t testing.TB, name string) {
	t.Helper()
	for _, device := range append(Active(t, name), name) {
		Run(t, "dmsetup", "remove", "--noudevsync", "--retry", device)
	}
}

// Active are the names of the block devices that the thin devices of a pool have.
func Active(t testing.TB, pool string) (names []string) {
	t.Helper()
	for line := range strings.Lines(Run(t, "dmsetup", "ls")) {
		if name, _, _ := strings.Cut(line, "\t"); strings.HasPrefix(name, pool+"-") {
			names = append(names, name)
		}
	}
	return names
}

// Loop is a block device of zeros, until the test's end.
func Loop(t testing.TB, size int64) (device string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size)); err != nil {
		t.Fatal(err)
	}
	device = Run(t, "losetup", "-f", "--show", file)
	t.Cleanup(func() { Run(t, "losetup", "-d", device) })
	return device
}

// Run runs a program to its end, and returns what it prints.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}
