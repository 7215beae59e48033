package treecopy

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// shell runs a script in a directory.
func shell(t *testing.T, dir, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-euc", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// listTree shows all that matters of a tree but the times of directories.
func listTree(t *testing.T, dir string) string {
	t.Helper()
	return shell(t, dir, `find . -not -type d -printf '%P %y %m %U:%G %s %n %T@ %l\n' -o -printf '%P %y %m %U:%G\n' | sort; find . -type f | sort | xargs -r cat`)
}

// block is a file system of its own, made by mounting a file, which can be copied block by block.
func block(t *testing.T, file string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", file, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", dir).Run() })
	return dir
}

func TestChangesAndApply(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	file := filepath.Join(t.TempDir(), "before")
	shell(t, ".", `truncate -s 32M `+file+`; mkfs.ext4 -q -F `+file)
	was := block(t, file)
	shell(t, was, `rmdir lost+found; umask 022
		mkdir -p kept/deep changed dir gone/below attrs filetodir0; echo same >kept/deep/f; ln kept/deep/f kept/link
		echo one >changed/f; echo sneak >changed/sneaky; touch -d 2020-01-01 changed/sneaky; ln -s f changed/l; echo x >gone/below/f; echo y >dir/old
		echo z >todir; echo m >mode; echo h >hard1; mkdir recreated; echo r >recreated/f; mkdir empty`)
	shell(t, ".", "umount "+was+"; cp "+file+" "+file+"2; cp "+file+" "+file+"3")
	before, after, other := block(t, file), block(t, file+"2"), block(t, file+"3")
	shell(t, after, `umask 022
		echo two >>changed/f; printf 'snuck' >changed/sneaky; echo >>changed/sneaky; touch -d 2020-01-01 changed/sneaky; ln -sf g changed/l
		rm -r gone; rm -r dir; echo now >dir; rm todir; mkdir todir; echo in >todir/f; chmod 600 mode; ln hard1 hard2; chmod 711 attrs
		rm -r recreated; mkdir recreated; echo q >recreated/g; mkfifo new; mkdir -p new2/a; echo b >new2/a/b; chown 7:8 new2/a; setfattr -n user.a -v b new2/a/b || true`)
	changes := t.TempDir()
	if err := Changes(t.Context(), before, after, changes); err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(shell(t, changes, `find . -mindepth 1 -printf '%P\n'`))
	slices.Sort(names)
	want := strings.Fields("attrs changed changed/f changed/l changed/sneaky dir gone hard1 hard2 mode new new2 new2/a new2/a/b recreated recreated/f recreated/g todir todir/f")
	if !slices.Equal(names, want) {
		t.Errorf("changes are %q, want %q", names, want)
	}
	for _, name := range []string{"gone", "recreated/f"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(changes, name), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("%s: mode %o, %v, want a whiteout", name, st.Mode, err)
		}
	}
	if err := Apply(t.Context(), changes, other, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := listTree(t, other), listTree(t, after); got != want {
		t.Errorf("applied, the tree is\n%s\nwant\n%s", got, want)
	}
	// The same again changes nothing.
	if err := Apply(t.Context(), changes, other, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := listTree(t, other), listTree(t, after); got != want {
		t.Errorf("applied twice, the tree is\n%s\nwant\n%s", got, want)
	}
}

func TestApplyKeepsAndClears(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	changes, to, outside := t.TempDir(), t.TempDir(), t.TempDir()
	shell(t, changes, `mkdir implied opaque link new; chmod 700 implied; echo 1 >implied/f; echo 2 >opaque/f; echo 3 >link/f; echo 4 >new/f`)
	if err := unix.Setxattr(filepath.Join(changes, "opaque"), opaque, []byte("y"), 0); err != nil {
		t.Skip(err)
	}
	shell(t, to, `mkdir -m 751 implied; mkdir -p opaque/old; ln -s `+outside+` link`)
	if err := Apply(t.Context(), changes, to, map[string]bool{"implied": true, "new": true}); err != nil {
		t.Fatal(err)
	}
	if got, want := shell(t, to, `find . -printf '%P %m\n' | sort | tail -n +2; find . -type f | sort | xargs cat`), shell(t, changes,
		`find . -printf '%P %m\n' | sort | tail -n +2 | sed 's/implied 700/implied 751/'; find . -type f | sort | xargs cat`); got != want {
		t.Errorf("applied:\n%s\nwant\n%s", got, want)
	}
	if names, _ := os.ReadDir(outside); len(names) > 0 {
		t.Errorf("what a symbolic link names has %v", names)
	}
}
