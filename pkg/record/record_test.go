package record

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

type thing struct{ N int }

func openThings(t testing.TB, path string, o Options) (*DB, *Table[thing]) {
	t.Helper()
	db, err := Open(context.Background(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	things, err := NewTable[thing](context.Background(), db, "things")
	if err != nil {
		t.Fatal(err)
	}
	return db, things
}

func TestSurvivesReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b", "x.db")
	ctx := t.Context()
	db, things := openThings(t, path, Options{})
	for i := range 10 {
		if err := things.Put(ctx, strconv.Itoa(i), thing{i}); err != nil {
			t.Fatal(err)
		}
	}
	if err := things.Put(ctx, "3", thing{33}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := things.Delete(ctx, "4"); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db, things = openThings(t, path, Options{Sync: true})
	defer db.Close()
	got, err := things.Load(ctx)
	if err != nil || len(got) != 9 || got["3"].N != 33 || got["9"].N != 9 {
		t.Errorf("loaded %v, %v", got, err)
	}
	if _, ok := got["4"]; ok {
		t.Error("a deleted record came back")
	}
}

func TestBadRecordDoesNotHideTheOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db, things := openThings(t, path, Options{})
	defer db.Close()
	if err := things.Put(t.Context(), "good", thing{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.sql.Exec("INSERT INTO things VALUES ('bad', '{')"); err != nil {
		t.Fatal(err)
	}
	got, err := things.Load(t.Context())
	if err == nil || !strings.Contains(err.Error(), "bad") || got["good"].N != 1 {
		t.Errorf("loaded %v, %v", got, err)
	}
}

func TestDamagedFileIsSetAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	db, things := openThings(t, path, Options{})
	defer db.Close()
	if !strings.HasPrefix(db.Salvaged(), path+".damaged-") {
		t.Errorf("salvaged = %q", db.Salvaged())
	}
	if err := things.Put(t.Context(), "k", thing{1}); err != nil {
		t.Error(err)
	}
}

func TestNewerVersionIsRefusedAndKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db, things := openThings(t, path, Options{})
	if err := things.Put(t.Context(), "k", thing{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.sql.Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path, Options{}); err == nil || !strings.Contains(err.Error(), "99") {
		t.Fatalf("err = %v", err)
	}
	if left, _ := filepath.Glob(path + ".damaged*"); len(left) > 0 {
		t.Errorf("the records were set aside: %v", left)
	}
}

func TestDamagedPageIsFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db, things := openThings(t, path, Options{})
	for i := range 500 {
		if err := things.Put(t.Context(), strconv.Itoa(i), thing{i}); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(data[2*4096:], strings.Repeat("\xff", 4096)) // the third page; the first has the header, which stays good
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	db, things = openThings(t, path, Options{})
	defer db.Close()
	if db.Salvaged() == "" {
		t.Error("the damage was not noticed")
	}
	if got, err := things.Load(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("the new database has %d records, %v", len(got), err)
	}
}

// A database that another process uses is refused, and left where it is.
func TestSecondProcessIsRefused(t *testing.T) {
	if path := os.Getenv("RECORD_TEST_SECOND"); path != "" {
		_, err := Open(t.Context(), path, Options{})
		fmt.Printf("second: %v\n", err)
		return
	}
	path := filepath.Join(t.TempDir(), "x.db")
	db, things := openThings(t, path, Options{})
	defer db.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestSecondProcessIsRefused$")
	cmd.Env = append(os.Environ(), "RECORD_TEST_SECOND="+path)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "second: open "+path+": another process uses it") {
		t.Errorf("second process: %v, %s", err, out)
	}
	if left, _ := filepath.Glob(path + ".damaged*"); len(left) > 0 {
		t.Errorf("the second process set the records aside: %v", left)
	}
	if err := things.Put(t.Context(), "k", thing{1}); err != nil {
		t.Error(err)
	}
}

// TestSurvivesKill writes in a child that is killed in the middle: every write that it told of must be there.
func TestSurvivesKill(t *testing.T) {
	if path := os.Getenv("RECORD_TEST_WRITER"); path != "" {
		_, things := openThings(t, path, Options{})
		for i := 0; ; i++ {
			if err := things.Put(t.Context(), strconv.Itoa(i), thing{i}); err != nil {
				t.Fatal(err)
			}
			fmt.Println("wrote", i)
		}
	}
	path := filepath.Join(t.TempDir(), "x.db")
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSurvivesKill$")
		cmd.Env = append(os.Environ(), "RECORD_TEST_WRITER="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		last := -1
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			n, ok := strings.CutPrefix(scanner.Text(), "wrote ")
			if !ok {
				continue
			}
			last, _ = strconv.Atoi(n)
			if last == 200*(round+1) {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		db, things := openThings(t, path, Options{})
		got, err := things.Load(t.Context())
		if err != nil || db.Salvaged() != "" {
			t.Fatalf("after kill: %v, salvaged %q", err, db.Salvaged())
		}
		for i := range last + 1 {
			if got[strconv.Itoa(i)].N != i {
				t.Fatalf("record %d is missing of %d", i, last)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWritesDoNotSync counts the system calls of writes, in a child under strace, right after a checkpoint too.
func TestWritesDoNotSync(t *testing.T) {
	const rounds, perRound = 2, 100
	if path := os.Getenv("RECORD_TEST_TRACED"); path != "" {
		db, things := openThings(t, path, Options{})
		for range rounds {
			if err := db.checkpointNow(t.Context()); err != nil {
				t.Fatal(err)
			}
			_ = os.Remove("/record-test-writes-begin")
			for i := range perRound {
				if err := things.Put(t.Context(), strconv.Itoa(i), thing{i}); err != nil {
					t.Fatal(err)
				}
			}
			_ = os.Remove("/record-test-writes-end")
		}
		os.Exit(0)
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	dir := t.TempDir()
	log := filepath.Join(dir, "trace")
	cmd := exec.Command(strace, "-f", "-o", log, "-e", "trace=%file,%desc", os.Args[0], "-test.run=^TestWritesDoNotSync$")
	cmd.Env = append(os.Environ(), "RECORD_TEST_TRACED="+filepath.Join(dir, "x.db"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("traced writer: %v, %s", err, out)
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	writes, within := 0, false
	for line := range strings.Lines(string(data)) {
		switch {
		case strings.Contains(line, "/record-test-writes-begin"):
			within = true
		case strings.Contains(line, "/record-test-writes-end"):
			within = false
		case within && strings.Contains(line, "sync"):
			t.Errorf("a write syncs: %s", line)
		case within && strings.Contains(line, "pwrite64"):
			writes++
		}
	}
	t.Logf("%.1f pwrite64 calls a record", float64(writes)/(rounds*perRound))
	if writes < rounds*perRound {
		t.Errorf("the trace has %d writes, want %d at least", writes, rounds*perRound)
	}
}

func BenchmarkPut(b *testing.B) {
	for name, o := range map[string]Options{"kernel": {}, "disk": {Sync: true}} {
		b.Run(name, func(b *testing.B) {
			db, things := openThings(b, filepath.Join(b.TempDir(), "x.db"), o)
			defer db.Close()
			for b.Loop() {
				if err := things.Put(b.Context(), "k", thing{1}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
