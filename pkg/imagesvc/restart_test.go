package imagesvc_test

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
	"criserver/pkg/snapshot/overlay"
)

func TestRestart(t *testing.T) {
	m := registrytest.NewMemory(t)
	img := image(layer(t, "one"), layer(t, "two"))
	img.Config.Config.User = "1000:1000"
	m.Add("a/b", "v1", img.Seal())
	n := newNode(t, direct(m))
	n.pull(t, m.Host+"/a/b:v1")
	before := n.image(t, m.Host+"/a/b:v1")
	n.restart(t)
	if err := n.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := n.image(t, m.Host+"/a/b:v1")
	if after.ID != before.ID || !after.Pulled.Equal(before.Pulled) || after.Size != before.Size || after.Config.Config.User != "1000:1000" ||
		!slices.Equal(after.Tags, before.Tags) || !slices.Equal(after.Digests, before.Digests) || !slices.Equal(after.DiffIDs, before.DiffIDs) {
		t.Errorf("before %+v, after %+v", before, after)
	}
	n.wantLayers(t, img.Layers...)
}

// An image that has lost a piece is out of sight until it is pulled again; then only that piece is fetched.
func TestMissingPiece(t *testing.T) {
	img := image(layer(t, "one"), layer(t, "two"))
	configFile := filepath.Join("content", "sha256", img.ID().Encoded())
	for name, test := range map[string]struct {
		damage  func(t *testing.T, n *node)
		fetched []int // requests for the layers at the second pull
	}{
		"a layer": {func(t *testing.T, n *node) {
			s, err := overlay.New(n.config.LayerRoot, overlay.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(s.RemoveLayer(t.Context(), img.Layers[1].DiffID()), s.Close(t.Context())); err != nil {
				t.Fatal(err)
			}
		}, []int{0, 1}},
		"the configuration": {func(t *testing.T, n *node) {
			if err := os.Remove(filepath.Join(n.root, configFile)); err != nil {
				t.Fatal(err)
			}
		}, []int{0, 0}},
		"half the configuration": {func(t *testing.T, n *node) {
			if err := os.Truncate(filepath.Join(n.root, configFile), 10); err != nil {
				t.Fatal(err)
			}
		}, []int{0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			m := registrytest.NewMemory(t)
			m.Add("a/b", "v1", img)
			n := newNode(t, direct(m))
			n.pull(t, m.Host+"/a/b:v1")
			n.stop(t)
			test.damage(t, n)
			for range 2 { // it stays so, whatever Collect does
				n.start(t)
				if err := n.Collect(t.Context()); err != nil {
					t.Error(err)
				}
				if _, err := n.Resolve(m.Host + "/a/b:v1"); !errors.Is(err, imagesvc.ErrNotFound) || len(n.List()) != 0 {
					t.Fatalf("the image is still there: %v", err)
				}
				n.stop(t)
			}
			n.start(t)
			before := []int{blobGets(m, img.Layers[0]), blobGets(m, img.Layers[1])}
			n.pull(t, m.Host+"/a/b:v1")
			for i, l := range img.Layers {
				if got := blobGets(m, l) - before[i]; got != test.fetched[i] {
					t.Errorf("layer %d was fetched %d times, want %d", i, got, test.fetched[i])
				}
			}
			if n.restart(t); len(n.List()) != 1 {
				t.Error("the image is not whole again")
			}
			if err := n.Remove(t.Context(), m.Host+"/a/b:v1"); err != nil {
				t.Fatal(err)
			}
			n.wantClean(t)
		})
	}
	t.Run("made whole and then the tag moves", func(t *testing.T) {
		m := registrytest.NewMemory(t)
		m.Add("a/b", "v1", img)
		n := newNode(t, direct(m))
		n.pull(t, m.Host+"/a/b:v1")
		n.stop(t)
		if err := os.Remove(filepath.Join(n.root, configFile)); err != nil {
			t.Fatal(err)
		}
		n.start(t)
		n.pull(t, m.Host+"/a/b:v1")
		next := image(layer(t, "next"))
		m.Add("a/b", "v1", next)
		n.pull(t, m.Host+"/a/b:v1")
		if old := n.image(t, img.ID().String()); len(old.Tags) != 0 {
			t.Errorf("the old image has tags %v", old.Tags)
		}
		if now := n.image(t, m.Host+"/a/b:v1"); now.ID != next.ID() {
			t.Errorf("the tag names %s", now.ID)
		}
	})
	t.Run("removed instead", func(t *testing.T) {
		m := registrytest.NewMemory(t)
		m.Add("a/b", "v1", img)
		n := newNode(t, direct(m))
		n.pull(t, m.Host+"/a/b:v1")
		n.stop(t)
		if err := os.Remove(filepath.Join(n.root, configFile)); err != nil {
			t.Fatal(err)
		}
		n.start(t)
		if err := n.Remove(t.Context(), m.Host+"/a/b:v1"); err != nil {
			t.Fatal(err)
		}
		n.wantClean(t)
	})
}

func blobGets(m *registrytest.Memory, l registrytest.Layer) int {
	return m.Count(http.MethodGet, "/blobs/"+l.Descriptor().Digest.String())
}

// TestKill ends a child with SIGKILL in the middle of a pull, when one layer is there and another half.
func TestKill(t *testing.T) {
	if root := os.Getenv("IMAGESVC_TEST_ROOT"); root != "" {
		host := os.Getenv("IMAGESVC_TEST_HOST")
		n := &node{root: root, config: imagesvc.Config{Root: root, LayerRoot: filepath.Join(root, "overlay"), ParallelLayers: 1}}
		n.reg.Mirrors = map[string][]registry.Endpoint{host: {{URL: "http://" + host}}}
		n.start(t)
		n.pull(t, host+"/a/b:v1")
		return
	}
	m := registrytest.NewMemory(t)
	quick, slow := layer(t, "quick"), layer(t, "slow")
	m.Add("a/b", "v1", image(quick, slow))
	g := hold(m, slow)
	n := newNode(t, direct(m))
	n.stop(t)
	child := exec.Command(os.Args[0], "-test.run=^TestKill$")
	child.Env = append(os.Environ(), "IMAGESVC_TEST_ROOT="+n.root, "IMAGESVC_TEST_HOST="+m.Host)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	<-g.arrived
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // for the whole layer to be committed
		if layers, _ := filepath.Glob(filepath.Join(n.root, "overlay/l/*")); len(layers) == 1 || time.Now().After(deadline) {
			break
		}
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	close(g.open)
	n.start(t)
	if len(n.List()) != 0 {
		t.Errorf("half an image is visible: %v", n.List())
	}
	n.wantLayers(t, quick)
	n.pull(t, m.Host+"/a/b:v1")
	if got := blobGets(m, quick); got != 1 {
		t.Errorf("the whole layer was fetched %d times", got)
	}
	if err := n.Remove(t.Context(), m.Host+"/a/b:v1"); err != nil {
		t.Fatal(err)
	}
	n.wantClean(t)
}
