package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/test/images/image"
)

// checkedImage makes an image that can tell whether it is whole: it has the sums of all its files, and what compares them.
// The upper layers have kib KiB each that do not compress, in few large and many small files. It returns the name.
func checkedImage(t *testing.T, name string, layers, kib int) string {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("package busybox-static is needed (make deps): %v", err)
	}
	var all []*image.Layer
	var sums strings.Builder
	add := func(files ...image.File) {
		layer, err := image.NewLayer(image.Gzip, files...)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, layer)
	}
	base := []image.File{image.Dir("bin", 0o755), {Path: "bin/busybox", Mode: 0o755, Body: busybox}}
	for _, applet := range []string{"sh", "sha256sum", "find", "wc"} {
		base = append(base, image.Symlink("bin/"+applet, "busybox"))
	}
	add(base...)
	fmt.Fprintf(&sums, "%x  bin/busybox\n", sha256.Sum256(busybox))
	seed := [32]byte{}
	copy(seed[:], name)
	rng := rand.NewChaCha8(seed)
	for l := range layers {
		dir := fmt.Sprintf("data/%d", l)
		files := []image.File{image.Dir("data", 0o755), image.Dir(dir, 0o755)}
		for left, i := kib<<10, 0; left > 0; i++ {
			size := min(left, 4<<10)
			if i%16 == 0 {
				size = min(left, 1+kib<<10/4)
			}
			body := make([]byte, size)
			_, _ = rng.Read(body) // never fails
			path := fmt.Sprintf("%s/%d", dir, i)
			files = append(files, image.File{Path: path, Mode: 0o644, Body: body})
			fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(body), path)
			left -= size
		}
		if l == layers-1 {
			files = append(files, image.File{Path: "sums", Mode: 0o644, Body: []byte(sums.String())})
		}
		add(files...)
	}
	img, err := image.New(image.Spec{Layers: all})
	if err == nil {
		err = img.Push(t.Context(), registryAddr, "checked/"+name, "latest")
	}
	if err != nil {
		t.Fatal(err)
	}
	return "docker.io/checked/" + name + ":latest"
}

// checker runs containers that compare the files of images.
type checker struct {
	n     *node
	pod   *runtimeapi.PodSandboxConfig
	podID string
	runs  int
}

// newChecker runs a pod for them, which uses the host's network: nothing is to be tested of that here.
func newChecker(n *node) *checker {
	n.t.Helper()
	pod := n.podConfig(func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		c.Hostname = ""
	})
	return &checker{n: n, pod: pod, podID: n.runPod(pod)}
}

// whole fails the test unless a container of the image finds all files as they were made. ref is a name or an ID.
func (c *checker) whole(ref string) {
	c.n.t.Helper()
	c.succeeds(ref, `cd / && sha256sum -c -s sums && [ $(find data -type f | wc -l) = $(($(wc -l <sums) - 1)) ]`)
}

// succeeds fails the test unless a container of the image runs the script and that finds nothing wrong.
func (c *checker) succeeds(ref, script string) {
	c.n.t.Helper()
	c.runs++
	ctx := c.n.t.Context()
	config := shell(fmt.Sprint("check-", c.runs), script, func(k *runtimeapi.ContainerConfig) {
		k.Image.Image = ref
		k.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	created, err := c.n.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: c.podID, Config: config, SandboxConfig: c.pod})
	if err == nil {
		_, err = c.n.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId})
	}
	if err != nil {
		c.n.t.Errorf("an image that is listed, %s, does not run: %v\n%s", ref, err, c.n.log())
		return
	}
	if st := c.n.awaitExit(created.ContainerId); st.ExitCode != 0 {
		c.n.t.Errorf("an image that is listed, %s, is not whole: exit code %d: %v", ref, st.ExitCode, logLines(c.n.t, st.LogPath))
	}
	if _, err := c.n.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: created.ContainerId}); err != nil {
		c.n.t.Errorf("remove container: %v", err)
	}
}

// end removes the pod.
func (c *checker) end() {
	c.n.t.Helper()
	if _, err := c.n.RemovePodSandbox(c.n.t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: c.podID}); err != nil {
		c.n.t.Errorf("remove pod: %v", err)
	}
}

// visible are the names of the images that the runtime lists, by ID if one has none.
func (n *node) visible() []string {
	n.t.Helper()
	list, err := n.images.ListImages(n.t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		n.t.Fatalf("list images: %v\n%s", err, n.log())
	}
	var names []string
	for _, img := range list.Images {
		names = append(names, append(img.RepoTags, img.Id)[0])
	}
	return names
}

// pullAll pulls images at the same time, without an end to the wait, and returns those that were pulled, with when.
func (n *node) pullAll(ctx context.Context, images []string) map[string]time.Time {
	type pulled struct {
		image string
		err   error
	}
	results := make(chan pulled)
	for _, name := range images {
		go func() {
			_, err := n.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: name}})
			results <- pulled{name, err}
		}()
	}
	done := map[string]time.Time{}
	for range images {
		if r := <-results; r.err == nil {
			done[r.image] = time.Now()
		}
	}
	return done
}
