package server

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/cgroup/kill"
	"criserver/pkg/sandbox/procfs"
)

// tree is what a command in a container has started. It is found when it is to be ended: a command that ends by itself
// costs nothing. The command is in a session that was made for it, by the runtime or by who has called the runtime, and whose number is
// nobody else's while one process is in it. So the tree is made of
//   - the processes of that session, also those whose parents have ended;
//   - those that left it, by setsid(2) too, as long as their parents are of the tree;
//   - those that left it and whose parents have ended, if their stdin, stdout or stderr is a pipe that was made for this command.
//
// A process that has done all that a daemon does escapes: a session of its own, the parent ended, and nothing kept open. It is not
// to be told from one that the container has started, and ends with the container.
type tree struct {
	command *process
	// session is read when it is first needed, while the command is there.
	session int
	// init is the container's own process, which no tree has.
	init int
	// cgroup is the container's, where the others are looked for; "" is the whole machine.
	cgroup string
	pipes  []pipe
}

// pipe is one as the kernel knows it.
type pipe struct{ dev, ino uint64 }

// pipesOf are the pipes among the files.
func pipesOf(files []*os.File) []pipe {
	var all []pipe
	for _, f := range files {
		var st unix.Stat_t
		if unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO {
			all = append(all, pipe{st.Dev, st.Ino})
		}
	}
	return all
}

// maxRounds bounds how often new ones are looked for among processes that fork as fast as they are stopped.
const maxRounds = 50

// settle reads the session. One in which this process is itself is not the command's.
func (t *tree) settle() {
	if t.session != 0 {
		return
	}
	t.session = -1
	own, _ := unix.Getsid(0)
	if st, ok := procfs.Read(t.command.pid); ok && st.Session > 0 && st.Session != own {
		t.session = st.Session
	}
}

// kill kills all, which it does not wait for. They are stopped first, so that none is born unseen.
func (t *tree) kill() {
	t.settle()
	found := map[int]int{} // pidfd by PID
	for range maxRounds {
		if t.grow(found, unix.SIGSTOP) == 0 {
			break
		}
	}
	_ = t.command.signal(unix.SIGKILL)
	for _, fd := range found {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		_ = unix.Close(fd)
	}
}

// hangUp tells those whom the command has left behind that their client has gone, as the kernel does to the jobs of a terminal: who is
// stopped is let go to hear it.
func (t *tree) hangUp() {
	t.settle()
	found := map[int]int{}
	t.grow(found, unix.SIGHUP)
	for _, fd := range found {
		_ = unix.PidfdSendSignal(fd, unix.SIGCONT, nil, 0)
		_ = unix.Close(fd)
	}
}

// grow adds the processes of the tree that are not yet among the found ones, once it has sent them a signal, and tells how many. The
// pidfds are the caller's. Only the tree's own processes are stopped: who is looked at is not disturbed.
func (t *tree) grow(found map[int]int, sig unix.Signal) (added int) {
	for _, pid := range t.candidates() {
		if _, known := found[pid]; known || pid == t.init {
			continue
		}
		// Before it is looked at: if the signal reaches it, then what was read was read of this one and of no later one
		// with its PID.
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if !t.has(pid, found) || unix.PidfdSendSignal(fd, sig, nil, 0) != nil {
			_ = unix.Close(fd)
			continue
		}
		found[pid] = fd
		added++
	}
	return added
}

// candidates are the processes that may belong to it, the command first.
func (t *tree) candidates() []int {
	if t.cgroup != "" {
		if pids, err := kill.Pids(kill.Dir(t.cgroup)); err == nil {
			return append([]int{t.command.pid}, pids...)
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (t *tree) has(pid int, found map[int]int) bool {
	st, ok := procfs.Read(pid)
	if !ok {
		return false
	}
	_, child := found[st.Parent]
	if child || t.session > 0 && st.Session == t.session || t.holdsPipe(pid) {
		return true
	}
	// Once the command is reaped, its PID may be another's.
	return (pid == t.command.pid || st.Parent == t.command.pid) && t.command.alive()
}

// holdsPipe looks where a program has its streams. Outside of a container are those at the other ends of the pipes.
func (t *tree) holdsPipe(pid int) bool {
	if t.cgroup == "" {
		return false
	}
	for _, want := range t.pipes {
		for _, stream := range []string{"0", "1", "2"} {
			var st unix.Stat_t
			if unix.Stat("/proc/"+strconv.Itoa(pid)+"/fd/"+stream, &st) == nil && (pipe{st.Dev, st.Ino}) == want {
				return true
			}
		}
	}
	return false
}
