// The request of enter.go to enter.c: a header, then what it counts: rlimits, filter, groups, and strings that end with NUL: working
// directory, name of the session keyring, label for it, file below /proc for the label of the command, that label, directories of
// cgroups, arguments, environment. All numbers are the machine's.
#include <stdint.h>

#define ENTER_VARIABLE "_CRIMONITOR_ENTER"
#define ENTER_COMMAND "command"

enum {
	ENTER_NO_NEW_PRIVILEGES = 1,
	ENTER_UMASK = 2,
	ENTER_PERSONALITY = 4,
	ENTER_OOM_SCORE_ADJ = 8,
	ENTER_CAPABILITIES = 16,
};

struct enter_rlimit {
	uint64_t soft, hard, kind;
};

struct enter_header {
	uint64_t bounding, effective, permitted, inheritable, ambient;
	uint32_t namespaces; // CLONE_NEW*
	uint32_t flags;
	uint32_t uid, gid, umask, personality;
	int32_t oom_score_adj;
	uint32_t filter_flags, filter_length; // of seccomp(2); instructions
	uint32_t rlimits, groups, cgroups, args, env;
};
