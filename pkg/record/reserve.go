package record

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// ErrFull says that the disk has no room for a record. It is an ENOSPC as well.
var ErrFull error = fullError{}

type fullError struct{}

func (fullError) Error() string        { return "no room for records on the disk" }
func (fullError) Is(target error) bool { return target == unix.ENOSPC }

// The room on the disk that a database keeps for itself in MiB, of which the log and the database file have the same: all
// that fits into the log can be copied.
const (
	logReserve  = 4 << 20
	fileReserve = logReserve
)

// maxPages is SQLite's own limit of the size of a database (https://sqlite.org/pragma.html#pragma_max_page_count).
const maxPages = 4294967294

// reserve is room on the disk that is kept for one database, so that on a full disk records can be changed and deleted,
// without which nobody could free anything. The blocks are allocated past the end of the write-ahead log and of the database
// file (FALLOC_FL_KEEP_SIZE, fallocate(2)): no other program can have them before SQLite needs them, as it could have what
// a file of its own gives back.
type reserve struct {
	path string
	// file is the database. It is opened before SQLite opens it, and closed after: closing any descriptor of a file takes
	// away the locks that the process has on it (fcntl(2)).
	file  *os.File
	short bool // by the last keep
}

func openReserve(path string) (*reserve, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &reserve{path: path, file: f}, nil
}

// keep allocates what is missing of the room. Without it the database must not become larger than what it has, so that what
// is in the log can always be copied into it. conn, of which there is one only, makes that one keep is at work at a time.
func (r *reserve) keep(ctx context.Context, conn *sql.Conn) error {
	err := errors.Join(r.keepFile(), r.keepLog())
	short := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
	if err != nil && !short && !errors.Is(err, unix.EOPNOTSUPP) { // not all file systems can; then there is none
		logrus.WithError(err).WithField("database", r.path).Warn("room for records cannot be kept on the disk")
	}
	pages := int64(maxPages)
	if short {
		var st unix.Stat_t
		if err := unix.Fstat(int(r.file.Fd()), &st); err != nil {
			return &os.PathError{Op: "stat", Path: r.path, Err: err}
		}
		var pageSize int64
		if err := conn.QueryRowContext(ctx, "PRAGMA page_size").Scan(&pageSize); err != nil {
			return fmt.Errorf("limit %s: %w", r.path, err)
		}
		const metadata = 16 << 10                         // the blocks that the file system needs for itself
		pages = max(1, (st.Blocks*512-metadata)/pageSize) // SQLite does not go below what is there
	}
	if short || r.short {
		if _, err := conn.ExecContext(ctx, fmt.Sprintf("PRAGMA max_page_count = %d", pages)); err != nil {
			return fmt.Errorf("limit %s: %w", r.path, err)
		}
	}
	if short != r.short {
		log := logrus.WithField("database", r.path)
		if short {
			log.WithError(err).Warn("the disk is full: records can be changed and deleted, new ones may have no room")
		} else {
			log.Info("the disk has room for records again")
		}
	}
	r.short = short
	return nil
}

func (r *reserve) keepFile() error {
	info, err := r.file.Stat()
	if err != nil {
		return err
	}
	err = allocate(r.file, info.Size()+fileReserve)
	if errors.Is(err, unix.ENOSPC) {
		// What a checkpoint has just truncated away is free only when the file system's journal says so.
		err = errors.Join(r.file.Sync(), allocate(r.file, info.Size()+fileReserve))
	}
	return err
}

// keepLog opens the log anew each time: SQLite makes it when it likes, and has no locks on it.
func (r *reserve) keepLog() error {
	log, err := os.OpenFile(r.path+"-wal", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer log.Close()
	return allocate(log, logReserve)
}

// clearLog makes the log one that SQLite takes for empty (fileformat2.html, section 4), without giving up its blocks. The caller
// has SQLite's lock, and all of the log has been copied.
func (r *reserve) clearLog() error {
	log, err := os.OpenFile(r.path+"-wal", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer log.Close()
	const header = 32
	if info, err := log.Stat(); err != nil || info.Size() < header {
		return err
	}
	_, err = log.WriteAt(make([]byte, header), 0)
	return err
}

// allocate gives a file, which has no holes, blocks up to size. XFS asks for free ones even if all are there.
func allocate(f *os.File, size int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err == nil && st.Blocks*512 >= size {
		return nil
	}
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "allocate", Path: f.Name(), Err: err}
		}
		return nil
	}
}

// isFull tells whether a statement had no room on the disk. Where a file system reports that late, or by another error than
// ENOSPC, SQLite calls it an I/O error.
func (r *reserve) isFull(err error) bool {
	var se *sqlite.Error
	if !errors.As(err, &se) {
		return false
	}
	switch se.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		return true
	case sqlite3.SQLITE_IOERR:
		bytes, inodes, known := r.free()
		return known && (bytes < 1<<20 || inodes == 0)
	}
	return false
}

// free is what the file system of the database has left for root.
func (r *reserve) free() (bytes, inodes uint64, known bool) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(r.file.Fd()), &st); err != nil {
		return 0, 0, false
	}
	inodes = st.Ffree
	if st.Files == 0 { // the file system does not count them
		inodes = 1
	}
	return st.Bavail * uint64(st.Bsize), inodes, true
}

// explainFull says what is full, how much is needed, and what to do.
func (r *reserve) explainFull(err error) error {
	bytes, inodes, _ := r.free()
	return fmt.Errorf("%w: the file system of %s has %d bytes and %d inodes free: delete files there until it has %d MiB more, "+
		"nothing else is needed: %w", ErrFull, r.path, bytes, inodes, (logReserve+fileReserve)>>20, err)
}

func (r *reserve) Close() error { return r.file.Close() }
