package confine

import "github.com/opencontainers/selinux/go-selinux"

// SELinux tells whether the node confines by SELinux: its kernel has it, and a policy is loaded.
func SELinux() bool { return selinux.GetEnabled() }
