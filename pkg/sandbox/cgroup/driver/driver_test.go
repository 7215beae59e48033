package driver

import (
	"strings"
	"testing"

	"criserver/pkg/sandbox/spec"
)

func TestPaths(t *testing.T) {
	for _, row := range []struct {
		kind                  Kind
		root                  string
		pods, pod, ctr, toOCI string
	}{
		{Cgroupfs, "/criserver", "/criserver", "/criserver/p1", "/criserver/p1/c1", "/criserver/p1/c1"},
		{Systemd, "/criserver", "/criserver.slice", "/criserver.slice/criserver-p1.slice",
			"/criserver.slice/criserver-p1.slice/criserver-c1.scope", "criserver-p1.slice:criserver:c1"},
		{Systemd, "/a/cri-e2e", "/cri.slice/cri-e2e.slice", "/cri.slice/cri-e2e.slice/cri-e2e-p1.slice",
			"/cri.slice/cri-e2e.slice/cri-e2e-p1.slice/criserver-c1.scope", "cri-e2e-p1.slice:criserver:c1"},
	} {
		pod := row.kind.PodPath(row.root, "p1")
		if got := row.kind.PodsPath(row.root); got != row.pods {
			t.Errorf("%s: pods below %s", row.kind, got)
		}
		if pod != row.pod || ContainerPath(pod, "c1") != row.ctr || spec.CgroupsPath(pod, "c1") != row.toOCI {
			t.Errorf("%s: %s, %s, %s", row.kind, pod, ContainerPath(pod, "c1"), spec.CgroupsPath(pod, "c1"))
		}
		if got := row.kind.PodOf(row.root, pod[strings.LastIndex(pod, "/")+1:]); got != "p1" {
			t.Errorf("%s: the pod of %s is %q", row.kind, pod, got)
		}
	}
	if got := Systemd.PodOf("/criserver", "monitor"); got != "" {
		t.Errorf("the pod of another cgroup is %q", got)
	}
}

func TestCheckParent(t *testing.T) {
	const kubelets = "/kubepods.slice/kubepods-pod1.slice"
	for _, row := range []struct {
		kind   Kind
		parent string
		ok     bool
	}{
		{Cgroupfs, "", true}, {Systemd, "", true}, {Cgroupfs, "/kubepods/pod1", true}, {Systemd, kubelets, true},
		{Cgroupfs, kubelets, false}, {Systemd, "/kubepods/pod1", false},
	} {
		if err := row.kind.CheckParent(row.parent); (err == nil) != row.ok {
			t.Errorf("%s, %q: %v", row.kind, row.parent, err)
		}
	}
}

func TestCheck(t *testing.T) {
	if err := Cgroupfs.Check(); err != nil {
		t.Error(err)
	}
	if err := Kind("cgroupfs2").Check(); err == nil || !strings.Contains(err.Error(), `"cgroupfs2"`) {
		t.Error(err)
	}
}
