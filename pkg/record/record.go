// Package record keeps typed records in an SQLite database, for the packages that own them: reads are done once, at
// start, and served from memory by the owner; a write is one statement.
//
// The database is in WAL mode. Without Sync a write returns as soon as the kernel has it: it survives kill -9 of the
// process at any instruction, and a power cut leaves a database that opens, with the last instants missing
// (https://sqlite.org/wal.html, https://sqlite.org/pragma.html#pragma_synchronous). With Sync it survives the power cut.
package record

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"modernc.org/sqlite" // also registers the driver "sqlite", in pure Go
	sqlite3 "modernc.org/sqlite/lib"
)

// schemaVersion is raised when an older program could not read what this one writes.
const schemaVersion = 1

// The write-ahead log is copied into the database by the clock, if it has grown enough to be worth a disk sync: SQLite's
// own threshold is 1000 pages, and a write is a page or more. A write that comes meanwhile waits, some milliseconds.
const (
	checkpointEvery = 30 * time.Second
	checkpointAfter = 1000
)

// busyTimeout outlasts the end of a process that is being replaced by this one.
const busyTimeout = 5 * time.Second

// Options of a database.
type Options struct {
	// Sync makes each write wait until it is on the disk.
	Sync bool
}

// DB is an open database. One process at a time may have it open.
type DB struct {
	sql      *sql.DB
	reserve  *reserve
	salvaged string
	writes   atomic.Int64 // since the last checkpoint
	stop     chan struct{}
	stopOnce sync.Once
	done     sync.WaitGroup
}

// ErrDamaged says that the file is no database, or one whose content does not fit together.
var ErrDamaged = errors.New("damaged database")

// Open opens or creates the database file at path. A file that is damaged is set aside, see Salvaged; one of a newer
// version of this program is refused. If another process has the database open, Open waits up to busyTimeout for it to
// end, then refuses; the file is left alone, as it is when it cannot be read for another reason than its content.
func Open(ctx context.Context, path string, o Options) (*DB, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make record directory: %w", err)
	}
	db, err := open(ctx, path, o)
	if !errors.Is(err, ErrDamaged) {
		return db, err
	}
	aside, asideErr := setAside(path)
	if asideErr != nil {
		return nil, errors.Join(err, asideErr)
	}
	if db, err = open(ctx, path, o); err != nil {
		return nil, err
	}
	db.salvaged = aside
	return db, nil
}

func open(ctx context.Context, path string, o Options) (*DB, error) {
	// The driver sorts pragmas by name. The journal's mode, which comes after them, must not be one of them: exclusive before
	// WAL keeps the WAL's index in memory instead of in a shared file, which needs room too (wal.html, section 8).
	query := url.Values{"_pragma": {
		fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()), "locking_mode(EXCLUSIVE)", "temp_store(MEMORY)",
		"synchronous(" + map[bool]string{true: "FULL", false: "NORMAL"}[o.Sync] + ")",
		"wal_autocheckpoint(0)", // a commit that checkpoints would sync the disk
		fmt.Sprintf("journal_size_limit(%d)", logReserve),
	}, "_journal_mode": {"WAL"}}
	room, err := openReserve(path)
	if err != nil {
		return nil, err
	}
	conn, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+query.Encode())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), room.Close())
	}
	conn.SetMaxOpenConns(1) // SQLite has one writer, and there is nothing else to do
	db := &DB{sql: conn, reserve: room, stop: make(chan struct{})}
	if err := db.prepare(ctx, path); err != nil {
		if room.isFull(err) {
			err = room.explainFull(err)
		}
		return nil, errors.Join(err, conn.Close(), room.Close())
	}
	db.done.Go(db.upkeep)
	return db, nil
}

// prepare checks that the database is whole and of a known version. It writes only what is missing: the disk may be full.
func (db *DB) prepare(ctx context.Context, path string) error {
	conn, err := db.sql.Conn(ctx)
	if err != nil {
		return explain("open", path, err)
	}
	defer conn.Close()
	var version int
	if err := conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return explain("open", path, err)
	}
	if version > schemaVersion {
		return fmt.Errorf("%s has version %d, this program knows up to %d: it was written by a newer one", path, version, schemaVersion)
	}
	var verdict string
	if err := conn.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return explain("check", path, err)
	}
	if verdict != "ok" {
		return fmt.Errorf("check %s: %w: %s", path, ErrDamaged, verdict)
	}
	if version != schemaVersion {
		if _, err := conn.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", schemaVersion)); err != nil {
			return explain("open", path, err)
		}
	}
	if err := keepLog(conn); err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	// Of a version that had its index in it.
	if err := os.Remove(path + "-shm"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open %s: %w", path, err)
	}
	return db.reserve.keep(ctx, conn)
}

