package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"criserver/pkg/snapshot"
	"criserver/pkg/snapshot/quota"
	"criserver/pkg/snapshot/quota/quotatest"
	"criserver/pkg/snapshot/snapshottest"
)

func TestConformanceWithQuotas(t *testing.T) {
	for _, kind := range quotatest.Kinds {
		var roots sync.Map // *testing.T to its file system
		snapshottest.Run(t, kind.Name, func(t *testing.T) snapshot.Snapshotter {
			root, ok := roots.Load(t)
			if !ok {
				root = quotatest.Mount(t, kind)
				roots.Store(t, root)
			}
			s, err := New(root.(string), Options{MeasureEvery: time.Millisecond, WritableBytes: 100 << 20, WritableInodes: 1000})
			if err != nil {
				t.Fatal(err)
			}
			if s.projects == nil {
				t.Fatal("no projects")
			}
			return s
		})
	}
}

// eachQuota runs a test on each file system with project quotas.
func eachQuota(t *testing.T, run func(t *testing.T, root string)) {
	for _, kind := range quotatest.Kinds {
		t.Run(kind.Name, func(t *testing.T) { run(t, quotatest.Mount(t, kind)) })
	}
}

func prepare(t testing.TB, s *Snapshotter, key string, layers ...digest.Digest) []snapshot.Mount {
	t.Helper()
	mounts, err := s.Prepare(t.Context(), key, layers)
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

func usageOf(t testing.TB, s *Snapshotter, key string) snapshot.Measurement {
	t.Helper()
	m, err := s.Usage(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// settledUsage waits until xfs has freed the files that overlayfs makes and removes when it is mounted.
func settledUsage(t testing.TB, s *Snapshotter, key string) snapshot.Measurement {
	t.Helper()
	last := usageOf(t, s, key)
	for same := 0; same < 20; same++ {
		time.Sleep(10 * time.Millisecond)
		if m := usageOf(t, s, key); m.Usage != last.Usage {
			last, same = m, 0
		}
	}
	return last
}

func projectOf(t testing.TB, s *Snapshotter, key string) uint32 {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshots[key].Project
}

func wantFull(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, unix.EDQUOT) && !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write beyond the limit: %v, want EDQUOT or ENOSPC", err)
	}
}

// waitFree waits until the project counts nothing: a sweep has to come by, and xfs to free inodes.
func waitFree(t *testing.T, s *Snapshotter, id uint32) {
	t.Helper()
	var usage quota.Usage
	var limits quota.Limits
	for range 1000 {
		var err error
		if usage, limits, err = s.projects.fs.Get(id); err != nil {
			t.Fatal(err)
		}
		s.projects.mu.Lock()
		_, taken := s.projects.taken[id]
		s.projects.mu.Unlock()
		if !taken && usage == (quota.Usage{}) && limits == (quota.Limits{}) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("project %d is not free: %+v, %+v", id, usage, limits)
}

// The writes are those of a process with all capabilities: overlayfs keeps it below the limit nevertheless.
func TestQuotaCountsAndLimits(t *testing.T) {
	eachQuota(t, func(t *testing.T, root string) {
		s, _ := open(t, root, Options{WritableBytes: 10 << 20, WritableInodes: 50})
		layer := commit(t, s, "layer", directories(0o755, 0, "etc"))
		rootfs := mountAt(t, prepare(t, s, "a", layer))
		other := mountAt(t, prepare(t, s, "b", layer))
		before := settledUsage(t, s, "a")
		const size = 5 << 20
		if err := os.WriteFile(filepath.Join(rootfs, "etc/five"), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		after := usageOf(t, s, "a")
		// One more: the copy of the image's directory etc.
		if grown := after.Bytes - before.Bytes; grown < size || grown > size+16<<10 || after.Inodes != before.Inodes+2 {
			t.Errorf("usage %+v after %+v and %d bytes", after, before, size)
		}
		if age := time.Since(after.Measured); age < 0 || age > time.Minute {
			t.Errorf("measured %v ago", age)
		}
		wantFull(t, os.WriteFile(filepath.Join(rootfs, "twenty"), make([]byte, 20<<20), 0o600))
		if full := usageOf(t, s, "a"); full.Bytes > 10<<20 {
			t.Errorf("usage %+v beyond the limit", full)
		}
		if err := os.WriteFile(filepath.Join(other, "five"), make([]byte, size), 0o600); err != nil {
			t.Errorf("another container: %v", err)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(rootfs, &st); err != nil || int64(st.Blocks)*st.Bsize != 10<<20 {
			t.Errorf("the container sees a file system of %d bytes, %v; want its limit", int64(st.Blocks)*st.Bsize, err)
		}
		var err error
		for i := 0; err == nil && i < 50; i++ {
			err = os.WriteFile(filepath.Join(other, fmt.Sprint(i)), nil, 0o600)
		}
		wantFull(t, err)
	})
}

// A volume is of its snapshot's project, in which both together have one limit. Who has CAP_SYS_RESOURCE is above it on ext4, so that
// the limit is seen here by the layer, where nobody is.
func TestVolumeIsOfTheProject(t *testing.T) {
	eachQuota(t, func(t *testing.T, root string) {
		s, _ := open(t, root, Options{WritableBytes: 10 << 20})
		rootfs := mountAt(t, prepare(t, s, "a", commit(t, s, "layer", nil)))
		id := projectOf(t, s, "a")
		for _, name := range []string{"0", "1"} {
			dir, err := s.Volume(t.Context(), "a", name)
			if err == nil {
				err = os.MkdirAll(filepath.Join(dir, "below"), 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{filepath.Dir(dir), dir, filepath.Join(dir, "below")} {
				if got, err := quota.Project(path); err != nil || got != id {
					t.Errorf("%s is of project %d, %v; want %d", path, got, err, id)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "below/four"), make([]byte, 4<<20), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		wantFull(t, os.WriteFile(filepath.Join(rootfs, "four"), make([]byte, 4<<20), 0o600))
	})
}

func TestRemovalFreesTheProject(t *testing.T) {
	eachQuota(t, func(t *testing.T, root string) {
		s, _ := open(t, root, Options{WritableBytes: 10 << 20})
		layer := commit(t, s, "layer", nil)
		target := mountAt(t, prepare(t, s, "a", layer))
		if err := os.WriteFile(filepath.Join(target, "five"), make([]byte, 5<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		id := projectOf(t, s, "a")
		if id < DefaultProjects.First || id > DefaultProjects.Last {
			t.Errorf("project %d is not of the range", id)
		}
		if err := snapshot.Unmount(target); err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		waitEmpty(t, filepath.Join(root, trashDir))
		waitFree(t, s, id)
		if prepare(t, s, "a", layer); projectOf(t, s, "a") == id {
			t.Errorf("project %d is used again at once", id)
		}
	})
}

func TestProjectsOutliveARestart(t *testing.T) {
	eachQuota(t, func(t *testing.T, root string) {
		s, closeIt := open(t, root, Options{WritableBytes: 10 << 20})
		layer := commit(t, s, "layer", nil)
		ids := map[uint32]string{}
		note := func(key string) {
			t.Helper()
			id := projectOf(t, s, key)
			if other, taken := ids[id]; id == 0 || taken {
				t.Errorf("%s has project %d, as has %q", key, id, other)
			}
			ids[id] = key
		}
		for _, key := range []string{"a", "b", "c", "torn"} {
			prepare(t, s, key, layer)
			note(key)
		}
		gone, torn := projectOf(t, s, "c"), projectOf(t, s, "torn")
		busy := filepath.Join(s.snapshotPath("c"), upperDir, "busy") // keeps the sweeper from the tree
		if err := errors.Join(os.Mkdir(busy, 0o755), unix.Mount("none", busy, "tmpfs", 0, "")); err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		trashed, err := filepath.Glob(filepath.Join(root, trashDir, "c-*", upperDir, "busy"))
		if err != nil || len(trashed) != 1 {
			t.Fatalf("in trash: %q, %v", trashed, err)
		}
		before := projectOf(t, s, "a")
		closeIt()
		if err := os.Remove(filepath.Join(s.snapshotPath("torn"), snapshotRec)); err != nil {
			t.Fatal(err)
		}
		s, _ = open(t, root, Options{WritableBytes: 10 << 20})
		if after := projectOf(t, s, "a"); after != before {
			t.Errorf("project %d, was %d", after, before)
		}
		waitFree(t, s, torn)
		delete(ids, torn)
		for _, key := range []string{"d", "e", "f"} {
			prepare(t, s, key, layer)
			note(key)
		}
		if err := unix.Unmount(trashed[0], 0); err != nil {
			t.Fatal(err)
		}
		s.sweeper.Wake()
		waitFree(t, s, gone)
		wantFull(t, os.WriteFile(filepath.Join(mountAt(t, prepare(t, s, "g", layer)), "f"), make([]byte, 20<<20), 0o600))
		mounts, err := s.Mounts(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		wantFull(t, os.WriteFile(filepath.Join(mountAt(t, mounts), "f"), make([]byte, 20<<20), 0o600))
	})
}

func TestLimitsNeedQuotas(t *testing.T) {
	root := quotatest.Mount(t, quotatest.Ext4.Off())
	for _, o := range []Options{{WritableBytes: 1 << 30}, {WritableInodes: 1000}} {
		s, err := New(root, o)
		if err == nil {
			t.Fatal(s.Close(t.Context()))
		}
		if !strings.Contains(err.Error(), "prjquota") || !strings.Contains(err.Error(), root) {
			t.Errorf("error does not tell what to do: %v", err)
		}
	}
	s, closeIt := open(t, root, Options{MeasureEvery: time.Millisecond})
	if s.projects != nil {
		t.Error("projects without quotas")
	}
	closeIt()
	for _, o := range []Options{
		{WritableBytes: -1}, {WritableInodes: -1}, {MeasureEvery: -1}, {Projects: Projects{0, 5}}, {Projects: Projects{6, 5}},
	} {
		if _, err := New(root, o); !errors.Is(err, snapshot.ErrInvalid) {
			t.Errorf("%+v: %v, want %v", o, err, snapshot.ErrInvalid)
		}
	}
}

func TestQuotasThatOnlyCount(t *testing.T) {
	for _, kind := range quotatest.Kinds {
		t.Run(kind.Name, func(t *testing.T) {
			root := quotatest.Mount(t, kind.Unlimited())
			if _, err := New(root, Options{WritableBytes: 1 << 30}); err == nil || !strings.Contains(err.Error(), "not enforced") {
				t.Errorf("with a limit: %v", err)
			}
			s, _ := open(t, root, Options{})
			prepare(t, s, "a")
			if projectOf(t, s, "a") == 0 {
				t.Error("no project")
			}
			if u := usageOf(t, s, "a"); u.Inodes != 2 {
				t.Errorf("usage %+v, want the upper and the work directory", u)
			}
		})
	}
}

// IDs of other programs are left alone, and snapshots of another range keep theirs.
func TestForeignProjects(t *testing.T) {
	eachQuota(t, func(t *testing.T, root string) {
		volume := filepath.Join(root, "volume")
		if err := errors.Join(os.Mkdir(volume, 0o755), quota.Assign(volume, 100)); err != nil {
			t.Fatal(err)
		}
		below := filepath.Join(volume, "criserver") // a root in a project, which it hands on
		s, closeIt := open(t, below, Options{Projects: Projects{98, 103}, WritableBytes: 1 << 20})
		for _, key := range []string{"a", "b", "c", "d", "e"} {
			if prepare(t, s, key); projectOf(t, s, key) == 100 {
				t.Errorf("%s has the project of another program", key)
			}
		}
		if _, err := s.Prepare(t.Context(), "f", nil); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("a snapshot too many: %v", err)
		}
		if _, err := s.View(t.Context(), "view", nil); err != nil {
			t.Error(err)
		}
		limit := quota.Limits{Bytes: 400 << 20}
		if err := s.projects.fs.Limit(100, limit); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"a", "view"} {
			if err := s.Remove(t.Context(), key); err != nil {
				t.Error(err)
			}
		}
		waitEmpty(t, filepath.Join(below, trashDir))
		b := projectOf(t, s, "b")
		closeIt()
		s, _ = open(t, below, Options{Projects: Projects{200, 201}})
		if projectOf(t, s, "b") != b {
			t.Errorf("project %d, was %d", projectOf(t, s, "b"), b)
		}
		for _, key := range []string{"g", "h", "i"} {
			prepare(t, s, key)
		}
		if projectOf(t, s, "h") != 0 && projectOf(t, s, "i") != 0 { // the trial at the start may still hold one of two
			t.Error("more projects than the range has")
		}
		usageOf(t, s, "i")
		if err := s.Remove(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
		waitFree(t, s, b)
		if _, got, err := s.projects.fs.Get(100); err != nil || got != limit {
			t.Errorf("limit of another program's project: %+v, %v; was %+v", got, err, limit)
		}
	})
}

// A snapshot made before there were quotas goes on, measured by walks.
func TestSnapshotWithoutProject(t *testing.T) {
	eachQuota(t, func(t *testing.T, root string) {
		s, closeIt := open(t, root, Options{})
		layer := commit(t, s, "layer", nil)
		prepare(t, s, "old", layer)
		for _, dir := range []string{upperDir, workDir} {
			if err := quota.Assign(filepath.Join(s.snapshotPath("old"), dir), 0); err != nil {
				t.Fatal(err)
			}
		}
		closeIt()
		s, _ = open(t, root, Options{MeasureEvery: time.Millisecond})
		prepare(t, s, "new", layer)
		if projectOf(t, s, "old") != 0 || projectOf(t, s, "new") == 0 {
			t.Errorf("projects %d and %d", projectOf(t, s, "old"), projectOf(t, s, "new"))
		}
		for range 1000 {
			if !usageOf(t, s, "old").Measured.IsZero() {
				break
			}
			time.Sleep(time.Millisecond)
		}
		old, fresh := usageOf(t, s, "old"), usageOf(t, s, "new")
		if old.Inodes != 1 || fresh.Inodes != 2 {
			t.Errorf("usage %+v and %+v", old, fresh)
		}
		totals, err := s.Totals(t.Context())
		if err != nil || totals.Writable.Usage != old.Usage.Add(fresh.Usage) {
			t.Errorf("totals %+v, %v; want %+v", totals, err, old.Usage.Add(fresh.Usage))
		}
	})
}

func TestTotalEndsWithTheContext(t *testing.T) {
	p := &projects{round: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.total(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("total: %v", err)
	}
	p.sum.Bytes = 7
	if got, err := p.total(t.Context()); err != nil || got.Bytes != 7 {
		t.Errorf("total while a round takes long: %+v, %v", got, err)
	}
}

func TestClaimGoesRound(t *testing.T) {
	p := &projects{ids: Projects{1<<32 - 2, 1<<32 - 1}, next: 1<<32 - 2, taken: map[uint32]bool{}}
	a, b, none := p.claim(), p.claim(), p.claim()
	if a != 1<<32-2 || b != 1<<32-1 || none != 0 {
		t.Errorf("claims %d, %d, %d", a, b, none)
	}
	p.unclaim(b)
	if again := p.claim(); again != b {
		t.Errorf("claim %d, want %d", again, b)
	}
}

func BenchmarkQuota(b *testing.B) {
	for _, kind := range quotatest.Kinds {
		b.Run(kind.Name, func(b *testing.B) {
			s, _ := open(b, quotatest.Mount(b, kind), Options{WritableBytes: 1 << 30})
			layer := commit(b, s, "layer", nil)
			b.Run("PrepareRemove", func(b *testing.B) {
				for b.Loop() {
					prepare(b, s, "key", layer)
					if err := s.Remove(b.Context(), "key"); err != nil {
						b.Fatal(err)
					}
				}
			})
			ids := make([]uint32, 0, 1000)
			for i := range cap(ids) {
				key := fmt.Sprint("n", i)
				prepare(b, s, key, layer)
				ids = append(ids, projectOf(b, s, key))
			}
			b.Run("Read1000", func(b *testing.B) {
				for b.Loop() {
					if _, err := s.projects.read(ids); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("Usage", func(b *testing.B) {
				for b.Loop() {
					usageOf(b, s, "n500")
				}
			})
			b.Run("Totals", func(b *testing.B) {
				for b.Loop() {
					if _, err := s.Totals(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
