package cgroup

import (
	"fmt"
	"os"
	"testing"
)

func TestParents(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("cgroups need root")
	}
	top := fmt.Sprintf("/criserver-test-parents-%d", os.Getpid())
	t.Cleanup(func() { _ = Remove(top) })
	var p Parents
	create := func(path string) {
		t.Helper()
		if err := p.Create(path); err != nil {
			t.Fatal(err)
		}
	}
	left := func(when string, want ...string) {
		t.Helper()
		exist := map[string]bool{}
		for _, path := range want {
			exist[path] = true
		}
		for _, path := range []string{top, top + "/a", top + "/a/b", top + "/a/b/1", top + "/a/b/2"} {
			if Exists(path) != exist[path] {
				t.Errorf("%s, %s exists: %t", when, path, !exist[path])
			}
		}
	}
	create(top + "/a/b/1")
	create(top + "/a/b/2")
	p.Prune(top + "/a/b/1")
	left("with one beside it", top, top+"/a", top+"/a/b", top+"/a/b/2")
	p.Prune(top + "/a/b/2")
	left("after the last one")

	create(top + "/a/b/1")
	if err := Remove(top + "/a/b"); err != nil {
		t.Fatal(err)
	}
	p.Prune(top + "/a/b/1")
	left("after somebody has removed one")

	create(top + "/a/b/1")
	if err := Remove(top); err != nil {
		t.Fatal(err)
	}
	if err := Create(top + "/a"); err != nil {
		t.Fatal(err)
	}
	create(top + "/a/b/1")
	p.Prune(top + "/a/b/1")
	left("after somebody has made them anew", top, top+"/a")

	var next Parents
	create(top + "/a/b/1")
	next.Prune(top + "/a/b/1")
	left("in another process", top, top+"/a", top+"/a/b")
	p.Prune("")
	if err := p.Create("/a/.."); err == nil {
		t.Error("a dangerous path was not refused")
	}
}
