package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/imagesvc/registry/registrytest"
	"criserver/pkg/snapshot/quota/quotatest"
)

// TestPullProgress asks how far a pull is while its registry holds the second layer back in the middle.
func TestPullProgress(t *testing.T) {
	random := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(random) // never fails
	layer := func(name string, content []byte) registrytest.Layer {
		return registrytest.NewLayer(t, ocispec.MediaTypeImageLayer, map[string][]byte{name: content})
	}
	img := registrytest.NewImage(runtime.GOARCH, layer("small", random[:1<<10]), layer("large", random))
	m := registrytest.NewMemory(t)
	m.Add("a/b", "v1", img)
	large, half, goOn := img.Manifest.Layers[1], len(img.Layers[1].Blob)/2, make(chan struct{})
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, large.Digest.String()) || r.Header.Get("Range") != "" {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(large.Size))
		_, _ = w.Write(img.Layers[1].Blob[:half])
		_ = http.NewResponseController(w).Flush()
		<-goOn
		_, _ = w.Write(img.Layers[1].Blob[half:])
		return true
	}
	n := newNode(t)
	spec := &runtimeapi.ImageSpec{Image: m.Host + "/a/b:v1"}
	pulls := func() (image *runtimeapi.Image, list []progressOfPull) {
		st, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: spec, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		if text, ok := st.Info["pulls"]; ok {
			if err := json.Unmarshal([]byte(text), &list); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
		}
		return st.Image, list
	}
	if image, list := pulls(); image != nil || list != nil {
		t.Errorf("before the pull: %v, %+v", image, list)
	}
	pulled := make(chan error, 1)
	go func() {
		_, err := n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: spec})
		pulled <- err
	}()
	var list []progressOfPull
	eventually(t, "half of the second layer is unpacked", func() bool {
		var image *runtimeapi.Image
		if image, list = pulls(); image != nil {
			t.Fatal("the image is there before its layers")
		}
		return len(list) == 1 && len(list[0].Layers) == 2 && list[0].Layers[0].State == "done" && list[0].Layers[1].Fetched == int64(half) &&
			list[0].Layers[1].Unpacked > int64(half)/2
	})
	small, second := img.Manifest.Layers[0], list[0].Layers[1]
	if want := (progressOfLayer{small.Digest.String(), "done", small.Size, small.Size, small.Size}); list[0].Ref != spec.Image || list[0].Layers[0] != want {
		t.Errorf("%s: first layer %+v, want %+v", list[0].Ref, list[0].Layers[0], want)
	}
	if second.Digest != large.Digest.String() || second.State != "fetching" || second.Size != large.Size || second.Unpacked > second.Fetched {
		t.Errorf("second layer %+v", second)
	}
	close(goOn)
	if err := <-pulled; err != nil {
		t.Fatalf("%v\n%s", err, n.log())
	}
	if image, list := pulls(); image == nil || list != nil {
		t.Errorf("after the pull: %v, %+v", image, list)
	}
}

// progressOfPull is what the verbose status of an image has of each pull of it.
type progressOfPull struct {
	Ref    string
	Layers []progressOfLayer
}

type progressOfLayer struct {
	Digest, State           string
	Size, Fetched, Unpacked int64
}

// TestImageUsers looks at who an image's containers run as, which the kubelet decides by, in the list, the stream and the status.
func TestImageUsers(t *testing.T) {
	server := registrytest.Start(t, registrytest.Options{})
	n := newNode(t)
	layer := registrytest.NewLayer(t, ocispec.MediaTypeImageLayerGzip, map[string][]byte{"file": []byte("x")})
	uid := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	want := map[string]*runtimeapi.Image{
		"":             {},
		"1000":         {Uid: uid(1000)},
		"0":            {Uid: uid(0)},
		"1000:2000":    {Uid: uid(1000)},
		"1000:staff":   {Uid: uid(1000)},
		"www-data":     {Username: "www-data"},
		"www-data:100": {Username: "www-data"},
		":100":         {},
	}
	byID := map[string]string{}
	for user := range want {
		img := registrytest.NewImage(runtime.GOARCH, layer)
		img.Config.Config.User = user
		server.Push(t, "team/users", "v1", img.Seal())
		pulled, err := n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: server.Host + "/team/users:v1"}})
		if err != nil {
			t.Fatal(err)
		}
		byID[pulled.ImageRef] = user
	}
	st, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: server.Host + "/team/users:v1"}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := n.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for name, images := range map[string][]*runtimeapi.Image{"status": {st.Image}, "list": list.Images, "stream": n.streamImages("")} {
		if name != "status" && len(images) != len(want) {
			t.Errorf("%s: %d images, want %d", name, len(images), len(want))
		}
		for _, got := range images {
			user := byID[got.Id]
			if w := want[user]; got.Username != w.Username || (got.Uid == nil) != (w.Uid == nil) || got.Uid.GetValue() != w.Uid.GetValue() {
				t.Errorf("%s: user %q is told as %v, %q", name, user, got.Uid, got.Username)
			}
			if tags := len(got.RepoTags); got.Size == 0 || len(got.RepoDigests) != 1 || (tags == 1) != (got.Id == st.Image.Id) {
				t.Errorf("%s: user %q: %v", name, user, got)
			}
		}
	}
}

