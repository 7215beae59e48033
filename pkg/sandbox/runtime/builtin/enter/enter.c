// Runs a command in the namespaces of a container: what "enter.go" executes this binary for, before the Go runtime begins.
//
// It comes in two processes, since only a child is in the PID namespace that its parent joined. The first joins cgroups and
// namespaces, tells the PID of the second, its sibling, and ends. The second confines itself and becomes the command. Either tells what
// went wrong by a frame, and the end of the status pipe without one is the success.
//
// It trusts its request, which comes from crimonitor, and nothing of the container, in whose mount namespace the second one works.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/seccomp.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "enter.h"

// The descriptors that the caller gives beside stdin, stdout and stderr.
enum { REQUEST = 3, STATUS = 4, INIT = 5 };

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

struct frame {
	int32_t pid;   // of the second process; 0: this is an error
	int32_t error; // errno
	char what[56];
};

static void tell(int pid, int error, const char *what)
{
	struct frame f = { .pid = pid, .error = error };
	strncpy(f.what, what, sizeof(f.what) - 1);
	if (write(STATUS, &f, sizeof(f)) != sizeof(f))
		_exit(2);
}

static void __attribute__((noreturn)) fail(const char *what)
{
	tell(0, errno, what);
	_exit(1);
}

static void check(bool ok, const char *what)
{
	if (!ok)
		fail(what);
}

struct command {
	struct enter_header h;
	const struct enter_rlimit *rlimits;
	const struct sock_filter *filter;
	const uint32_t *groups;
	const char *cwd, *keyring, *key_label, *exec_attribute, *exec_label;
	char **cgroups, **args, **env;
};

// The rest of the request while it is taken apart.
struct rest {
	char *at, *end;
};

static void *take(struct rest *r, size_t size)
{
	errno = EBADMSG;
	check(size <= (size_t)(r->end - r->at), "read its request");
	void *p = r->at;
	r->at += size;
	return p;
}

static char *take_string(struct rest *r)
{
	return take(r, strnlen(r->at, r->end - r->at) + 1);
}

// spare is how many empty places follow.
static char **take_strings(struct rest *r, uint32_t count, size_t spare)
{
	char **list = calloc(count + spare, sizeof(*list));
	check(list != NULL, "allocate memory");
	for (uint32_t i = 0; i < count; i++)
		list[i] = take_string(r);
	return list;
}

static struct rest read_request(void)
{
	size_t size = 0, room = 1 << 16;
	char *data = malloc(room);
	for (;;) {
		check(data != NULL, "allocate memory");
		ssize_t n = read(REQUEST, data + size, room - size);
		if (n < 0 && errno == EINTR)
			continue;
		check(n >= 0, "read its request");
		if (n == 0)
			break;
		size += n;
		if (size == room)
			data = realloc(data, room *= 2);
	}
	close(REQUEST);
	return (struct rest){ data, data + size };
}

static struct command take_command(struct rest r)
{
	struct command c = { .h = *(struct enter_header *)take(&r, sizeof(c.h)) };
	c.rlimits = take(&r, c.h.rlimits * sizeof(*c.rlimits));
	c.filter = take(&r, c.h.filter_length * sizeof(*c.filter));
	c.groups = take(&r, c.h.groups * sizeof(*c.groups));
	c.cwd = take_string(&r);
	c.keyring = take_string(&r);
	c.key_label = take_string(&r);
	c.exec_attribute = take_string(&r);
	c.exec_label = take_string(&r);
	c.cgroups = take_strings(&r, c.h.cgroups, 1);
	c.args = take_strings(&r, c.h.args, 1);
	c.env = take_strings(&r, c.h.env, 2); // HOME may be added
	return c;
}

