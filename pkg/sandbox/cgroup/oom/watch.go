package oom

import (
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup/hierarchy"
)

// Watcher remembers why processes were killed in cgroups that somebody else removes: systemd does as soon as the last process
// has ended, and the counts go with them. It learns of a kill from the kernel when it happens, on cgroup v2 only: v1 tells of it in
// another way, and systemd leaves such cgroups longer.
type Watcher struct {
	file *os.File
	root string // where cgroups are mounted

	mu      sync.Mutex
	watched map[int32]string  // cgroups by watch
	causes  map[string]string // by cgroup; "" until there is one
	// accounted are, by the cgroup above, the kills below it that were before the watching or are known to be of one that is not
	// watched any more.
	accounted map[string]int64
}

// NewWatcher returns one that watches nothing yet. Close ends it.
func NewWatcher() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch cgroups for OOM kills: %w", err)
	}
	w := &Watcher{file: os.NewFile(uintptr(fd), "inotify"), root: hierarchy.Mountpoint, watched: map[int32]string{}, causes: map[string]string{}, accounted: map[string]int64{}}
	go w.read()
	return w, nil
}

// Close ends the watching.
func (w *Watcher) Close() error { return w.file.Close() }

// Add watches a cgroup until Take.
func (w *Watcher) Add(cgroup string) error {
	if !hierarchy.Unified() {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	wd, err := unix.InotifyAddWatch(int(w.file.Fd()), filepath.Join(w.root, cgroup, unified.kills), unix.IN_MODIFY)
	if err != nil {
		return fmt.Errorf("watch cgroup %s for OOM kills: %w", cgroup, err)
	}
	w.watched[int32(wd)], w.causes[cgroup] = cgroup, ""
	if _, ok := w.accounted[path.Dir(cgroup)]; !ok {
		w.accounted[path.Dir(cgroup)] = w.kills(path.Dir(cgroup))
	}
	return nil
}

// kills are those in the cgroup and below it; 0 if it is gone.
func (w *Watcher) kills(cgroup string) int64 {
	return max(number(filepath.Join(w.root, cgroup, unified.kills), "oom_kill"), 0)
}

// Take returns what Cause would have said of a watched cgroup, which it forgets. killed tells that SIGKILL has ended it, from whom
// is not known: if the cgroup went before the kernel's word of a kill came, the count of the cgroup above decides.
func (w *Watcher) Take(cgroup string, killed bool) (cause string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	cause, watched := w.causes[cgroup]
	if !watched {
		return ""
	}
	above := path.Dir(cgroup)
	delete(w.causes, cgroup)
	siblings, unexplained := false, w.kills(above)-w.accounted[above]
	for c := range w.causes {
		if path.Dir(c) == above {
			siblings = true
			unexplained -= w.kills(c)
		}
	}
	if cause == "" && killed && unexplained > 0 {
		cause = "a memory limit was reached, of which is not known: systemd removed its cgroup at once"
	}
	if cause != "" {
		w.accounted[above] += unexplained
	}
	if !siblings {
		delete(w.accounted, above)
	}
	for wd, c := range w.watched {
		if c == cgroup {
			delete(w.watched, wd)
			_, _ = unix.InotifyRmWatch(int(w.file.Fd()), uint32(wd)) // it is gone with the file
		}
	}
	return cause
}

func (w *Watcher) read() {
	buf := make([]byte, 4096)
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			return // closed
		}
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			w.event(int32(binary.NativeEndian.Uint32(buf[at:])))
			at += unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[at+12:]))
		}
	}
}

func (w *Watcher) event(wd int32) {
	w.mu.Lock()
	cgroup, ok := w.watched[wd]
	w.mu.Unlock()
	if !ok {
		return
	}
	if cause := Cause(cgroup); cause != "" {
		w.mu.Lock()
		defer w.mu.Unlock()
		if _, ok := w.causes[cgroup]; ok {
			w.causes[cgroup] = cause
		}
	}
}
