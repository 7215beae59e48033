package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fillUp takes all that is free on a file system, to the last block.
func fillUp(t *testing.T, file string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size >= 512; {
		if _, err := f.Write(make([]byte, size)); err == nil {
			continue
		} else if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		size /= 2
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	unix.Sync()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// TestFullDiskStart fills the disk that has everything of a node, the state directory too, kills the daemon, and starts it:
// what is there can be seen and removed, which frees the room for what comes next.
func TestFullDiskStart(t *testing.T) {
	large, next := checkedImage(t, "large", 2, 24<<10), checkedImage(t, "next", 2, 8<<10)
	n := newStoppedNode(t)
	disk := mountRoot(t, n, 256)
	state := filepath.Join(disk, "state")
	if err := errors.Join(os.Mkdir(state, 0o711), os.Symlink(state, filepath.Join(n.dir, "state"))); err != nil {
		t.Fatal(err)
	}
	n.serve()
	n.pull(large)
	pod := n.podConfig()
	podID := n.runPod(pod)
	runs := n.run(podID, pod, shell("runs", "while :; do sleep 1; done"))
	other := n.runPod(n.podConfig())
	fillUp(t, filepath.Join(disk, "filler"))
	if free := freeBytes(t, disk); free > 0 {
		t.Fatalf("the disk has %d bytes free", free)
	}

	// Killed, and then stopped as by an administrator.
	n.kill()
	n.start()
	n.stop()
	n.start()
	fillUp(t, filepath.Join(disk, "filler"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if st := n.status(runs); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s", st.State)
	}
	images, err := n.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil || len(images.Images) != 2 {
		t.Errorf("images: %v, %v", images, err)
	}
	if out, _ := n.exec(runs, "echo alive"); out != "alive" {
		t.Errorf("exec says %q", out)
	}
	if err := n.pullAs(next, nil); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("pull on a full disk: %v", err)
	}
	if resp, err := n.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: n.podConfig()}); err == nil {
		t.Errorf("a pod runs on a full disk: %v", resp)
	} else if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a pod on a full disk: %v", err)
	}
	fillUp(t, filepath.Join(disk, "filler"))
	if _, err := n.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: runs}); err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := n.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: runs}); err != nil {
		t.Errorf("remove container: %v", err)
	}
	for _, id := range []string{podID, other} {
		if _, err := n.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Errorf("stop pod: %v", err)
		}
		if _, err := n.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			t.Errorf("remove pod: %v", err)
		}
	}
	if _, err := n.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: large}}); err != nil {
		t.Errorf("remove image: %v", err)
	}
	eventually(t, "space comes back", func() bool { return freeBytes(t, disk) > 40<<20 })
	n.pull(next)
	pod = n.podConfig()
	n.run(n.runPod(pod), pod, shell("new", "sleep 1000"))
}
