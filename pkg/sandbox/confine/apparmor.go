package confine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	profile "github.com/containerd/containerd/v2/contrib/apparmor"
	"github.com/containerd/containerd/v2/pkg/apparmor"
	"github.com/sirupsen/logrus"

	"criserver/pkg/sandbox/hostpath"
	"criserver/pkg/sandbox/spec"
)

// DefaultAppArmor is the name of the profile of containers that ask for none of their own; it is containerd's.
const DefaultAppArmor = "criserver-default"

const (
	fieldAppArmor   = "security_context.apparmor"
	appArmorLoaded  = "/sys/kernel/security/apparmor/profiles"
	appArmorEnabled = "/sys/module/apparmor/parameters/enabled"
)

// AppArmorKind selects an AppArmor profile.
type AppArmorKind int

// The AppArmor profiles (SecurityProfile.ProfileType in api.proto).
const (
	AppArmorDefault AppArmorKind = iota // also of a container that says nothing (Kubernetes issue 51746)
	AppArmorUnconfined
	AppArmorLocalhost
	// AppArmorRuntimeDefault is the default, asked for. The kubelet sends it only of pods that say so, and admits those only where the
	// kernel confines by AppArmor (k8s.io/kubernetes, pkg/security/apparmor): who gets it elsewhere was not to run unconfined.
	AppArmorRuntimeDefault
)

// AppArmor is what a caller wants to be confined by. Profile is with AppArmorLocalhost: a profile that is loaded.
type AppArmor struct {
	Kind    AppArmorKind
	Profile string `json:",omitempty"`
}

// Resolve finds the name of the profile, "" for none, and loads the default one if it is needed and not there. A node that
// does not confine by AppArmor has no default, and no profiles of its own. A privileged container has no default either (api.proto,
// LinuxContainerSecurityContext.privileged).
func (a AppArmor) Resolve(ctx context.Context, privileged bool) (string, error) {
	byDefault := a.Kind == AppArmorDefault || a.Kind == AppArmorRuntimeDefault
	switch {
	case a.Kind == AppArmorUnconfined, byDefault && privileged:
		return "", nil
	case a.Kind == AppArmorRuntimeDefault && !apparmor.HostSupports():
		return "", spec.Invalidf(fieldAppArmor, "RuntimeDefault: the node cannot confine by AppArmor: that takes a kernel which does, "+
			"/sbin/apparmor_parser (package apparmor) and /sys/kernel/security (securityfs)")
	case a.Kind == AppArmorDefault && !apparmor.HostSupports():
		if kernelConfines() {
			warnNoParser()
		}
		return "", nil
	case byDefault:
		_, err := hostpath.Ask(ctx, nil, appArmorLoaded, func() (struct{}, error) {
			return struct{}{}, profile.LoadDefaultProfile(DefaultAppArmor)
		})
		if err != nil {
			return "", fmt.Errorf("load default AppArmor profile: %w", err)
		}
		return DefaultAppArmor, nil
	case !kernelConfines():
		return "", spec.Invalidf(fieldAppArmor+".localhost_ref", "%q: the node does not confine by AppArmor", a.Profile)
	}
	loaded, err := profileLoaded(a.Profile)
	if err != nil {
		return "", fmt.Errorf("list AppArmor profiles: %w", err)
	}
	if !loaded {
		return "", spec.Invalidf(fieldAppArmor+".localhost_ref", "%q is not loaded; load it with apparmor_parser", a.Profile)
	}
	return a.Profile, nil
}

// warnNoParser tells what an operator may take for done.
var warnNoParser = sync.OnceFunc(func() {
	logrus.Warn("containers run without the default AppArmor profile: the kernel has AppArmor, but the profile cannot be loaded " +
		"without /sbin/apparmor_parser (package apparmor) and /sys/kernel/security (securityfs)")
})

// kernelConfines tells whether the kernel confines by AppArmor.
func kernelConfines() bool {
	data, err := os.ReadFile(appArmorEnabled)
	return err == nil && strings.HasPrefix(string(data), "Y")
}

// profileLoaded looks in the kernel's list, whose lines are "name (mode)".
func profileLoaded(name string) (bool, error) {
	f, err := os.Open(appArmorLoaded)
	if errors.Is(err, os.ErrNotExist) {
		return false, errors.New("securityfs is not mounted on /sys/kernel/security")
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if i := strings.LastIndex(lines.Text(), " ("); i >= 0 && lines.Text()[:i] == name {
			return true, nil
		}
	}
	return false, lines.Err()
}
