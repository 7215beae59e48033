package credential

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"criserver/pkg/imagesvc/opfile"
)

const (
	// maxFile bounds what is read of a file that was named by mistake.
	maxFile = 1 << 20
	// settled is how old a change must be to be told from the next one: file systems stamp with the kernel's tick, and some with
	// whole seconds.
	settled = 2 * time.Second
)

// watched is what was made of a file or a directory of files, made anew when one has changed.
type watched[T any] struct {
	path string
	// pick lists the files in a directory; nil: the path must be a file.
	pick  func(name string) bool
	parse func(documents []document) (T, error)

	mu    sync.Mutex
	stamp string // "": nothing is known
	value T
	err   error
}

// document is a file's name and content.
type document struct {
	path string
	data []byte
}

// get reads what has changed. A missing file is an error of kind os.ErrNotExist.
func (w *watched[T]) get() (T, error) {
	var none T
	files, err := w.files()
	if err != nil {
		return none, err
	}
	stamp, fresh, err := stampOf(files)
	if err != nil {
		return none, err
	}
	w.mu.Lock()
	if w.stamp == stamp {
		defer w.mu.Unlock()
		return w.value, w.err
	}
	w.mu.Unlock()
	var documents []document
	for _, file := range files {
		data, err := opfile.Read(file, maxFile)
		if err != nil {
			return none, err
		}
		documents = append(documents, document{file, data})
	}
	value, err := w.parse(documents)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stamp, w.value, w.err = stamp, value, err
	if fresh {
		w.stamp = "" // may be written once more without a trace
	}
	return value, err
}

func (w *watched[T]) files() ([]string, error) {
	info, err := opfile.Stat(w.path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() || w.pick == nil {
		return []string{w.path}, nil
	}
	entries, err := opfile.ReadDir(w.path)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if !e.IsDir() && w.pick(e.Name()) {
			files = append(files, filepath.Join(w.path, e.Name()))
		}
	}
	slices.Sort(files)
	return files, nil
}

// stampOf changes with the files. fresh: so lately that the next change might not be seen.
func stampOf(files []string) (stamp string, fresh bool, err error) {
	var b strings.Builder
	for _, file := range files {
		state, err := opfile.StampOf(file)
		if err != nil {
			return "", false, err
		}
		fresh = fresh || time.Since(state.Changed()) < settled
		fmt.Fprintf(&b, "%q %v\n", file, state)
	}
	return b.String() + ".", fresh, nil
}

func isMissing(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}
