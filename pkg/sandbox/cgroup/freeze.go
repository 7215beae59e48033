package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"criserver/pkg/sandbox/cgroup/hierarchy"
)

// freezePoll is how often it is asked whether the last process has stopped: the v1 freezer tells nobody.
const freezePoll = 2 * time.Millisecond

// freezePatience is how many times it is asked before all go on for freezePoll and are frozen anew. With v1 a program that is being
// executed waits for its other threads to end, which frozen ones do not, and is not frozen itself as long as it waits.
const freezePatience = 50

// freezer is where and how a cgroup is frozen: freezer.state of v1 (kernel: cgroup-v1/freezer-subsystem.rst), cgroup.freeze and
// cgroup.events of v2 (cgroup-v2.rst).
type freezer struct{ control, frozen, thawed, state, done string }

func freezerOf(path string) freezer {
	dir := hierarchy.Dir("freezer", path)
	if hierarchy.Unified() {
		return freezer{filepath.Join(dir, "cgroup.freeze"), "1", "0", filepath.Join(dir, "cgroup.events"), "frozen 1"}
	}
	file := filepath.Join(dir, "freezer.state")
	return freezer{file, "FROZEN", "THAWED", file, "FROZEN"}
}

// Freeze stops all processes of a cgroup and returns when they have stopped. After an error they go on.
func Freeze(ctx context.Context, path string) error {
	if err := check(path); err != nil {
		return err
	}
	f := freezerOf(path)
	tick := time.NewTicker(freezePoll)
	defer tick.Stop()
	for n := 1; ; n++ {
		if n%freezePatience == 0 {
			if err := Thaw(path); err != nil {
				return fmt.Errorf("freeze cgroup %s: %w", path, err)
			}
			time.Sleep(freezePoll)
		}
		// Again each time: a v1 cgroup that a process entered meanwhile stays half frozen.
		if err := os.WriteFile(f.control, []byte(f.frozen), 0); err != nil {
			return fmt.Errorf("freeze cgroup %s: %w", path, err)
		}
		done, err := f.isFrozen()
		if err != nil {
			return errors.Join(fmt.Errorf("freeze cgroup %s: %w", path, err), Thaw(path))
		}
		if done {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("freeze cgroup %s: %w", path, context.Cause(ctx)), Thaw(path))
		}
	}
}

// Frozen tells whether all processes of a cgroup are stopped.
func Frozen(path string) (bool, error) {
	if err := check(path); err != nil {
		return false, err
	}
	return freezerOf(path).isFrozen()
}

func (f freezer) isFrozen() (bool, error) {
	state, err := os.ReadFile(f.state)
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(state)) {
		if strings.TrimSpace(line) == f.done {
			return true, nil
		}
	}
	return false, nil
}

// ThawUp lets the processes of a cgroup go on, whichever of the cgroups from there up to top was frozen. One that is above top may
// hold them still.
func ThawUp(path, top string) error {
	err := Thaw(path)
	for err == nil && strings.HasPrefix(path, strings.TrimSuffix(top, "/")+"/") && filepath.Dir(path) != "/" {
		path = filepath.Dir(path)
		err = Thaw(path)
	}
	return err
}

// Thaw lets the processes of a cgroup go on. A cgroup that is gone is no error.
func Thaw(path string) error {
	if err := check(path); err != nil {
		return err
	}
	f := freezerOf(path)
	if err := os.WriteFile(f.control, []byte(f.thawed), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("thaw cgroup %s: %w", path, err)
	}
	return nil
}
