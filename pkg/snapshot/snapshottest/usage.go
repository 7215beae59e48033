package snapshottest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/snapshot"
)

func testUsage(t *testing.T, f *fixture) {
	chain := []digest.Digest{digest.FromString(t.Name())}
	stage, err := f.Stage(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	want := snapshot.Usage{Bytes: 12345, Inodes: 67}
	if err := stage.Commit(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if got, err := f.Layer(t.Context(), chain); err != nil || got != want {
		t.Errorf("layer usage %+v, %v; want %+v", got, err, want)
	}
	root := f.prepare("usage", chain)
	before := f.settled("usage")
	const size = 1 << 20
	if err := os.WriteFile(filepath.Join(root, "big"), make([]byte, size), 0o644); err != nil {
		t.Fatal(err)
	}
	after := f.settled("usage")
	if grown := after.Bytes - before.Bytes; grown < size || grown > 2*size || after.Inodes != before.Inodes+1 {
		t.Errorf("usage %+v, then %+v with one more file of %d bytes", before, after, size)
	}
	if err := os.Remove(filepath.Join(root, "big")); err != nil {
		t.Fatal(err)
	}
	if again := f.settled("usage"); again.Usage != before.Usage {
		t.Errorf("usage %+v, want %+v as before the file that is removed", again, before)
	}
	f.unmount(root)
	f.remove("usage")
	f.prepare("usage", chain)
	if again := f.settled("usage"); again.Bytes >= size {
		t.Errorf("usage %+v of another snapshot by the same key", again)
	}
}

// measured returns the first usage that was measured later than the call.
func (f *fixture) measured(key string) snapshot.Measurement {
	f.t.Helper()
	start := time.Now()
	var m snapshot.Measurement
	f.eventually(func() string {
		var err error
		if m, err = f.Usage(f.t.Context(), key); err != nil {
			f.t.Fatal(err)
		}
		if m.Measured.IsZero() && m.Usage != (snapshot.Usage{}) {
			f.t.Fatalf("usage %+v has never been measured", m)
		}
		if !m.Measured.After(start) {
			return fmt.Sprintf("usage of %s is %+v, measured before %v", key, m, start)
		}
		return ""
	})
	return m
}

// settled returns a usage that stays for a while: file systems may free in the background, as xfs does with inodes.
func (f *fixture) settled(key string) snapshot.Measurement {
	f.t.Helper()
	last, same := f.measured(key), 0
	f.eventually(func() string {
		m := f.measured(key)
		if same++; m.Usage != last.Usage {
			last, same = m, 0
		}
		if same < 10 {
			return fmt.Sprintf("usage of %s changes all the time, last to %v", key, last)
		}
		return ""
	})
	return last
}

// eventually waits until check has nothing to say.
func (f *fixture) eventually(check func() string) {
	f.t.Helper()
	said := check()
	for deadline := time.Now().Add(time.Minute); said != "" && time.Now().Before(deadline); said = check() {
		time.Sleep(5 * time.Millisecond)
	}
	if said != "" {
		f.t.Fatal(said)
	}
}

func testTotals(t *testing.T, f *fixture) {
	f.wantTotals(snapshot.Usage{}, 0, 0)
	sizes := []snapshot.Usage{{Bytes: 1000, Inodes: 10}, {Bytes: 200, Inodes: 2}, {Bytes: 30, Inodes: 0}}
	var chain []digest.Digest
	var layers snapshot.Usage
	for i, usage := range sizes {
		chain = append(chain, digest.FromString(fmt.Sprint(t.Name(), i)))
		stage, err := f.Stage(t.Context(), chain)
		if err != nil {
			t.Fatal(err)
		}
		if err := stage.Commit(t.Context(), usage); err != nil {
			t.Fatal(err)
		}
		if err := stage.Abort(t.Context()); err != nil {
			t.Fatal(err)
		}
		layers = layers.Add(usage)
	}
	f.wantTotals(layers, 0, 0)
	const size = 1 << 20
	roots := []string{f.prepare("a", chain), f.prepare("b", chain[:1]), f.view("c", chain)}
	for _, root := range roots[:2] {
		if err := os.WriteFile(filepath.Join(root, "big"), make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f.wantTotals(layers, 2*size, 3*size)
	f.unmount(roots[1])
	f.remove("b")
	f.wantTotals(layers, size, 2*size-1)
	if err := f.RemoveLayer(t.Context(), chain[0]); err == nil {
		t.Error("a used layer is removed")
	}
	f.wantTotals(layers, size, 2*size-1)
	f.stop()
	f.start()
	f.wantTotals(layers, size, 2*size-1)
	for i, key := range []string{"a", "", "c"} {
		if key != "" {
			f.unmount(roots[i])
			f.remove(key)
		}
	}
	for _, layer := range slices.Backward(chain) {
		if err := f.RemoveLayer(t.Context(), layer); err != nil {
			t.Error(err)
		}
	}
	f.wantTotals(snapshot.Usage{}, 0, 0)
}

// wantTotals waits until the snapshots take between the given numbers of bytes. Of the layers it takes no other answer.
func (f *fixture) wantTotals(layers snapshot.Usage, least, most int64) {
	f.t.Helper()
	f.eventually(func() string {
		got, err := f.Totals(f.t.Context())
		if err != nil || got.Layers != layers {
			f.t.Fatalf("totals %+v, %v; want layers %+v", got, err, layers)
		}
		written := got.Writable.Add(got.Apart)
		if written.Measured.IsZero() || written.Bytes < least || written.Bytes > most {
			return fmt.Sprintf("totals %+v, want %d to %d bytes of snapshots", got, least, most)
		}
		return ""
	})
}
