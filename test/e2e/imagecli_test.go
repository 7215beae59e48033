package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// image runs "criserver image" and returns what it prints.
func (n *node) image(args ...string) string {
	n.t.Helper()
	out, err := n.tryImage("", args...)
	if err != nil {
		n.t.Fatalf("image %s: %v\n%s", strings.Join(args, " "), err, n.log())
	}
	return out
}

func (n *node) tryImage(stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(n.t.Context(), binary("criserver"), append([]string{"image", "--config", n.config}, args...)...)
	if stdin != "" {
		f, err := os.Open(stdin)
		if err != nil {
			return "", err
		}
		defer f.Close()
		cmd.Stdin = f
	}
	var text strings.Builder
	cmd.Stderr = &text
	out, err := cmd.Output()
	if err != nil {
		return string(out), &toolError{err, text.String()}
	}
	return strings.TrimSpace(string(out)), nil
}

type toolError struct {
	err    error
	stderr string
}

func (e *toolError) Error() string { return e.err.Error() + ": " + e.stderr }

// tool runs a program of the machine.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestImageCommands is an operator's day without any other tool, and with skopeo looking on.
func TestImageCommands(t *testing.T) {
	n := newNode(t)
	const busybox = "docker.io/library/busybox:latest"
	id := n.image("pull", busybox)
	n.image("tag", busybox, "own/copy:v1")
	var list []struct {
		ID   string   `json:"id"`
		Tags []string `json:"tags"`
		Size int64    `json:"size"`
	}
	if err := json.Unmarshal([]byte(n.image("ls", "--json")), &list); err != nil || len(list) != 1 || list[0].ID != id || len(list[0].Tags) != 2 || list[0].Size == 0 {
		t.Fatalf("list %+v, %v", list, err)
	}
	// What a container has written becomes an image, which runs.
	pod := n.podConfig()
	podID := n.runPod(pod)
	c := n.run(podID, pod, shell("c", "echo made >/made; rm /bin/vi; mkdir /d && chmod 700 /d; sleep 1000"))
	n.exec(c, "while ! [ -d /d ]; do sleep 0.01; done")
	committed := n.image("commit", c, "own/committed:v1", "--author", "me", "--message", "why", "--change", `CMD ["cat", "/made"]`)
	n.exec(c, "echo still running")
	ran := shell("r", "", func(c *runtimeapi.ContainerConfig) { c.Image.Image, c.Command = "own/committed:v1", nil })
	if out, code := n.output(podID, pod, ran); out != "made" || code != 0 {
		t.Errorf("the committed image prints %q, exit code %d", out, code)
	}
	look := shell("l", "ls /bin/vi 2>&1 | grep -c 'No such'; stat -c %a /d", func(c *runtimeapi.ContainerConfig) { c.Image.Image = "own/committed:v1" })
	if out, _ := n.output(podID, pod, look); out != "1\n700" {
		t.Errorf("in the committed image: %q", out)
	}
	// Both forms go to another tool, and come back as the same image.
	for _, format := range []string{"oci", "docker"} {
		file, back := filepath.Join(n.dir, format+".tar"), filepath.Join(n.dir, format+"-back.tar")
		n.image("export", "own/committed:v1", "-o", file, "--format", format)
		tool(t, "skopeo", "copy", "--insecure-policy", format+"-archive:"+file, format+"-archive:"+back+":docker.io/own/back:v1")
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if _, err := n.tryImage(back, "import", "-", "--name", "own/back:"+format); err != nil {
			t.Fatal(err)
		}
		if out := n.image("inspect", "own/back:"+format); !strings.Contains(out, committed) {
			t.Errorf("%s: came back as\n%s", format, out)
		}
	}
	n.image("push", "own/committed:v1", registryAddr+"/pushed/it:v1")
	if out := tool(t, "skopeo", "inspect", "--tls-verify=false", "--config", "docker://"+registryAddr+"/pushed/it:v1"); !strings.Contains(out, `"me"`) {
		t.Errorf("skopeo reads %s", out)
	}
	if out := n.image("check"); !strings.Contains(out, "nothing is wrong") {
		t.Errorf("check: %s", out)
	}
	files, err := filepath.Glob(filepath.Join(n.dir, "root/overlay/l/*/fs/bin/busybox"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	if err := os.WriteFile(files[0], []byte("damage"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := n.tryImage("", "check"); err == nil || !strings.Contains(out, "busybox") {
		t.Errorf("check of damage: %v, %s", err, out)
	}
	n.image("check", "--repair")
	if out, code := n.output(podID, pod, shell("again", "echo runs")); out != "runs" || code != 0 {
		t.Errorf("after the repair: %q, %d", out, code)
	}
	if out := n.image("explain", busybox); !strings.Contains(out, registryAddr) {
		t.Errorf("explain: %s", out)
	}
	if out, err := n.tryImage("", "rm", busybox); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("rm of an image in use: %v, %s", err, out)
	}
	n.image("rm", "--force", busybox, "own/committed:v1")
	if out := n.image("ls", "-q"); out != "" {
		t.Errorf("left: %s", out)
	}
}

// TestImagesOfOtherTools runs images that umoci has built and skopeo has pushed.
func TestImagesOfOtherTools(t *testing.T) {
	n := newNode(t)
	layout := filepath.Join(t.TempDir(), "layout")
	tool(t, "skopeo", "copy", "--insecure-policy", "--src-tls-verify=false", "docker://"+registryAddr+"/library/busybox:latest", "oci:"+layout+":base")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("by umoci"), 0o644); err != nil {
		t.Fatal(err)
	}
	tool(t, "umoci", "insert", "--image", layout+":base", "--tag", "new", file, "/inserted")
	tool(t, "umoci", "config", "--image", layout+":new", "--config.cmd", "cat", "--config.cmd", "/inserted", "--config.env", "A=1")
	pod := n.podConfig()
	podID := n.runPod(pod)
	for name, args := range map[string][]string{"oci": nil, "schema2": {"--format", "v2s2"}, "zstd": {"--dest-compress-format", "zstd", "--dest-compress"}} {
		args := append([]string{"copy", "--insecure-policy", "--dest-tls-verify=false", "oci:" + layout + ":new", "docker://" + registryAddr + "/umoci/" + name + ":v1"}, args...)
		tool(t, "skopeo", args...)
		c := shell(name, "", func(c *runtimeapi.ContainerConfig) { c.Image.Image, c.Command = "docker.io/umoci/"+name+":v1", nil })
		if out, code := n.output(podID, pod, c); out != "by umoci" || code != 0 {
			t.Errorf("%s: %q, %d", name, out, code)
		}
	}
}