// keepLog leaves the log, with the room that is kept for it, when the database is closed.
func keepLog(conn *sql.Conn) error {
	return conn.Raw(func(driver any) error {
		control, ok := driver.(sqlite.FileControl)
		if !ok {
			return fmt.Errorf("driver %T has no file control", driver)
		}
		_, err := control.FileControlPersistWAL("main", 1)
		return err
	})
}

// explain names what SQLite's result code says of the file (https://sqlite.org/rescode.html); extended codes have the
// primary one in their low byte.
func explain(verb, path string, err error) error {
	var se *sqlite.Error
	if errors.As(err, &se) {
		switch se.Code() & 0xff {
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			return fmt.Errorf("%s %s: %w: %w", verb, path, ErrDamaged, err)
		case sqlite3.SQLITE_BUSY:
			return fmt.Errorf("%s %s: another process uses it: %w", verb, path, err)
		}
	}
	return fmt.Errorf("%s %s: %w", verb, path, err)
}

// setAside renames a damaged database with its log out of the way, for a person to look at.
func setAside(path string) (string, error) {
	aside := fmt.Sprintf("%s.damaged-%d", path, time.Now().Unix())
	if err := os.Rename(path, aside); err != nil {
		return "", fmt.Errorf("set damaged records aside: %w", err)
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Rename(path+suffix, aside+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("set damaged records aside: %w", err)
		}
	}
	return aside, nil
}

// Salvaged is where a damaged database was moved to when this new one was begun; "" if there was none.
func (db *DB) Salvaged() string { return db.salvaged }

// upkeep copies the log by the clock, and keeps room for it.
func (db *DB) upkeep() {
	ticker := time.NewTicker(checkpointEvery)
	defer ticker.Stop()
	for {
		select {
		case <-db.stop:
			return
		case <-ticker.C:
			// What fails now is tried again with the next write, by the next tick, or at Close.
			if db.writes.Load() < checkpointAfter {
				_ = db.keepRoom(context.Background())
				continue
			}
			_ = db.checkpointNow(context.Background())
		}
	}
}

func (db *DB) keepRoom(ctx context.Context) error {
	conn, err := db.sql.Conn(ctx)
	if err != nil {
		return fmt.Errorf("keep room: %w", err)
	}
	defer conn.Close()
	return db.reserve.keep(ctx, conn)
}

// checkpointNow copies the log into the database. The first commit after that begins the log anew and syncs it, also
// in mode NORMAL (wal.html, section 3); it is made here, so that no record's write does it.
func (db *DB) checkpointNow(ctx context.Context) error {
	conn, err := db.sql.Conn(ctx)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	defer conn.Close()
	db.writes.Store(0)
	for _, statement := range []string{"PRAGMA wal_checkpoint(PASSIVE)", fmt.Sprintf("PRAGMA user_version = %d", schemaVersion)} {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
	}
	// A checkpoint ends by truncating the database to what it has, which frees what is allocated past that.
	return db.reserve.keep(ctx, conn)
}

// exec runs a statement that changes a record, see write.
func (db *DB) exec(ctx context.Context, s *sql.Stmt, args ...any) error {
	return db.write(ctx, func() error {
		_, err := s.ExecContext(ctx, args...)
		return err
	})
}

// write changes records by fn, all or nothing. If the disk is full, and the log has used up its room, what is in it is copied to
// where there is room for it, the log begins anew, and fn is called once more.
func (db *DB) write(ctx context.Context, fn func() error) error {
	err := fn()
	if db.reserve.isFull(err) {
		if again := db.checkpointNow(ctx); again != nil {
			return db.reserve.explainFull(errors.Join(err, again))
		}
		err = fn()
	}
	if db.reserve.isFull(err) {
		return db.reserve.explainFull(err)
	}
	if err == nil {
		db.writes.Add(1)
	}
	return err
}

// Close ends the use of the database and its tables, and copies the log into the database file.
func (db *DB) Close() error {
	db.stopOnce.Do(func() { close(db.stop) })
	db.done.Wait()
	if err := errors.Join(db.settle(context.Background()), db.sql.Close(), db.reserve.Close()); err != nil {
		return fmt.Errorf("close records: %w", err)
	}
	return nil
}

