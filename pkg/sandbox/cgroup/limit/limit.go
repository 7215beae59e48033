// Package limit changes the limits of a cgroup that is in use: all of them or none.
//
// A change is planned first: which files are written, in the order in which the kernel takes it, and what they hold now. The
// plan is a value that can be recorded, so that whoever comes after a crash in the middle can undo it.
package limit

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup/score"
)

// Errors of For and Apply, wrapped with the file and the values; test with errors.Is.
var (
	// ErrInUse: more memory is in use than the new limit allows.
	ErrInUse = errors.New("in use")
	// ErrRefused: the kernel does not accept a value, or has no such file.
	ErrRefused = errors.New("refused by the kernel")
)

// Write is one file of a cgroup, what it is to hold, and what it held when the change was planned.
type Write struct {
	File, New, Old string
	// Processes, in the place of File, is the cgroup whose processes are to have another oom_score_adj.
	Processes string `json:",omitempty"`
}

// Score is the change of the oom_score_adj of all processes of the cgroup at path.
func Score(path string, old, score int) Write {
	return Write{Processes: path, Old: strconv.Itoa(old), New: strconv.Itoa(score)}
}

// put makes a file or the processes have a value.
func (w Write) put(value string) error {
	if w.Processes == "" {
		return write(w.File, value)
	}
	n, err := strconv.Atoi(value)
	if err != nil {
		return err
	}
	return score.SetAll(w.Processes, n)
}

// holds tells whether a file has a value.
func (w Write) holds(value string) bool {
	if w.Processes != "" {
		return false
	}
	now, err := read(w.File)
	return err == nil && now == value
}

func (w Write) String() string {
	return cmp.Or(w.File, "oom_score_adj of the processes in "+w.Processes)
}

// Plan is a change of limits, in the order of its writes.
type Plan []Write

// Apply writes the new limits. On error those that were written are put back: the limits are what they were, unless the
// error says that this failed too.
func (p Plan) Apply() error {
	for i, w := range p {
		err := w.put(w.New)
		if err == nil {
			continue
		}
		err = fmt.Errorf("write %q to %s: %w", w.New, w, refusal(err))
		if undo := p[:i+1].Undo(); undo != nil {
			err = errors.Join(err, fmt.Errorf("the change could not be taken back in full: %w", undo))
		}
		return err
	}
	return nil
}

// Undo puts back the limits from before the plan, of whatever part of it was applied. A cgroup that is gone is no error.
func (p Plan) Undo() error {
	var errs []error
	for _, w := range slices.Backward(p) {
		if w.holds(w.Old) {
			continue
		}
		if err := w.put(w.Old); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("write %q to %s: %w", w.Old, w, err))
		}
	}
	return errors.Join(errs...)
}

// refusal tells the kernel's judgement of a value from a cgroup that is gone or a file that cannot be written.
func refusal(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY): // v1, memory.limit_in_bytes below what cannot be reclaimed
		return fmt.Errorf("%w: %w", ErrInUse, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}

// write writes a value. A file of several lines takes one at a time (io.max).
func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for line := range strings.SplitSeq(value, "\n") {
		// With its newline: an empty value (v2, cpuset.cpus) needs one byte to be written at all.
		if _, err := f.WriteString(line + "\n"); err != nil {
			return err
		}
	}
	return nil
}

func read(file string) (string, error) {
	data, err := os.ReadFile(file)
	return strings.TrimSpace(string(data)), err
}

// plan collects the writes of a change to the cgroup directories of its controllers.
type plan struct {
	writes Plan
	err    error
}

// set adds a write. A file that is not there is refused, unless it is optional.
func (p *plan) set(dir, file, value string, optional ...bool) {
	if p.err != nil {
		return
	}
	path := filepath.Join(dir, file)
	old, err := read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && len(optional) > 0:
	case errors.Is(err, fs.ErrNotExist):
		if _, gone := os.Stat(dir); gone != nil {
			p.err = fmt.Errorf("read limits: %w", gone)
			return
		}
		p.err = fmt.Errorf("%s: %w: the kernel has no such limit", file, ErrRefused)
	case err != nil:
		p.err = fmt.Errorf("read limits: %w", err)
	default:
		p.writes = append(p.writes, Write{File: path, New: value, Old: old})
	}
}

// number reads a file of one number; "max" and what is no number is -1.
func (p *plan) number(dir, file string) int64 {
	if p.err != nil {
		return 0
	}
	text, err := read(filepath.Join(dir, file))
	if err != nil {
		p.err = fmt.Errorf("read limits: %w", err)
		return 0
	}
	return parse(text)
}

// checkUsage refuses a memory limit below what is in use now: cgroup v1 would refuse it in most cases, v2 would kill.
func (p *plan) checkUsage(dir, file string, limit int64) {
	if usage := p.number(dir, file); p.err == nil && limit > 0 && usage > limit {
		p.err = fmt.Errorf("memory limit %d: %w: the container uses %d bytes", limit, ErrInUse, usage)
	}
}
