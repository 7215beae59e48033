package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// builder builds images with Debian's buildah, in a store of its own.
type builder struct {
	t   *testing.T
	dir string
}

func (b builder) buildah(args ...string) {
	b.t.Helper()
	tool(b.t, "buildah", append([]string{"--root", filepath.Join(b.dir, "store"), "--runroot", filepath.Join(b.dir, "run"),
		"--storage-driver", "vfs"}, args...)...)
}

// build builds an image of a Containerfile. What it runs is isolated by chroot, which needs nothing of the machine.
func (b builder) build(tag, containerfile string, args ...string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, "Containerfile"), []byte(containerfile), 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.buildah(append(append([]string{"bud", "--isolation", "chroot", "--tls-verify=false", "--layers", "-t", tag}, args...), b.dir)...)
}

// TestBuildah runs images that buildah has built and pushed, or written to an archive, and has it build on what was committed
// and pushed here.
func TestBuildah(t *testing.T) {
	b := builder{t, t.TempDir()}
	const script = "RUN echo built >/made && mkdir -m 711 /d && rm /bin/vi && ln -s made /link && chown 12:34 /made\n"
	for _, format := range []string{"oci", "docker"} {
		b.build(format, "FROM "+registryAddr+"/library/busybox\n"+script+
			`ENV A="b c"`+"\nRUN echo more >>/made\nUSER 12:34\n"+`CMD ["sh", "-c", "exec 2>&1; cat /link; echo $A; id -u; stat -c '%a %u %g' /d /made; ls /bin/vi"]`+"\n",
			"--format", format)
	}
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	const want = "built\nmore\nb c\n12\n711 0 0\n644 12 34\nls: /bin/vi: No such file or directory"
	runs := func(name, image, want string) string {
		t.Helper()
		c := shell(name, "", func(c *runtimeapi.ContainerConfig) { c.Image.Image, c.Command = image, nil })
		id := n.run(podID, pod, c)
		st := n.awaitExit(id)
		if out := strings.Join(logLines(t, st.LogPath), "\n"); out != want {
			t.Errorf("%s: %q, want %q", name, out, want)
		}
		return id
	}
	var last string
	for _, format := range []string{"oci", "docker"} {
		b.buildah("push", "--tls-verify=false", format, "docker://"+registryAddr+"/buildah/"+format+":v1")
		last = runs(format, "docker.io/buildah/"+format+":v1", want)
		id := n.status(last).ImageId
		n.image("rm", "--force", "docker.io/buildah/"+format+":v1")
		file := filepath.Join(b.dir, format+".tar")
		b.buildah("push", format, format+"-archive:"+file+":docker.io/archived/"+format+":v1")
		n.image("import", file)
		last = runs(format+"-archive", "docker.io/archived/"+format+":v1", want)
		if again := n.status(last).ImageId; again != id {
			t.Errorf("%s: the registry has image %s, the archive %s", format, id, again)
		}
	}
	const ours = "docker.io/own/committed:v1"
	n.image("commit", last, ours, "--change", "USER 0", "--change", "ENV BY=us")
	n.image("push", ours, registryAddr+"/buildah/committed:v1")
	b.build("next", "FROM "+registryAddr+"/buildah/committed:v1\nRUN cat /link >/copy\n"+`CMD ["sh", "-c", "cat /copy; echo $BY"]`+"\n")
	b.buildah("push", "--tls-verify=false", "next", "docker://"+registryAddr+"/buildah/next:v1")
	runs("next", "docker.io/buildah/next:v1", "built\nmore\nus")
}
