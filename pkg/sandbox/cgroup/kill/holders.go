package kill

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"criserver/pkg/sandbox/procfs"
)

// maxHolders is how many processes a message names.
const maxHolders = 3

// Holders tells in words which processes of the cgroup directory have not ended and what they wait for, "" if there are
// none: the ones that no signal reaches first. It reads only what the kernel tells without a lock of the process, which may be
// what hangs.
func Holders(dir string) string {
	pids, err := Pids(dir)
	if err != nil || len(pids) == 0 {
		return ""
	}
	var found []process
	for _, pid := range pids {
		if p, ok := inspect(pid); ok {
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		return ""
	}
	slices.SortStableFunc(found, func(a, b process) int { return cmp.Compare(rank(a.state), rank(b.state)) })
	var words []string
	for _, p := range found[:min(len(found), maxHolders)] {
		words = append(words, p.String())
	}
	if more := len(found) - maxHolders; more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	if frozen := frozenBy(dir); frozen != "" {
		words = append(words, "as cgroup "+frozen+" is frozen")
	}
	return strings.Join(words, ", ")
}

// frozenBy is the path of the highest cgroup above the directory that keeps what is below from ending, "" if there is none: one
// that is frozen itself, of v1. In a frozen cgroup of v2 SIGKILL ends processes.
func frozenBy(dir string) (path string) {
	top := Dir("/")
	for dir = filepath.Dir(dir); strings.HasPrefix(dir, top+"/"); dir = filepath.Dir(dir) {
		if own, err := os.ReadFile(filepath.Join(dir, "freezer.self_freezing")); err == nil && strings.TrimSpace(string(own)) == "1" {
			path = strings.TrimPrefix(dir, top)
		}
	}
	return path
}

type process struct {
	pid     int
	name    string
	state   byte   // as in proc_pid_stat(5)
	waitsIn string // the kernel function, "" if it is not told
}

func (p process) String() string {
	state := map[byte]string{
		'D': "in uninterruptible sleep", 'R': "running", 'S': "asleep", 'T': "stopped", 't': "traced", 'Z': "a zombie", 'X': "dying",
	}[p.state]
	out := fmt.Sprintf("process %d (%s) is %s", p.pid, p.name, cmp.Or(state, "in state "+string(p.state)))
	if p.waitsIn != "" {
		out += " in the kernel's " + p.waitsIn
	}
	return out
}

// rank puts first what holds the others: an init in zap_pid_ns_processes only waits for them.
func rank(state byte) int {
	if i := strings.IndexByte("DtTR", state); i >= 0 {
		return i
	}
	return 9
}

func inspect(pid int) (process, bool) {
	stat, ok := procfs.Read(pid)
	if !ok {
		return process{}, false
	}
	p := process{pid: pid, name: stat.Name, state: stat.State}
	if wchan, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/wchan"); err == nil && string(wchan) != "0" {
		p.waitsIn = string(wchan)
	}
	return p, true
}
