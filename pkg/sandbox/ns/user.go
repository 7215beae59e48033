package ns

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/idmap"
)

// helperLimit bounds the life of the process that holds new namespaces until they are pinned.
const helperLimit = 20 * time.Second

// done is what that process says when all is set, and refused what it begins an ErrSysctl with.
const (
	done    = "ok"
	refused = "sysctl: "
)

// makeForUsers makes a user namespace and, as its own, the others. The helper sets what is to be set, as the namespaces' root: some
// sysctls are nobody else's, not even the host's root's.
func makeForUsers(ctx context.Context, c Config) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, helperLimit, errors.New("no answer from the process that makes namespaces"))
	defer cancel()
	binary, err := os.Open(c.Helper)
	if err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	defer binary.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/fd/3", "namespaces")
	cmd.Args[0] = c.Helper
	// By its descriptor: who is root in the namespace may be unable to pass the directories above the program.
	cmd.ExtraFiles = []*os.File{binary}
	cmd.Dir = "/"
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: sysMappings(c.Users.UIDs), GidMappings: sysMappings(c.Users.GIDs),
		GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{}, Setsid: true,
	}
	for _, k := range c.Kinds {
		cmd.SysProcAttr.Cloneflags |= uintptr(flags[k])
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return explainUsers(fmt.Errorf("make a user namespace: %w", err))
	}
	defer func() {
		_ = stdin.Close() // it ends with that
		if werr := cmd.Wait(); werr != nil {
			err = errors.Join(err, fmt.Errorf("make namespaces: %w: %s", werr, strings.TrimSpace(stderr.String())))
		}
	}()
	if err := json.NewEncoder(stdin).Encode(settings{c.Kinds, c.Hostname, c.Sysctls, c.TryHostSys}); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	switch said, err := bufio.NewReader(stdout).ReadString('\n'); {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("make namespaces: %w", err)
	case strings.HasPrefix(said, refused):
		return fmt.Errorf("%w: %s", ErrSysctl, strings.TrimSpace(strings.TrimPrefix(said, refused)))
	case strings.TrimSpace(said) != done:
		return errors.New(strings.TrimSpace(said))
	}
	for _, k := range slices.Concat([]Kind{User}, c.Kinds) {
		if err := pin(c.Dir, k, strconv.Itoa(cmd.Process.Pid)); err != nil {
			return err
		}
	}
	return nil
}

// tryHostSys does what a runtime does for the /sys of a container on the host's network, in a mount namespace that goes with the
// calling thread.
func tryHostSys() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("try a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("try a mount namespace: %w", err)
	}
	if err := unix.Mount("/sys", "/sys", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("try a bind mount of /sys: %w", err)
	}
	f, err := os.Open("/sys") // below it is still the one before
	if err != nil {
		return err
	}
	defer f.Close()
	const flags = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	err = unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: flags})
	if err != nil {
		return fmt.Errorf("try to make /sys read-only: %w", err)
	}
	return nil
}

// explainUsers says what may be done about a refusal.
func explainUsers(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC): // user_namespaces(7)
		return fmt.Errorf("%w: the limit of the sysctl user.max_user_namespaces is reached", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: the kernel does not let this process make one (sysctl kernel.unprivileged_userns_clone, or a policy)", err)
	}
	return err
}

func sysMappings(ranges []idmap.Range) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, len(ranges))
	for i, r := range ranges {
		out[i] = syscall.SysProcIDMap{ContainerID: int(r.Container), HostID: int(r.Host), Size: int(r.Size)}
	}
	return out
}

// Serve is the process that Make executes: it sets what stdin says, tells on stdout, and holds the namespaces until stdin ends.
func Serve(stdin io.Reader, stdout io.Writer) error {
	dec := json.NewDecoder(stdin)
	var s settings
	if err := dec.Decode(&s); err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	said := done
	if err := s.apply(); err != nil {
		said = strings.ReplaceAll(err.Error(), "\n", " ")
		if errors.Is(err, ErrSysctl) {
			said = refused + said
		}
	}
	if _, err := fmt.Fprintln(stdout, said); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, stdin)
	return err
}
