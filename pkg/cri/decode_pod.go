package cri

import (
	"math"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/cni"
	"criserver/pkg/sandbox/idmap"
	"criserver/pkg/sandbox/want"
)

// decodePod turns the CRI's configuration of a pod into the runtime's, and refuses what this version does not honour.
// What only the pause process of other runtimes would use (user, groups, capabilities of the sandbox) has no meaning
// here, where a pod has no process. Pod-level resources and overhead are for information: the kubelet sets them on the
// pod's cgroup itself (api.proto, LinuxPodSandboxConfig).
func decodePod(c *runtimeapi.PodSandboxConfig, handler string) (want.Pod, error) {
	var none want.Pod
	if c == nil {
		return none, invalid("config", "missing")
	}
	if c.GetWindows() != nil {
		return none, unsupported("config.windows", "a Windows pod")
	}
	sc := c.GetLinux().GetSecurityContext()
	if err := checkPodSecurity(sc); err != nil {
		return none, err
	}
	namespaces, err := decodeNamespaces("config.linux.security_context.namespace_options", sc.GetNamespaceOptions())
	if err != nil {
		return none, err
	}
	ports, err := decodePorts(c.GetPortMappings())
	if err != nil {
		return none, err
	}
	out := want.Pod{
		Name: c.GetMetadata().GetName(), Namespace: c.GetMetadata().GetNamespace(), UID: c.GetMetadata().GetUid(),
		Attempt:  c.GetMetadata().GetAttempt(),
		Hostname: c.GetHostname(), LogDirectory: c.GetLogDirectory(), Ports: ports,
		Labels: c.GetLabels(), Annotations: c.GetAnnotations(),
		CgroupParent: c.GetLinux().GetCgroupParent(), Sysctls: c.GetLinux().GetSysctls(),
		Namespaces: namespaces, Privileged: sc.GetPrivileged(), Handler: handler,
		SELinux:   decodeSELinux(sc.GetSelinuxOptions()),
		Resources: decodeResources(c.GetLinux().GetResources()), Overhead: decodeResources(c.GetLinux().GetOverhead()),
	}
	if dns := c.GetDnsConfig(); dns != nil {
		if err := checkDNS(dns); err != nil {
			return none, err
		}
		out.DNS = &cni.DNS{Servers: dns.GetServers(), Searches: dns.GetSearches(), Options: dns.GetOptions()}
	}
	return out, nil
}

// checkPodSecurity refuses what is wrong of what has no meaning here: whoever asks for it is mistaken, and other runtimes refuse it.
// Profiles of the pod are such: containers are confined by their own, and process 1 of a shared PID namespace always.
func checkPodSecurity(sc *runtimeapi.LinuxSandboxSecurityContext) error {
	const field = "config.linux.security_context."
	ids := map[string][]int64{"supplemental_groups": sc.GetSupplementalGroups()}
	for name, id := range map[string]*runtimeapi.Int64Value{"run_as_user": sc.GetRunAsUser(), "run_as_group": sc.GetRunAsGroup()} {
		if id != nil {
			ids[name] = []int64{id.GetValue()}
		}
	}
	for name, ids := range ids {
		if i := slices.IndexFunc(ids, func(id int64) bool { return id < 0 || id > math.MaxInt32 }); i >= 0 {
			return invalid(field+name, "%d is not from 0 to %d", ids[i], math.MaxInt32)
		}
	}
	switch {
	case sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil:
		return invalid(field+"run_as_group", "run_as_user must be set with it")
	case runtimeapi.SupplementalGroupsPolicy_name[int32(sc.GetSupplementalGroupsPolicy())] == "":
		return invalid(field+"supplemental_groups_policy", "%v", sc.GetSupplementalGroupsPolicy())
	}
	//nolint:staticcheck // deprecated, but old clients still send it
	if _, err := oldProfile(field+"seccomp_profile_path", sc.GetSeccompProfilePath()); err != nil {
		return err
	}
	if err := checkProfile(field+"seccomp", sc.GetSeccomp()); err != nil {
		return err
	}
	return checkProfile(field+"apparmor", sc.GetApparmor())
}

