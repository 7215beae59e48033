package e2e

import (
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestImageVolumes mounts images into a container, whole and in part.
func TestImageVolumes(t *testing.T) {
	programs := handlerPrograms(t)
	n := newNode(t, handlerConfig(programs))
	n.onEach(programs, func(t *testing.T, handler string) { checkImageVolumes(t, n, handler) })
}

func checkImageVolumes(t *testing.T, n *node, handler string) {
	const volume = "docker.io/criserver/layers"
	n.pull(volume)
	pod := n.podConfig()
	podID := n.runPodOn(handler, pod)
	mount := func(to, sub string) *runtimeapi.Mount {
		return &runtimeapi.Mount{ContainerPath: to, ImageSubPath: sub, Image: &runtimeapi.ImageSpec{Image: volume}}
	}
	c := shell("user", `cat /whole/l/kept/file /dir/inner /file; touch /whole/x 2>&1 | grep -o Read-only; touch /dir/x 2>&1 | grep -o Read-only; sleep 1000`,
		func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{mount("/whole", ""), mount("/dir", "l/becomes-dir"), mount("/file", "l/link")}
		})
	id := n.run(podID, pod, c)
	out, _ := n.exec(id, "cat /whole/l/kept/file /dir/inner /file; touch /whole/x /dir/x 2>&1 | grep -c Read-only")
	if want := "first\nsecond\nfirst\n2"; out != want {
		t.Errorf("the container sees %q, want %q", out, want)
	}
	st := n.status(id)
	if len(st.Mounts) != 3 || st.Mounts[1].ImageSubPath != "l/becomes-dir" || st.Mounts[1].Image.GetUserSpecifiedImage() != volume || !st.Mounts[1].Readonly {
		t.Errorf("status has mounts %v", st.Mounts)
	}
	// The volume outlives its image, and the daemon.
	if _, err := n.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: volume}}); err != nil {
		t.Fatal(err)
	}
	n.kill()
	n.start()
	if out, _ := n.exec(id, "cat /whole/l/kept/file /dir/inner /file"); out != "first\nsecond\nfirst" {
		t.Errorf("after a restart the container sees %q", out)
	}
	n.pull(volume)
	for name, row := range map[string]struct {
		mount *runtimeapi.Mount
		says  string
	}{
		"missing path":        {mount("/v", "no/such"), "ImageVolumeMountFailed"},
		"path that leaves it": {mount("/v", "../../../etc/shadow"), "ImageVolumeMountFailed"},
		"absolute path":       {mount("/v", "/etc"), "image_sub_path"},
		"missing image":       {&runtimeapi.Mount{ContainerPath: "/v", Image: &runtimeapi.ImageSpec{Image: "docker.io/no/such"}}, "ImageVolumeMountFailed"},
		"host path too":       {&runtimeapi.Mount{ContainerPath: "/v", HostPath: "/tmp", Image: &runtimeapi.ImageSpec{Image: volume}}, "mounts[0].host_path"},
	} {
		c := shell("bad", "true", func(c *runtimeapi.ContainerConfig) { c.Mounts = []*runtimeapi.Mount{row.mount} })
		_, err := n.create(podID, pod, c)
		if err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestArtifactVolume mounts files that are no image.
func TestArtifactVolume(t *testing.T) {
	p := pusher(t, "models/tiny", "v1")
	config := pushBlob(t, p, ocispec.MediaTypeEmptyJSON, []byte("{}"))
	var layers []ocispec.Descriptor
	for _, name := range []string{"model.bin", "docs/readme"} {
		l := pushBlob(t, p, "application/octet-stream", []byte("content of "+name))
		l.Annotations = map[string]string{ocispec.AnnotationTitle: name}
		layers = append(layers, l)
	}
	pushManifest(t, p, ocispec.Manifest{ArtifactType: "application/vnd.example.model", Config: config, Layers: layers})
	n := newNode(t)
	const artifact = "docker.io/models/tiny:v1"
	n.pull(artifact)
	pod := n.podConfig()
	podID := n.runPod(pod)
	c := shell("user", "cat /m/model.bin; echo; cat /d", func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{
			{ContainerPath: "/m", Image: &runtimeapi.ImageSpec{Image: artifact}},
			{ContainerPath: "/d", ImageSubPath: "docs/readme", Image: &runtimeapi.ImageSpec{Image: artifact}},
		}
	})
	if out, _ := n.output(podID, pod, c); out != "content of model.bin\ncontent of docs/readme" {
		t.Errorf("the container sees %q", out)
	}
	_, err := n.create(podID, pod, shell("bad", "true", func(c *runtimeapi.ContainerConfig) { c.Image.Image = artifact }))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "artifact") {
		t.Errorf("a container of an artifact: %v", err)
	}
}
