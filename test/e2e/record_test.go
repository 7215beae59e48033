package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"criserver/pkg/record"
)

// plainRecord is a record as the database has it.
type plainRecord []byte

func (r *plainRecord) EncodeRecord() ([]byte, error) { return *r, nil }
func (r *plainRecord) DecodeRecord(data []byte) error {
	*r = bytes.Clone(data)
	return nil
}

// TestDamagedImageRecord starts the daemon after something else has written into its records of images: what is wrong is never
// served, and without anybody's doing the image is there again, by what is on the disk alone where that suffices.
func TestDamagedImageRecord(t *testing.T) {
	n := newNode(t)
	pod := n.podConfig()
	podID := n.runPod(pod)
	id := n.run(podID, pod, shell("before", "sleep 1000"))
	spec := &runtimeapi.ImageSpec{Image: busyboxImage}
	status := func() *runtimeapi.ImageStatusResponse {
		t.Helper()
		st, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: spec, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	for name, alter := range map[string]func(string) string{
		"altered": func(s string) string { return strings.Replace(s, `"PATH=`, `"PATH=/evil:`, 1) },
		"cut":     func(s string) string { return s[:len(s)/2] },
	} {
		n.sub(name, func(t *testing.T) {
			whole := status() // when it was pulled is lost with a record that was cut
			n.stop()
			db, err := record.Open(t.Context(), filepath.Join(n.dir, "root/images.db"), record.Options{Sync: true})
			if err != nil {
				t.Fatal(err)
			}
			table, err := record.NewTable[plainRecord](t.Context(), db, "images")
			if err != nil {
				t.Fatal(err)
			}
			all, err := table.Load(t.Context())
			if err != nil || len(all) != 1 {
				t.Fatalf("%d records, %v", len(all), err)
			}
			for key, value := range all {
				altered := alter(string(value))
				if altered == string(value) {
					t.Fatalf("nothing is altered in %s", value)
				}
				if err := table.Put(t.Context(), key, plainRecord(altered)); err != nil {
					t.Fatal(err)
				}
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			n.start()
			eventually(t, "the image is there again", func() bool {
				st := status()
				if strings.Contains(st.Info["info"], "/evil") {
					t.Fatalf("served: %s", st.Info["info"])
				}
				return st.Image != nil
			})
			if st := status(); st.Image.String() != whole.Image.String() || st.Info["info"] != whole.Info["info"] && name == "altered" {
				t.Errorf("now it is %v\nwas %v", st, whole)
			}
			if out := n.image("check"); !strings.Contains(out, "nothing is wrong") {
				t.Errorf("check: %s", out)
			}
			log, err := os.ReadFile(filepath.Join(n.dir, "criserver.log"))
			if err != nil || !strings.Contains(string(log), "the record of an image is damaged") {
				t.Errorf("the log does not tell of it: %v", err)
			}
			if out, _ := n.exec(id, "echo alive"); out != "alive" {
				t.Errorf("the container says %q", out)
			}
			after, _ := n.output(podID, pod, shell("after-"+name, "echo $PATH"))
			if after == "" || strings.Contains(after, "/evil") {
				t.Errorf("a container has PATH %q", after)
			}
		})
	}
}
