package confdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func network(name string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"x"}]}`, name)
}

func names(lists []*libcni.NetworkConfigList) (out []string) {
	for _, l := range lists {
		out = append(out, l.Name)
	}
	return out
}

func TestNetworks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	fallback := &libcni.NetworkConfigList{Name: "fallback"}
	d := &Dir{Path: dir, Max: 2, Fallback: fallback}
	want := func(want ...string) []*libcni.NetworkConfigList {
		t.Helper()
		lists, err := d.Networks()
		if err != nil || !slices.Equal(names(lists), want) {
			t.Errorf("got %v, %v, want %v", names(lists), err, want)
		}
		return lists
	}
	want("fallback")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	want("fallback")
	write(t, dir, "20-b.conflist", network("b"))
	write(t, dir, "10-a.conf", `{"cniVersion":"1.0.0","name":"a","type":"x"}`)
	write(t, dir, "30-c.json", "{") // does not count
	write(t, dir, "00-readme.txt", "{")
	before := want("a", "b")
	if after := want("a", "b"); !slices.Equal(before, after) {
		t.Error("networks were read again though nothing has changed")
	}
	d = &Dir{Path: dir}
	if _, err := d.Networks(); err == nil || !strings.Contains(err.Error(), "30-c.json") {
		t.Errorf("got %v, want the name of the bad file", err)
	}
	write(t, dir, "30-c.json", `{"cniVersion":"1.0.0","name":"a","type":"x"}`)
	if _, err := d.Networks(); err == nil || !strings.Contains(err.Error(), `10-a.conf is a network "a" as well`) {
		t.Errorf("got %v, want that the name is taken", err)
	}
	write(t, dir, "30-c.json", `{"cniVersion":"1.0.0","name":"c","type":"x"}`)
	want("a", "b", "c")
	why := errors.New("not together")
	d.Check = func([]*libcni.NetworkConfigList) error { return why }
	write(t, dir, "40-d.conflist", network("d"))
	if _, err := d.Networks(); !errors.Is(err, why) {
		t.Errorf("got %v, want that the check refuses them", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	d.Empty = ": why"
	if _, err := d.Networks(); err == nil || err.Error() != "no CNI configuration in "+dir+": why" {
		t.Errorf("got %v", err)
	}
}
