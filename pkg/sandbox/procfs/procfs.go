// Package procfs reads what the kernel tells of processes below /proc.
package procfs

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Stat is a part of proc_pid_stat(5).
type Stat struct {
	Name            string
	State           byte
	Parent, Session int
	flags           uint64
}

// exiting is PF_EXITING (include/linux/sched.h).
const exiting = 0x4

// Ending tells whether the process has ended, or is about to.
func (s Stat) Ending() bool { return s.State == 'Z' || s.State == 'X' || s.flags&exiting != 0 }

// Read looks at the process that has the PID now; false if there is none.
func Read(pid int) (Stat, bool) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return Stat{}, false
	}
	// The command name is in parentheses and may contain any byte.
	text := string(data)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return Stat{}, false
	}
	fields := strings.Fields(text[end+1:])
	if len(fields) < 7 {
		return Stat{}, false
	}
	s := Stat{Name: text[open+1 : end], State: fields[0][0]}
	s.Parent, _ = strconv.Atoi(fields[1])
	s.Session, _ = strconv.Atoi(fields[3])
	s.flags, _ = strconv.ParseUint(fields[6], 10, 64)
	return s, true
}

// Children are the processes whose parent is a thread of the process, also those that have ended and are not reaped (proc_pid_task(5),
// with CONFIG_PROC_CHILDREN). An orphan comes to any thread of its reaper.
func Children(pid int) (pids []int) {
	files, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children") // of a good pattern
	for _, f := range files {
		data, _ := os.ReadFile(f) // of a thread that may have ended
		for field := range strings.FieldsSeq(string(data)) {
			if child, err := strconv.Atoi(field); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}
