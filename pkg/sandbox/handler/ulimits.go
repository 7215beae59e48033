package handler

import (
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/runtime"
)

// PossibleUlimits are the limits as far as this process may set them: without CAP_SYS_RESOURCE nobody raises a hard limit, and the
// container would not start (setrlimit(2)). handler is who wants them, for the log.
func PossibleUlimits(handler string, wanted []specs.POSIXRlimit) []specs.POSIXRlimit {
	if len(wanted) == 0 || mayRaise() {
		return wanted
	}
	var out []specs.POSIXRlimit
	for _, l := range wanted {
		var own unix.Rlimit
		if err := unix.Getrlimit(runtime.Rlimits[l.Type], &own); err == nil && l.Hard > own.Max {
			logrus.WithFields(logrus.Fields{"handler": handler, "ulimit": strings.ToLower(l.Type), "wanted": l.Hard, "limit": own.Max}).
				Warn("without CAP_SYS_RESOURCE containers get no higher limit than criserver has")
			l.Hard, l.Soft = own.Max, min(l.Soft, own.Max)
		}
		out = append(out, l)
	}
	return out
}

func mayRaise() bool {
	own, err := capability.NewPid2(0)
	return err == nil && own.Load() == nil && own.Get(capability.EFFECTIVE, capability.CAP_SYS_RESOURCE)
}