static bool write_file(int dir, const char *path, const char *value)
{
	int fd = openat(dir, path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	ssize_t n = write(fd, value, strlen(value));
	int error = errno;
	close(fd);
	errno = error;
	return n >= 0;
}

static void join_cgroups(const struct command *c)
{
	char path[PATH_MAX];
	for (char **dir = c->cgroups; *dir != NULL; dir++) {
		errno = ENAMETOOLONG;
		check(snprintf(path, sizeof(path), "%s/cgroup.procs", *dir) < (int)sizeof(path), "join its cgroup");
		check(write_file(AT_FDCWD, path, "0"), "join its cgroup");
	}
	// What crimonitor was bound to is not the container's; its own cpuset is applied by the kernel.
	static unsigned char all[8192];
	memset(all, 0xff, sizeof(all));
	(void)syscall(SYS_sched_setaffinity, 0, sizeof(all), all);
}

static void set_capabilities(const struct command *c)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];
	for (int i = 0; i < 2; i++) {
		data[i].effective = c->h.effective >> 32 * i;
		data[i].permitted = c->h.permitted >> 32 * i;
		data[i].inheritable = c->h.inheritable >> 32 * i;
	}
	check(syscall(SYS_capset, &header, data) == 0, "set its capabilities");
	check(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) == 0, "clear ambient capabilities");
	for (int cap = 0; cap < 64; cap++)
		if (c->h.ambient >> cap & 1) // one that is not permitted is not given, as libcontainer has it
			(void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0);
}

static void limit_capabilities(const struct command *c)
{
	for (int cap = 0; cap < 64 && prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		if (!(c->h.bounding >> cap & 1))
			check(prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0, "drop capabilities");
}

static void set_filter(const struct command *c)
{
	struct sock_fprog program = { .len = c->h.filter_length, .filter = (struct sock_filter *)c->filter };
	check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, c->h.filter_flags, &program) == 0, "load its seccomp filter");
}

// Programs expect to be able to open their own /dev/stdout; /dev/null is everybody's.
static void own_stdio(uid_t uid)
{
	for (int fd = 0; fd < 3; fd++) {
		struct stat st;
		check(fstat(fd, &st) == 0, "look at its stdio");
		if (st.st_uid == uid || (S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3)))
			continue;
		if (fchown(fd, uid, -1) != 0 && errno != EPERM && errno != EROFS)
			fail("give its stdio to it");
	}
}

// The home directory is a matter of the container's own /etc/passwd, in which anything may stand.
static char *home_of(uid_t uid)
{
	char *home = "/";
	int fd = open("/etc/passwd", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	struct stat st;
	if (fd < 0)
		return home;
	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
		close(fd);
		return home;
	}
	FILE *f = fdopen(fd, "r");
	check(f != NULL, "allocate memory");
	for (struct passwd *p; (p = fgetpwent(f)) != NULL;)
		if (p->pw_uid == uid) {
			home = strdup(p->pw_dir);
			check(home != NULL, "allocate memory");
			break;
		}
	fclose(f);
	return home;
}

static char *variable(char **env, const char *name)
{
	size_t length = strlen(name);
	for (; *env != NULL; env++)
		if (strncmp(*env, name, length) == 0 && (*env)[length] == '=')
			return *env + length + 1;
	return NULL;
}

static void set_home(struct command *c)
{
	if (variable(c->env, "HOME") != NULL)
		return;
	check(asprintf(&c->env[c->h.env], "HOME=%s", home_of(c->h.uid)) >= 0, "allocate memory");
}

static bool executable(const char *path)
{
	struct stat st;
	if (stat(path, &st) != 0)
		return false;
	if (S_ISDIR(st.st_mode)) {
		errno = EISDIR;
		return false;
	}
	return faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) == 0;
}

// The program as execvp(3) finds it, but never in the working directory.
static const char *find_program(const struct command *c)
{
	static char path[PATH_MAX];
	const char *name = c->args[0];
	if (strchr(name, '/') != NULL) {
		check(executable(name), "");
		return name;
	}
	const char *dir = variable(c->env, "PATH");
	while (dir != NULL) {
		const char *end = strchrnul(dir, ':');
		if (*dir == '/' && snprintf(path, sizeof(path), "%.*s/%s", (int)(end - dir), dir, name) < (int)sizeof(path) && executable(path))
			return path;
		dir = *end == ':' ? end + 1 : NULL;
	}
	errno = ENOENT;
	fail("find it in PATH");
}