// TestStreamImages has more images than fit into a message.
func TestStreamImages(t *testing.T) {
	m := registrytest.NewMemory(t)
	n := newNode(t)
	const count = 250
	ids := make([]string, count)
	for i := range count {
		img := registrytest.NewImage(runtime.GOARCH)
		img.Config.Author = fmt.Sprint(i)
		m.Add("a/b", fmt.Sprintf("v%d", i), img.Seal())
		ids[i] = img.ID().String()
	}
	for i := range count {
		if _, err := n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: fmt.Sprintf("%s/a/b:v%d", m.Host, i)}}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, img := range n.streamImages("") {
		got = append(got, img.Id)
	}
	slices.Sort(got)
	slices.Sort(ids)
	if !slices.Equal(got, ids) {
		t.Errorf("%d images in the stream, %d different, want %d", len(got), len(slices.Compact(got)), count)
	}
	if one := n.streamImages(m.Host + "/a/b:v7"); len(one) != 1 || one[0].RepoTags[0] != m.Host+"/a/b:v7" {
		t.Errorf("filtered: %v", one)
	}
	if none := n.streamImages(m.Host + "/a/b:v999"); len(none) != 0 {
		t.Errorf("filtered by what is not there: %v", none)
	}
}

// streamImages takes all of a stream, of the images of a name or all.
func (n *node) streamImages(name string) (out []*runtimeapi.Image) {
	n.t.Helper()
	stream, err := n.images.StreamImages(n.t.Context(), &runtimeapi.StreamImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: name}}})
	if err != nil {
		n.t.Fatal(err)
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			n.t.Fatal(err)
		}
		out = append(out, resp.Images...)
	}
}

// TestImageFsInfo compares what containers have written with what is told of it: from quotas, and where there are none from the
// walk that follows a start.
func TestImageFsInfo(t *testing.T) {
	const files, size = 20, 256 << 10
	for name, quotas := range map[string]bool{"walked": false, "quotas": true} {
		t.Run(name, func(t *testing.T) {
			n := newStoppedNode(t)
			root := filepath.Join(n.dir, "root")
			if quotas {
				disk := quotatest.Mount(t, quotatest.Ext4)
				if err := errors.Join(os.Mkdir(root, 0o755), unix.Mount(disk, root, "", unix.MS_BIND, "")); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := unix.Unmount(root, 0); err != nil {
						t.Error(err)
					}
				})
			}
			n.serve()
			written := func() (bytes, inodes int64) {
				info, err := n.images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
				if err != nil || len(info.ContainerFilesystems) != 1 || info.ContainerFilesystems[0].Timestamp == 0 {
					t.Fatalf("%v, %v", info, err)
				}
				c := info.ContainerFilesystems[0]
				if c.FsId.Mountpoint != info.ImageFilesystems[0].FsId.Mountpoint || !strings.HasPrefix(c.FsId.Mountpoint, root) {
					t.Errorf("they are on %v, images on %v", c.FsId, info.ImageFilesystems[0].FsId)
				}
				return int64(c.UsedBytes.Value), int64(c.InodesUsed.Value)
			}
			pod := n.podConfig()
			podID := n.runPod(pod)
			id := n.run(podID, pod, shell("writer", "sleep 1000"))
			emptyBytes, emptyInodes := written()
			script := fmt.Sprintf("mkdir /w && for i in $(seq %d); do head -c %d /dev/urandom >/w/$i || exit 1; done", files, size)
			if out, code := n.exec(id, script); code != 0 {
				t.Fatalf("exit code %d, %s", code, out)
			}
			if !quotas {
				n.kill()
				n.start()
			}
			var bytes, inodes int64
			eventually(t, "what the container wrote is told of", func() bool {
				bytes, inodes = written()
				return bytes-emptyBytes >= files*size
			})
			// Directories take something too.
			if bytes-emptyBytes > files*size+64<<10 || inodes-emptyInodes < files+1 || inodes-emptyInodes > files+10 {
				t.Errorf("%d bytes in %d files more, want %d in %d and what directories take", bytes-emptyBytes, inodes-emptyInodes, files*size, files)
			}
			if _, err := n.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "what it wrote is gone", func() bool { // it is deleted in the background
				bytes, inodes = written()
				return bytes == 0 && inodes == 0
			})
		})
	}
}
