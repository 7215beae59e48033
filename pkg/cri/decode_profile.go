package cri

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/sandbox/confine"
	"criserver/pkg/sandbox/spec"
)

const fieldSecurity = "linux.security_context."

// oldProfile reads the deprecated form of a profile: "unconfined", "runtime/default" (or Docker's name for it), or
// "localhost/" and its name; nil for "".
func oldProfile(field, s string) (*runtimeapi.SecurityProfile, error) {
	ref, local := strings.CutPrefix(s, "localhost/")
	switch {
	case s == "":
		return nil, nil
	case s == "unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case s == "runtime/default" || s == "docker/default":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case local && ref != "":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}, nil
	}
	return nil, invalid(field, `%q is neither "unconfined" nor "runtime/default" nor "localhost/" and a name`, s)
}

// checkProfile holds the rules of SecurityProfile in api.proto.
func checkProfile(field string, p *runtimeapi.SecurityProfile) error {
	local := p.GetProfileType() == runtimeapi.SecurityProfile_Localhost
	switch {
	case runtimeapi.SecurityProfile_ProfileType_name[int32(p.GetProfileType())] == "":
		return invalid(field+".profile_type", "%v", p.GetProfileType())
	case local && p.GetLocalhostRef() == "":
		return invalid(field+".localhost_ref", "empty, and profile_type is Localhost")
	case !local && p.GetLocalhostRef() != "":
		return invalid(field+".localhost_ref", "%q, but profile_type is %v", p.GetLocalhostRef(), p.GetProfileType())
	}
	return nil
}

// decodeSeccomp reads the profile, with its file on the host, also in its deprecated form. A privileged container has none
// (api.proto), nor has one that asks for none.
func decodeSeccomp(sc *runtimeapi.LinuxContainerSecurityContext) (spec.SeccompKind, string, error) {
	p := sc.GetSeccomp()
	if p == nil {
		var err error
		//nolint:staticcheck // deprecated, but old clients still send it
		if p, err = oldProfile(fieldSecurity+"seccomp_profile_path", sc.GetSeccompProfilePath()); err != nil {
			return 0, "", err
		}
	}
	if err := checkProfile(fieldSecurity+"seccomp", p); err != nil {
		return 0, "", err
	}
	switch {
	case p == nil, sc.GetPrivileged(), p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined:
		return spec.SeccompUnconfined, "", nil
	case p.GetProfileType() == runtimeapi.SecurityProfile_Localhost:
		return spec.SeccompLocalhost, strings.TrimPrefix(p.GetLocalhostRef(), "localhost/"), nil
	}
	return spec.SeccompRuntimeDefault, "", nil
}

func decodeSELinux(o *runtimeapi.SELinuxOption) confine.SELinux {
	return confine.SELinux{User: o.GetUser(), Role: o.GetRole(), Type: o.GetType(), Level: o.GetLevel()}
}

// decodeAppArmor reads the profile, also in its deprecated form. None is the default where the node has one, and one that is asked for
// is the default or nothing.
func decodeAppArmor(sc *runtimeapi.LinuxContainerSecurityContext) (confine.AppArmor, error) {
	p := sc.GetApparmor()
	if p == nil {
		var err error
		//nolint:staticcheck // deprecated, but old clients still send it
		if p, err = oldProfile(fieldSecurity+"apparmor_profile", sc.GetApparmorProfile()); err != nil {
			return confine.AppArmor{}, err
		}
	}
	if err := checkProfile(fieldSecurity+"apparmor", p); err != nil {
		return confine.AppArmor{}, err
	}
	switch {
	case p == nil:
		return confine.AppArmor{}, nil
	case p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined:
		return confine.AppArmor{Kind: confine.AppArmorUnconfined}, nil
	case p.GetProfileType() == runtimeapi.SecurityProfile_Localhost:
		return confine.AppArmor{
			Kind: confine.AppArmorLocalhost, Profile: strings.TrimPrefix(p.GetLocalhostRef(), "localhost/"),
		}, nil
	}
	return confine.AppArmor{Kind: confine.AppArmorRuntimeDefault}, nil
}
