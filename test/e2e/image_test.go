package e2e

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestImageForms pulls images of all forms from a real registry and looks at their files from inside.
func TestImageForms(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	for name, row := range map[string]struct{ script, want string }{
		"zstd":         {"cat /marker", "here"},
		"uncompressed": {"cat /marker", "here"},
		"schema2":      {"cat /marker", "here"},
		"index":        {"cat /marker; ls /wrong-platform 2>/dev/null", "here"},
		"layers": {`cd /l && ls opaque removed deleted 2>/dev/null | tr '\n' ' '; cat overwritten hard kept/file becomes-dir/inner becomes-file implied/parents/file
			readlink link; readlink absolute; stat -c '%a %u %g' setuid setgid owned kept; stat -c %F fifo null; wc -c <big`,
			"opaque: new second\nfirst\nfirst\nsecond\nsecond\ndeep\nkept/file\n/etc/passwd\n4755 0 0\n2775 0 50\n640 1234 5678\n700 0 0\nfifo\ncharacter special file\n1310720"},
		"config": {"echo $FROM_IMAGE $SPACES; pwd; id -un; cat /data/from-image", "yes a b c\n/made/by/runtime\nwww-data\nkept"},
	} {
		n.sub(name, func(t *testing.T) {
			c := shell(name, row.script, func(c *runtimeapi.ContainerConfig) { c.Image.Image = "docker.io/criserver/" + name })
			out, _ := n.output(podID, pod, c)
			if out != row.want {
				t.Errorf("out = %q, want %q", out, row.want)
			}
		})
	}
	// Its own command line is the entrypoint and the command.
	c := shell("entrypoint", "", func(c *runtimeapi.ContainerConfig) {
		c.Image.Image, c.Command = "docker.io/criserver/config", nil
	})
	if out, _ := n.output(podID, pod, c); out != "entrypoint cmd" {
		t.Errorf("out = %q", out)
	}
}

func TestImageCalls(t *testing.T) {
	n := newNode(t)
	n.pull(busyboxImage)
	st, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: busyboxImage}, Verbose: true})
	if err != nil || st.Image == nil || st.Image.Size == 0 || len(st.Image.RepoTags) != 1 || len(st.Image.RepoDigests) != 1 || st.Info["info"] == "" {
		t.Fatalf("status = %v, %v", st, err)
	}
	pulled, err := n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "docker.io/library/busybox"}})
	if err != nil || pulled.ImageRef != st.Image.Id {
		t.Errorf("the same image of another repository: %v, %v; want %s", pulled, err, st.Image.Id)
	}
	absent, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "docker.io/no/such"}})
	if err != nil || absent.Image != nil {
		t.Errorf("an image that is not there: %v, %v", absent, err)
	}
	info, err := n.images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil || info.ImageFilesystems[0].UsedBytes.Value == 0 || info.ImageFilesystems[0].FsId.Mountpoint == "" {
		t.Errorf("file system = %v, %v", info, err)
	}
	// An image goes with all its names, and while a container runs on it.
	pod := n.podConfig()
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("c", "sleep 1000"))
	for range 2 {
		if _, err := n.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: busyboxImage}}); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := n.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{}); err != nil || len(list.Images) != 0 {
		t.Errorf("images = %v, %v", list, err)
	}
	if out, _ := n.exec(id, "echo alive"); out != "alive" {
		t.Errorf("the container of a removed image: %q", out)
	}
	if got := n.status(id); got.ImageId != st.Image.Id || got.ImageRef == "" {
		t.Errorf("its status has image %q %q", got.ImageId, got.ImageRef)
	}
}

// TestImagesOfHandlers names runtime handlers beside images: all have the same ones, but they must be there.
func TestImagesOfHandlers(t *testing.T) {
	n := newNode(t, "[runtimes.other]\ntype = \"builtin\"\n")
	pod := n.podConfig()
	podID := n.runPod(pod)
	n.pull(busyboxImage)
	calls := map[string]func(*runtimeapi.ImageSpec) error{
		"pull": func(i *runtimeapi.ImageSpec) error {
			return refusal(n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: i}))
		},
		"list": func(i *runtimeapi.ImageSpec) error {
			return refusal(n.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: i}}))
		},
		"status": func(i *runtimeapi.ImageSpec) error {
			r, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: i})
			if err == nil && r.Image == nil {
				t.Errorf("%q has not the image of the others", i.RuntimeHandler)
			}
			return err
		},
		"container": func(i *runtimeapi.ImageSpec) error {
			return refusal(n.create(podID, pod, shell("of-"+i.RuntimeHandler, "true", func(c *runtimeapi.ContainerConfig) { c.Image = i })))
		},
		"mount": func(i *runtimeapi.ImageSpec) error {
			return refusal(n.create(podID, pod, shell("with-"+i.RuntimeHandler, "true", func(c *runtimeapi.ContainerConfig) {
				c.Mounts = []*runtimeapi.Mount{{Image: i, ContainerPath: "/image"}}
			})))
		},
	}
	remove := func(i *runtimeapi.ImageSpec) error {
		return refusal(n.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: i}))
	}
	for _, handler := range []string{"", "builtin", "other"} {
		image := &runtimeapi.ImageSpec{Image: busyboxImage, RuntimeHandler: handler}
		for name, call := range calls {
			if err := call(image); err != nil {
				t.Errorf("%s of an image of %q: %v", name, handler, err)
			}
		}
		if err := remove(image); err != nil {
			t.Errorf("removal of an image of %q: %v", handler, err)
		}
		n.pull(busyboxImage)
	}
	calls["removal"] = remove
	for name, call := range calls {
		err := call(&runtimeapi.ImageSpec{Image: busyboxImage, RuntimeHandler: "nobody"})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "image.runtime_handler") || !strings.Contains(err.Error(), "builtin, other") {
			t.Errorf("%s of an image of an unknown handler: %v", name, err)
		}
	}
}
