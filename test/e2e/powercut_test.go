package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// flakyDisk is an ext4 file system on a device that can lose all that is written to it (dm-flakey).
type flakyDisk struct {
	t                *testing.T
	name, root       string
	good, writesLost string // tables of device-mapper
}

// newFlakyDisk gives a node that is not started such a root. The test is skipped where device-mapper cannot do it.
func newFlakyDisk(t *testing.T, n *node, mib int64) *flakyDisk {
	t.Helper()
	_ = exec.Command("modprobe", "dm-flakey").Run() // built in, or dmsetup tells
	out, err := exec.Command("/usr/sbin/dmsetup", "targets").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "flakey") {
		t.Skipf("the kernel has no dm-flakey (hack/vm/powercut.sh runs this where it has): %v %s", err, out)
	}
	d := &flakyDisk{t: t, name: fmt.Sprintf("criserver-e2e-%d", os.Getpid()), root: filepath.Join(n.dir, "root")}
	file := filepath.Join(n.dir, "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, mib<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(d.root, 0o700); err != nil {
		t.Fatal(err)
	}
	loop := run(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() { run(t, "losetup", "--detach", loop) })
	// https://docs.kernel.org/admin-guide/device-mapper/dm-flakey.html: up for ever, or down for ever
	d.good = fmt.Sprintf("0 %d flakey %s 0 3600 0", mib<<11, loop)
	d.writesLost = fmt.Sprintf("0 %d flakey %s 0 0 3600 1 drop_writes", mib<<11, loop)
	// No udev is there to wait for in a small machine.
	run(t, "dmsetup", "create", d.name, "--noudevsync", "--table", d.good)
	run(t, "dmsetup", "mknodes", d.name)
	t.Cleanup(func() { run(t, "dmsetup", "remove", "--retry", "--noudevsync", d.name) })
	run(t, "mkfs.ext4", "-q", d.device())
	run(t, "mount", d.device(), d.root)
	t.Cleanup(func() { run(t, "umount", d.root) })
	return d
}

func (d *flakyDisk) device() string { return "/dev/mapper/" + d.name }

// arm prepares the table that the next call of swap makes the device's.
func (d *flakyDisk) arm(table string) {
	d.t.Helper()
	run(d.t, "dmsetup", "load", d.name, "--table", table)
}

// swap loses what is written from now on, or ends that.
func (d *flakyDisk) swap() {
	d.t.Helper()
	// Without --nolockfs the file system would be written out first, as no power cut does.
	run(d.t, "dmsetup", "suspend", "--nolockfs", "--noudevsync", d.name)
	run(d.t, "dmsetup", "resume", "--noudevsync", d.name)
}

// restore brings the file system back as the cut left it. Nobody may use it.
func (d *flakyDisk) restore() {
	d.t.Helper()
	run(d.t, "umount", d.root)
	d.arm(d.good)
	d.swap()
	run(d.t, "mount", d.device(), d.root) // replays the journal
	run(d.t, "umount", d.root)
	run(d.t, "e2fsck", "-f", "-n", d.device()) // fails if the file system itself is damaged
	run(d.t, "mount", d.device(), d.root)
}

// TestPowerCut loses at random moments of pulls and removals what is written from then on, and looks, after a restart on what
// the disk has: the store opens, each image that is listed is whole, those are listed whose pulls had succeeded, and
// the next pulls complete. CRISERVER_E2E_POWERCUTS is how often, CRISERVER_E2E_SEED repeats a run.
func TestPowerCut(t *testing.T) {
	rng, seed := seeded(t)
	rounds := number(t, "CRISERVER_E2E_POWERCUTS", 5)
	n := newStoppedNode(t)
	disk := newFlakyDisk(t, n, 1024)
	var images []string
	for i := range 4 {
		images = append(images, checkedImage(t, fmt.Sprint("cut", i), 3, 1024))
	}
	n.serve()
	n.pullAll(t.Context(), images[:1]) // of programs that have run before the next ones are faster
	n.removeImage(images[0])
	begin := time.Now()
	if got := n.pullAll(t.Context(), images); len(got) != len(images) {
		t.Fatalf("pulled only %v\n%s", got, n.log())
	}
	span := time.Since(begin)
	t.Logf("seed %d, %d rounds; all images are pulled in %s", seed, rounds, span)
	var listed, durable int
	for round := range rounds {
		disk.arm(disk.writesLost)
		for _, name := range images {
			if rng.IntN(4) > 0 {
				n.removeImage(name)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		pulls := make(chan map[string]time.Time, 1)
		go func() { pulls <- n.pullAll(ctx, images) }()
		time.Sleep(time.Duration(rng.Float64() * float64(span)))
		before := time.Now()
		disk.swap()
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond) // it goes on, and believes that it writes
		n.kill()
		cancel()
		done := <-pulls
		disk.restore()
		n.start()
		visible := n.visible()
		for name, at := range done {
			if at.After(before) {
				continue
			}
			durable++
			if !slices.Contains(visible, name) {
				t.Errorf("round %d: %s is gone, whose pull had succeeded %s before the cut\n%s", round, name, before.Sub(at), n.log())
			}
		}
		listed += len(visible)
		t.Logf("round %d: %d pulls had succeeded, %d images are listed", round, len(done), len(visible))
		check := newChecker(n)
		for _, name := range visible {
			check.whole(name)
		}
		if got := n.pullAll(t.Context(), images); len(got) != len(images) {
			t.Fatalf("round %d: pulled after it only %v\n%s", round, got, n.log())
		}
		for _, name := range images {
			check.whole(name)
		}
		check.end()
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("after %d power cuts %d images were listed, all of them whole; %d pulls had succeeded before a cut", rounds, listed, durable)
}

// number is a positive number in the environment.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	v, err := strconv.Atoi(text)
	if err != nil || v < 1 {
		t.Fatalf("%s=%s: not a positive number", name, text)
	}
	return v
}

// seeded makes random numbers that CRISERVER_E2E_SEED repeats.
func seeded(t *testing.T) (*rand.Rand, uint64) {
	t.Helper()
	seed := uint64(number(t, "CRISERVER_E2E_SEED", int(time.Now().UnixNano()%1_000_000_000)+1))
	return rand.New(rand.NewPCG(seed, seed)), seed
}
