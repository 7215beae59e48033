package devmapper

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/devmapper/pooltest"
)

// disk is a block device that can lose what is written to it (dm-flakey).
type disk struct{ name, good, lost string }

func newDisk(t *testing.T, name string, size int64) disk {
	t.Helper()
	name = fmt.Sprintf("criserver-cut-%s-%d", name, os.Getpid())
	loop := pooltest.Loop(t, size)
	d := disk{
		name: name,
		good: fmt.Sprintf("0 %d flakey %s 0 3600 0", size/sector, loop),
		lost: fmt.Sprintf("0 %d flakey %s 0 0 3600 1 drop_writes", size/sector, loop),
	}
	pooltest.Run(t, "dmsetup", "create", name, "--noudevsync", "--table", d.good)
	pooltest.Run(t, "dmsetup", "mknodes", name)
	t.Cleanup(func() { pooltest.Run(t, "dmsetup", "remove", "--noudevsync", "--retry", name) })
	return d
}

func (d disk) path() string { return "/dev/mapper/" + d.name }

// machine has the records on one disk, and the thin pool on two.
type machine struct {
	t     *testing.T
	pool  string
	size  int64
	disks []disk // records, metadata, data
	root  string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	pooltest.Make(t, 1<<20) // skips the test
	_ = exec.Command("modprobe", "-q", "dm-flakey").Run()
	if !strings.Contains(pooltest.Run(t, "dmsetup", "targets"), "flakey") {
		t.Skip("the kernel has no dm-flakey")
	}
	m := &machine{t: t, pool: fmt.Sprintf("criservertest-cut-%d", os.Getpid()), size: 1 << 30, root: t.TempDir()}
	m.disks = []disk{newDisk(t, "records", 512<<20), newDisk(t, "metadata", 16<<20), newDisk(t, "data", m.size)}
	pooltest.Run(t, "mkfs.ext4", "-q", m.disks[0].path())
	m.on()
	t.Cleanup(m.off)
	return m
}

func (m *machine) on() {
	m.t.Helper()
	pooltest.Run(m.t, "mount", m.disks[0].path(), m.root)
	pooltest.Create(m.t, m.pool, m.disks[1].path(), m.disks[2].path(), m.size)
}

func (m *machine) off() {
	m.t.Helper()
	pooltest.Remove(m.t, m.pool)
	pooltest.Run(m.t, "umount", m.root)
}

// swap gives all disks other tables. None writes between the first and the last, but for what waits for no other disk.
func (m *machine) swap(table func(disk) string) {
	m.t.Helper()
	for _, d := range m.disks {
		pooltest.Run(m.t, "dmsetup", "load", d.name, "--table", table(d))
	}
	for _, d := range m.disks { // with --nolockfs nothing is written out, as in a power cut
		pooltest.Run(m.t, "dmsetup", "suspend", "--nolockfs", "--noudevsync", d.name)
	}
	for _, d := range m.disks {
		pooltest.Run(m.t, "dmsetup", "resume", "--noudevsync", d.name)
	}
}

// work makes and removes snapshots until it is told to end, or fails.
func work(ctx context.Context, t *testing.T, d driver, worker int, layers []digest.Digest) {
	dir := t.TempDir()
	for i := 0; ctx.Err() == nil; i++ {
		key := fmt.Sprintf("w%d-%d", worker, i)
		mounts, err := d.Prepare(ctx, key, layers[i%len(layers):])
		if err != nil {
			return
		}
		if err := snapshot.MountAll(mounts, dir); err != nil {
			return
		}
		err = os.WriteFile(filepath.Join(dir, "mine"), []byte(key), 0o600)
		if err = errors.Join(err, snapshot.Unmount(dir)); err != nil {
			return
		}
		if i%3 == 0 {
			if err := d.Remove(ctx, key); err != nil {
				return
			}
		}
	}
}

// TestPowerCut: after a power cut, what records say of the pool is so. Each device has a record and is whole, or goes.
func TestPowerCut(t *testing.T) {
	m := newMachine(t)
	o := Options{Pool: m.pool, Size: LeastSize}
	d := open(t, m.root, o)
	closed := false
	t.Cleanup(func() {
		if !closed {
			_ = d.Close(context.Background())
		}
	})
	var layers []digest.Digest
	for i := range 3 {
		layers = append(layers, commit(t, d, fmt.Sprint("f", i), strings.Repeat("x", i<<20)))
	}
	for round := range 6 {
		// All is made anew: images, and every other time what they begin as.
		d.retireIf(func(r record) bool { return r.Kind == kindImage || round%2 == 0 })
		ctx, cancel := context.WithCancel(t.Context())
		var workers sync.WaitGroup
		for worker := range 3 {
			workers.Go(func() { work(ctx, t, d, worker, layers) })
		}
		time.Sleep(time.Duration(rand.IntN(1500>>(round%3*2))) * time.Millisecond)
		m.swap(func(d disk) string { return d.lost })
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond) // it goes on, and believes that it writes
		cancel()
		workers.Wait()
		end, stop := context.WithTimeout(context.Background(), 20*time.Second)
		if err := d.Close(end); err != nil {
			t.Logf("round %d: %v", round, err)
		}
		stop()
		m.off()
		m.swap(func(d disk) string { return d.good })
		m.on()
		d = open(t, m.root, o)
		keys, err := d.Snapshots(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: %d snapshots, %d images, %d records", round, len(keys), len(d.images), d.count())
		for _, key := range keys { // their containers have ended
			if err := d.Remove(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		for i := range layers {
			key := fmt.Sprint("look-", round, "-", i)
			dir := mount(t, d, key, layers[i:]...)
			for j := range layers {
				data, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("f", j)))
				if there := j >= i; there != (err == nil) || there && string(data) != strings.Repeat("x", j<<20) {
					t.Errorf("round %d: f%d of image %d: %d bytes, %v", round, j, i, len(data), err)
				}
			}
			if names := pooltest.Run(t, "ls", dir); strings.Contains(names, "mine") {
				t.Errorf("round %d: image %d has %s", round, i, names)
			}
			if err := errors.Join(snapshot.Unmount(dir), d.Remove(t.Context(), key)); err != nil {
				t.Error(err)
			}
		}
		eventually(t, func() string {
			if n := d.count(); n != 1+len(layers) {
				return fmt.Sprintf("round %d: %d records, want an empty file system and %d images", round, n, len(layers))
			}
			return ""
		})
		if in := devicesIn(t, m.pool); in != 1+len(layers) {
			t.Errorf("round %d: %d devices without a record", round, in-1-len(layers))
		}
		if t.Failed() {
			break
		}
	}
	closed = true
	if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