static void check_cwd(void)
{
	char path[PATH_MAX];
	// The kernel says so of a directory that is not below the root, see getcwd(3).
	long n = syscall(SYS_getcwd, path, sizeof(path));
	check(n >= 0, "find its working directory");
	errno = ENOENT;
	check(path[0] == '/', "keep its working directory in the container");
}

static void become_user(struct command *c)
{
	// Root may see a directory that the user may not, and the user one that root may not (NFS).
	int denied = chdir(c->cwd) != 0 ? errno : 0;
	errno = denied;
	check(denied == 0 || denied == EACCES || denied == EPERM, "change to its working directory");
	set_home(c);
	if (c->h.flags & ENTER_CAPABILITIES)
		limit_capabilities(c);
	check(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0, "keep capabilities");
	own_stdio(c->h.uid);
	check(setgroups(c->h.groups, c->groups) == 0, "set its groups");
	check(setresgid(c->h.gid, c->h.gid, c->h.gid) == 0, "set its group");
	check(setresuid(c->h.uid, c->h.uid, c->h.uid) == 0, "set its user");
	if (denied)
		check(chdir(c->cwd) == 0, "change to its working directory");
	check_cwd();
	check(prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) == 0, "keep no capabilities");
	if (c->h.flags & ENTER_CAPABILITIES)
		set_capabilities(c);
}

static void set_keyring(const struct command *c, int proc)
{
	if (*c->keyring == '\0')
		return;
	if (*c->key_label != '\0')
		check(write_file(proc, "thread-self/attr/keycreate", c->key_label), "label its keyring");
	if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, c->keyring) < 0 && errno != ENOSYS)
		fail("join its session keyring");
}

static void __attribute__((noreturn)) run(struct command *c, int proc)
{
	check(setsid() >= 0, "begin a session");
	set_keyring(c, proc);
	if (c->h.flags & ENTER_UMASK)
		umask(c->h.umask);
	if (c->h.flags & ENTER_PERSONALITY)
		check(personality(c->h.personality) != -1, "set its personality");
	for (uint32_t i = 0; i < c->h.rlimits; i++) {
		struct rlimit limit = { c->rlimits[i].soft, c->rlimits[i].hard };
		check(setrlimit(c->rlimits[i].kind, &limit) == 0, "set its limits");
	}
	if (*c->exec_attribute != '\0')
		check(write_file(proc, c->exec_attribute, c->exec_label), "set its security label");
	if (c->h.flags & ENTER_NO_NEW_PRIVILEGES)
		check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "set no_new_privs");
	// No descriptor of the node may be there when paths of the container are followed (CVE-2024-21626).
	check(syscall(SYS_close_range, INIT, ~0U, 0) == 0, "close descriptors");
	bool filtered = c->h.filter_length > 0, late = c->h.flags & ENTER_NO_NEW_PRIVILEGES;
	if (filtered && !late) // without no_new_privs it takes a capability
		set_filter(c);
	become_user(c);
	const char *program = find_program(c);
	if (filtered && late)
		set_filter(c);
	execve(program, c->args, c->env);
	fail("");
}

static void __attribute__((constructor)) enter(void)
{
	const char *mode = getenv(ENTER_VARIABLE);
	if (mode == NULL || strcmp(mode, ENTER_COMMAND) != 0)
		return;
	// The container must neither trace this process nor look into it (CVE-2016-9962); execve makes the command dumpable.
	check(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0, "become not dumpable");
	check(fcntl(STATUS, F_SETFD, FD_CLOEXEC) == 0, "set up its status pipe");
	struct command c = take_command(read_request());
	// Of the node's /proc, whatever the container has mounted there.
	int proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	check(proc >= 0, "open /proc");
	if (c.h.flags & ENTER_OOM_SCORE_ADJ) {
		char value[16];
		snprintf(value, sizeof(value), "%d", c.h.oom_score_adj);
		check(write_file(proc, "self/oom_score_adj", value), "set its oom_score_adj");
	}
	join_cgroups(&c);
	check(setns(INIT, c.h.namespaces) == 0, "enter its namespaces");
	long pid = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
	check(pid >= 0, "fork");
	if (pid == 0)
		run(&c, proc);
	tell(pid, 0, "");
	_exit(0);
}