// checkDNS keeps a value from adding lines of its own to resolv.conf.
func checkDNS(dns *runtimeapi.DNSConfig) error {
	for _, v := range slices.Concat(dns.GetServers(), dns.GetSearches(), dns.GetOptions()) {
		if strings.ContainsAny(v, "\n\r\x00") {
			return invalid("config.dns_config", "%q has a line break or a NUL byte", v)
		}
	}
	return nil
}

func decodePorts(in []*runtimeapi.PortMapping) ([]cni.PortMapping, error) {
	var out []cni.PortMapping
	for _, p := range in {
		protocol, ok := map[runtimeapi.Protocol]string{
			runtimeapi.Protocol_TCP: "tcp", runtimeapi.Protocol_UDP: "udp", runtimeapi.Protocol_SCTP: "sctp",
		}[p.GetProtocol()]
		if !ok {
			return nil, invalid("config.port_mappings.protocol", "%v", p.GetProtocol())
		}
		if p.GetHostPort() < 0 || p.GetHostPort() > 65535 || p.GetContainerPort() < 0 || p.GetContainerPort() > 65535 {
			return nil, invalid("config.port_mappings", "port %d or %d is not in 0..65535", p.GetHostPort(), p.GetContainerPort())
		}
		out = append(out, cni.PortMapping{
			Protocol: protocol, ContainerPort: p.GetContainerPort(), HostPort: p.GetHostPort(), HostIP: p.GetHostIp(),
		})
	}
	return out, nil
}

func decodeNamespaces(field string, o *runtimeapi.NamespaceOption) (want.Namespaces, error) {
	var none want.Namespaces
	users, err := decodeUsers(field+".userns_options", o.GetUsernsOptions())
	if err != nil {
		return none, err
	}
	pid, err := decodeMode(field+".pid", o.GetPid(), true)
	if err != nil {
		return none, err
	}
	ipc, err := decodeMode(field+".ipc", o.GetIpc(), false)
	if err != nil {
		return none, err
	}
	network, err := decodeMode(field+".network", o.GetNetwork(), false)
	if err != nil {
		return none, err
	}
	return want.Namespaces{Network: network, IPC: ipc, PID: pid, TargetID: o.GetTargetId(), Users: users}, nil
}

func decodeUsers(field string, u *runtimeapi.UserNamespace) (*idmap.Mappings, error) {
	switch mapped := len(u.GetUids())+len(u.GetGids()) > 0; {
	case u == nil, u.GetMode() == runtimeapi.NamespaceMode_NODE && !mapped:
		return nil, nil
	case u.GetMode() == runtimeapi.NamespaceMode_NODE:
		return nil, invalid(field, "mode NODE with mappings")
	case u.GetMode() != runtimeapi.NamespaceMode_POD:
		return nil, invalid(field+".mode", "%v", u.GetMode())
	}
	return &idmap.Mappings{UIDs: decodeRanges(u.GetUids()), GIDs: decodeRanges(u.GetGids())}, nil
}

func decodeRanges(in []*runtimeapi.IDMapping) []idmap.Range {
	var out []idmap.Range
	for _, m := range in {
		out = append(out, idmap.Range{Container: m.GetContainerId(), Host: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}

func decodeMode(field string, m runtimeapi.NamespaceMode, pid bool) (want.NamespaceMode, error) {
	switch {
	case m == runtimeapi.NamespaceMode_POD:
		return want.NamespacePod, nil
	case m == runtimeapi.NamespaceMode_NODE:
		return want.NamespaceNode, nil
	case m == runtimeapi.NamespaceMode_CONTAINER && pid:
		return want.NamespaceContainer, nil
	case m == runtimeapi.NamespaceMode_TARGET && pid:
		return want.NamespaceTarget, nil
	}
	return 0, invalid(field, "%v", m)
}