// settle copies the log into the database, and makes it one that has nothing: beside a database that is replaced by hand, it
// must not count. Emptying the file would give its room away.
func (db *DB) settle(ctx context.Context) error {
	conn, err := db.sql.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	var busy, frames, copied int
	if err := conn.QueryRowContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)").Scan(&busy, &frames, &copied); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if err := db.reserve.keep(ctx, conn); err != nil {
		return err
	}
	// Otherwise closing would empty it.
	if _, err := conn.ExecContext(ctx, "PRAGMA journal_size_limit = -1"); err != nil {
		return fmt.Errorf("keep log: %w", err)
	}
	if busy != 0 || frames != copied {
		return nil // the next start reads it
	}
	return db.reserve.clearLog()
}

// Table holds the records of one kind by key. Its methods may be called at the same time.
type Table[T any] struct {
	db       *DB
	name     string
	put, del *sql.Stmt
}

// NewTable opens or creates a table. The name must be an SQL identifier.
func NewTable[T any](ctx context.Context, db *DB, name string) (*Table[T], error) {
	create := fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID", name)
	if _, err := db.sql.ExecContext(ctx, create); err != nil {
		return nil, fmt.Errorf("create table %s: %w", name, err)
	}
	t := &Table[T]{db: db, name: name}
	var err error
	if t.put, err = db.sql.PrepareContext(ctx, fmt.Sprintf("INSERT OR REPLACE INTO %s VALUES (?, ?)", name)); err != nil {
		return nil, fmt.Errorf("prepare table %s: %w", name, err)
	}
	if t.del, err = db.sql.PrepareContext(ctx, fmt.Sprintf("DELETE FROM %s WHERE key = ?", name)); err != nil {
		return nil, fmt.Errorf("prepare table %s: %w", name, err)
	}
	return t, nil
}

// Put writes a record. Like Delete it does not heed the cancelling of ctx: an interrupted statement would leave the owner
// in doubt.
func (t *Table[T]) Put(ctx context.Context, key string, v T) error {
	data, err := encode(v)
	if err != nil {
		return fmt.Errorf("encode record %s of %s: %w", key, t.name, err)
	}
	if err := t.db.exec(context.WithoutCancel(ctx), t.put, key, data); err != nil {
		return fmt.Errorf("write record %s of %s: %w", key, t.name, err)
	}
	return nil
}

// PutAll writes some records, all or none.
func (t *Table[T]) PutAll(ctx context.Context, records map[string]T) error {
	encoded := make(map[string][]byte, len(records))
	for key, v := range records {
		data, err := encode(v)
		if err != nil {
			return fmt.Errorf("encode record %s of %s: %w", key, t.name, err)
		}
		encoded[key] = data
	}
	ctx = context.WithoutCancel(ctx)
	if err := t.db.write(ctx, func() error { return t.putAll(ctx, encoded) }); err != nil {
		return fmt.Errorf("write records of %s: %w", t.name, err)
	}
	return nil
}

// putAll is one transaction.
func (t *Table[T]) putAll(ctx context.Context, encoded map[string][]byte) error {
	tx, err := t.db.sql.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	put := tx.StmtContext(ctx, t.put)
	for key, data := range encoded {
		if _, err := put.ExecContext(ctx, key, data); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	return tx.Commit()
}

// Delete removes a record; an unknown key is no error.
func (t *Table[T]) Delete(ctx context.Context, key string) error {
	if err := t.db.exec(context.WithoutCancel(ctx), t.del, key); err != nil {
		return fmt.Errorf("delete record %s of %s: %w", key, t.name, err)
	}
	return nil
}

// Load reads all records. Those that cannot be decoded are named in the error, beside which the others are returned.
func (t *Table[T]) Load(ctx context.Context) (map[string]T, error) {
	rows, err := t.db.sql.QueryContext(ctx, "SELECT key, value FROM "+t.name)
	if err != nil {
		return nil, fmt.Errorf("read table %s: %w", t.name, err)
	}
	defer rows.Close()
	out := map[string]T{}
	var errs []error
	for rows.Next() {
		var key string
		var data []byte
		if err := rows.Scan(&key, &data); err != nil {
			return out, fmt.Errorf("read table %s: %w", t.name, err)
		}
		var v T
		if err := decode(data, &v); err != nil {
			errs = append(errs, fmt.Errorf("decode record %s of %s: %w", key, t.name, err))
			continue
		}
		out[key] = v
	}
	return out, errors.Join(append(errs, rows.Err())...)
}
