package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	slaveMount  = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	sharedMount = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
)

// mountTree mounts a shared tmpfs that has another one on its directory "sub".
func (n *node) mountTree() string {
	n.t.Helper()
	top := filepath.Join(n.dir, "tree")
	for _, dir := range []string{top, filepath.Join(top, "sub")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			n.t.Fatal(err)
		}
		n.mountTmpfs(dir)
		if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
			n.t.Fatal(err)
		}
	}
	return top
}

func (n *node) mountTmpfs(dir string) {
	n.t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0755"); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

func mounting(m *runtimeapi.Mount) containerChange {
	return func(c *runtimeapi.ContainerConfig) {
		m.ContainerPath = "/v"
		c.Mounts = []*runtimeapi.Mount{m}
	}
}

func privileged(changes ...containerChange) containerChange {
	return func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.Privileged = true
		for _, change := range changes {
			change(c)
		}
	}
}

func TestMountFields(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	tree := n.mountTree()
	private := filepath.Join(n.dir, "private")
	if err := os.Mkdir(private, 0o755); err != nil {
		t.Fatal(err)
	}
	n.mountTmpfs(private)
	if err := unix.Mount("", private, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "program"), []byte("#!/bin/sh\necho runs\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	const (
		write = "for f in /v/f /v/sub/f; do touch $f 2>/dev/null && echo written || echo refused; done"
		peers = "grep ' /v ' /proc/self/mountinfo | grep -o 'shared:\\|master:'"
	)
	n.checkFields(t, programs, map[string]fieldRow{
		"writable":            {write, mounting(&runtimeapi.Mount{HostPath: tree}), "written\nwritten"},
		"read-only":           {write, mounting(&runtimeapi.Mount{HostPath: tree, Readonly: true}), "refused\nwritten"},
		"recursive read-only": {write, mounting(&runtimeapi.Mount{HostPath: tree, Readonly: true, RecursiveReadOnly: true}), "refused\nrefused"},
		"recursive read-only and privileged": {write + "; mount -o remount,bind,rw /v/sub && touch /v/sub/f && echo its own doing", privileged(mounting(
			&runtimeapi.Mount{HostPath: tree, Readonly: true, RecursiveReadOnly: true})), "refused\nrefused\nits own doing"},
		"slave":           {peers, mounting(&runtimeapi.Mount{HostPath: tree, Propagation: slaveMount}), "master:"},
		"read-only slave": {peers + ";" + write, mounting(&runtimeapi.Mount{HostPath: tree, Propagation: slaveMount, Readonly: true}), "master:\nrefused\nwritten"},
		"shared":          {peers, privileged(mounting(&runtimeapi.Mount{HostPath: tree, Propagation: sharedMount})), "shared:"},
		"read-only shared": {peers + ";" + write, privileged(mounting(&runtimeapi.Mount{HostPath: tree, Propagation: sharedMount, Readonly: true})),
			"shared:\nrefused\nwritten"},
		"options": {"/v/program 2>/dev/null || echo refused; grep ' /v ' /proc/self/mountinfo | cut -d' ' -f6", mounting(&runtimeapi.Mount{
			HostPath: tree, MountOptions: []string{"noexec", "nosuid", "nodev"}}), "refused\nrw,nosuid,nodev,noexec,relatime"},
		"read-only options": {"grep ' /v ' /proc/self/mountinfo | cut -d' ' -f6", mounting(&runtimeapi.Mount{
			HostPath: tree, Readonly: true, MountOptions: []string{"noexec"}}), "ro,noexec,relatime"},
		"no options":       {"/v/program", mounting(&runtimeapi.Mount{HostPath: tree}), "runs"},
		"image and option": {"/v/bin/busybox true 2>/dev/null || echo refused", mounting(&runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: busyboxImage}, MountOptions: []string{"noexec"}}), "refused"},
	}, privilegedPod)
	n.checkRefusals(t, n.podConfig(privilegedPod), map[string]refusalRow{
		"slave of a private mount":  {mounting(&runtimeapi.Mount{HostPath: private, Propagation: slaveMount}), codes.InvalidArgument, "mount --make-rshared " + private},
		"shared of a private mount": {privileged(mounting(&runtimeapi.Mount{HostPath: private, Propagation: sharedMount})), codes.InvalidArgument, "mount --make-rshared " + private},
		"shared, not privileged":    {mounting(&runtimeapi.Mount{HostPath: tree, Propagation: sharedMount}), codes.InvalidArgument, "mounts[0].propagation"},
		"unknown propagation":       {mounting(&runtimeapi.Mount{HostPath: tree, Propagation: 7}), codes.InvalidArgument, "mounts[0].propagation"},
		"recursive and writable":    {mounting(&runtimeapi.Mount{HostPath: tree, RecursiveReadOnly: true}), codes.InvalidArgument, "mounts.recursive_read_only"},
		"recursive and slave": {mounting(&runtimeapi.Mount{HostPath: tree, Readonly: true, RecursiveReadOnly: true, Propagation: slaveMount}),
			codes.InvalidArgument, "mounts.recursive_read_only"},
		"unknown option": {mounting(&runtimeapi.Mount{HostPath: tree, MountOptions: []string{"exec"}}), codes.InvalidArgument, `mounts.mount_options: "exec", of /v`},
	})
	st, err := n.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil || !st.Features.MountOptions || !st.RuntimeHandlers[0].Features.RecursiveReadOnlyMounts {
		t.Errorf("the features are not told: %v, %v", st, err)
	}
}

// Mounts that are made later propagate.
func TestMountPropagation(t *testing.T) {
	n := newNode(t)
	tree := n.mountTree()
	pod := n.podConfig(privilegedPod)
	podID := n.runPod(pod)
	slave := n.run(podID, pod, shell("slave", "sleep 1000", mounting(&runtimeapi.Mount{HostPath: tree, Propagation: slaveMount})))
	shared := n.run(podID, pod, shell("shared", "sleep 1000", privileged(mounting(&runtimeapi.Mount{HostPath: tree, Propagation: sharedMount}))))
	private := n.run(podID, pod, shell("private", "sleep 1000", mounting(&runtimeapi.Mount{HostPath: tree})))

	late := filepath.Join(tree, "late")
	if err := os.Mkdir(late, 0o755); err != nil {
		t.Fatal(err)
	}
	n.mountTmpfs(late)
	if err := os.WriteFile(filepath.Join(late, "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]int32{slave: 0, shared: 0, private: 1} {
		if _, code := n.exec(id, "test -e /v/late/f"); code != want {
			t.Errorf("%s: a mount of the host: %d, want %d", n.status(id).Metadata.Name, code, want)
		}
	}
	if out, code := n.exec(shared, "mkdir /v/back && mount -t tmpfs tmpfs /v/back && touch /v/back/f"); code != 0 {
		t.Fatal(out)
	}
	back := filepath.Join(tree, "back")
	t.Cleanup(func() { _ = unix.Unmount(back, unix.MNT_DETACH) })
	if _, err := os.Stat(filepath.Join(back, "f")); err != nil {
		t.Errorf("a mount of the container: %v", err)
	}
	if _, code := n.exec(slave, "test -e /v/back/f"); code != 0 {
		t.Error("a mount of the container is not in the other one")
	}
}
