package user

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"criserver/pkg/sandbox/spec"
)

const passwd = `root:x:0:0:root:/root:/bin/sh
# a comment
app:x:1000:1001:App,,,:/home/app:/bin/sh
other:x:1000:7:second of the same number:/nowhere:/bin/sh
1234:x:77:78::/num:/bin/sh
wide:x:4294967295:1::/:/bin/sh
`

const group = `root:x:0:
audio:x:29:app,pulse
app:x:1001:
video:x:44:pulse,app
disk:x:6:root
wide:x:4294967296:wide
`

func newImage(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func id(v int64) *int64 { return &v }

func TestResolve(t *testing.T) {
	root := newImage(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
	empty := t.TempDir()
	for name, tc := range map[string]struct {
		root string
		want Want
		user spec.User
		err  string // the field that the error names
	}{
		"nothing":                  {root, Want{}, spec.User{Home: "/root", AdditionalGIDs: []uint32{0, 6}}, ""},
		"nothing, no files":        {empty, Want{}, spec.User{AdditionalGIDs: []uint32{0}}, ""},
		"uid with entry":           {root, Want{UID: id(1000)}, spec.User{UID: 1000, GID: 1001, Home: "/home/app", AdditionalGIDs: []uint32{29, 44, 1001}}, ""},
		"uid without entry":        {root, Want{UID: id(5)}, spec.User{UID: 5, AdditionalGIDs: []uint32{0}}, ""},
		"uid beats image":          {root, Want{UID: id(5), ImageUser: "app:video"}, spec.User{UID: 5, AdditionalGIDs: []uint32{0}}, ""},
		"uid and gid":              {root, Want{UID: id(1000), GID: id(9)}, spec.User{UID: 1000, GID: 9, Home: "/home/app", AdditionalGIDs: []uint32{9, 29, 44}}, ""},
		"username":                 {root, Want{Username: "app"}, spec.User{UID: 1000, GID: 1001, Home: "/home/app", AdditionalGIDs: []uint32{29, 44, 1001}}, ""},
		"username is a number":     {root, Want{Username: "1234"}, spec.User{UID: 77, GID: 78, Home: "/num", AdditionalGIDs: []uint32{78}}, ""},
		"supplemental merged":      {root, Want{Username: "app", SupplementalGIDs: []int64{500, 29}}, spec.User{UID: 1000, GID: 1001, Home: "/home/app", AdditionalGIDs: []uint32{29, 44, 500, 1001}}, ""},
		"supplemental strict":      {root, Want{Username: "app", SupplementalGIDs: []int64{500}, StrictGroups: true}, spec.User{UID: 1000, GID: 1001, Home: "/home/app", AdditionalGIDs: []uint32{500, 1001}}, ""},
		"image user":               {root, Want{ImageUser: "app"}, spec.User{UID: 1000, GID: 1001, Home: "/home/app", AdditionalGIDs: []uint32{29, 44, 1001}}, ""},
		"image uid:gid":            {root, Want{ImageUser: "12:34"}, spec.User{UID: 12, GID: 34, AdditionalGIDs: []uint32{34}}, ""},
		"image user:group":         {root, Want{ImageUser: "app:disk"}, spec.User{UID: 1000, GID: 6, Home: "/home/app", AdditionalGIDs: []uint32{6, 29, 44}}, ""},
		"image uid:group":          {root, Want{ImageUser: "12:video"}, spec.User{UID: 12, GID: 44, AdditionalGIDs: []uint32{44}}, ""},
		"image :group":             {root, Want{ImageUser: ":video", StrictGroups: true}, spec.User{GID: 44, Home: "/root", AdditionalGIDs: []uint32{44}}, ""},
		"image uid, number a name": {root, Want{ImageUser: "1234"}, spec.User{UID: 1234, AdditionalGIDs: []uint32{0}}, ""},

		"unknown username":        {root, Want{Username: "nobody"}, spec.User{}, fieldUsername},
		"username by number":      {root, Want{Username: "1000"}, spec.User{}, fieldUsername},
		"username, no files":      {empty, Want{Username: "root"}, spec.User{}, fieldUsername},
		"unknown image user":      {root, Want{ImageUser: "nobody"}, spec.User{}, fieldImageUser},
		"unknown image group":     {root, Want{ImageUser: "app:nogroup"}, spec.User{}, fieldImageUser},
		"image user with 3 parts": {root, Want{ImageUser: "app:disk:6"}, spec.User{}, fieldImageUser},
		"both":                    {root, Want{UID: id(1), Username: "app"}, spec.User{}, fieldUsername},
		"gid alone":               {root, Want{GID: id(1)}, spec.User{}, fieldGroup},
		"gid and image user":      {root, Want{GID: id(1), ImageUser: "app"}, spec.User{}, fieldGroup},
		"negative uid":            {root, Want{UID: id(-1)}, spec.User{}, fieldUser},
		"wide uid":                {root, Want{UID: id(1 << 32)}, spec.User{}, fieldUser},
		"negative gid":            {root, Want{UID: id(1), GID: id(-2)}, spec.User{}, fieldGroup},
		"wide supplemental":       {root, Want{SupplementalGIDs: []int64{1 << 31}}, spec.User{}, fieldGroups},
		"wide image uid":          {root, Want{ImageUser: "4294967296"}, spec.User{}, fieldImageUser},
		"wider image uid":         {root, Want{ImageUser: "18446744073709551616"}, spec.User{}, fieldImageUser},
		"entry with wide uid":     {root, Want{Username: "wide"}, spec.User{}, passwdFile},
		"group with wide gid":     {root, Want{ImageUser: "1:wide"}, spec.User{}, groupFile},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Resolve(tc.root, tc.want)
			if tc.err != "" {
				checkField(t, err, tc.err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.UID != tc.user.UID || got.GID != tc.user.GID || got.Home != tc.user.Home ||
				!slices.Equal(got.AdditionalGIDs, tc.user.AdditionalGIDs) {
				t.Errorf("got %+v, want %+v", got, tc.user)
			}
		})
	}
}

func checkField(t *testing.T, err error, field string) {
	t.Helper()
	if !errors.Is(err, spec.ErrInvalid) || !strings.HasPrefix(err.Error(), field) {
		t.Errorf("error %v does not name %s or is not ErrInvalid", err, field)
	}
}

func TestResolveStaysInTheImage(t *testing.T) {
	outside := newImage(t, map[string]string{"passwd": "app:x:666:666::/:/bin/sh\n"})
	absolute := filepath.Join(outside, "passwd")
	relative := "../" + strings.Repeat("../", 20) + absolute

	for name, target := range map[string]string{"absolute": absolute, "relative": relative} {
		t.Run(name, func(t *testing.T) {
			root := newImage(t, map[string]string{"etc/group": group})
			if err := os.Symlink(target, filepath.Join(root, "etc/passwd")); err != nil {
				t.Fatal(err)
			}
			u, err := Resolve(root, Want{Username: "app"})
			if err == nil {
				t.Fatalf("the host's file was read: %+v", u)
			}
			checkField(t, err, fieldUsername)
		})
	}
	t.Run("directory", func(t *testing.T) {
		root := t.TempDir()
		if err := os.Symlink(outside, filepath.Join(root, "etc")); err != nil {
			t.Fatal(err)
		}
		_, err := Resolve(root, Want{Username: "app"})
		checkField(t, err, fieldUsername)
	})
	t.Run("absolute link within", func(t *testing.T) {
		root := newImage(t, map[string]string{"usr/etc/passwd": passwd})
		if err := os.Symlink("/usr/etc", filepath.Join(root, "etc")); err != nil {
			t.Fatal(err)
		}
		u, err := Resolve(root, Want{Username: "app"})
		if err != nil || u.UID != 1000 {
			t.Errorf("got %+v, %v", u, err)
		}
	})
}

func TestResolveRefusesOddFiles(t *testing.T) {
	for name, tc := range map[string]struct {
		make func(path string) error
		err  string
	}{
		"fifo":      {func(p string) error { return unix.Mkfifo(p, 0o644) }, "regular"},
		"directory": {func(p string) error { return os.Mkdir(p, 0o755) }, "regular"},
		"socket":    {func(p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o644, 0) }, "regular"},
		"loop":      {func(p string) error { return os.Symlink("passwd", p) }, "symbolic links"},
		"huge": {func(p string) error {
			return errors.Join(os.WriteFile(p, nil, 0o644), os.Truncate(p, 1<<40))
		}, "bytes"},
		"long line": {func(p string) error {
			return os.WriteFile(p, make([]byte, 1<<20), 0o644)
		}, "line"},
	} {
		t.Run(name, func(t *testing.T) {
			root := newImage(t, map[string]string{"etc/group": group})
			if err := tc.make(filepath.Join(root, "etc/passwd")); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() {
				_, err := Resolve(root, Want{Username: "app"})
				done <- err
			}()
			select {
			case err := <-done:
				checkField(t, err, passwdFile+" of the image")
				if !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v does not say %q", err, tc.err)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("Resolve hangs")
			}
		})
	}
}

func TestResolveNeedsARootFS(t *testing.T) {
	_, err := Resolve(filepath.Join(t.TempDir(), "missing"), Want{})
	if !errors.Is(err, os.ErrNotExist) || errors.Is(err, spec.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("app:disk", passwd, group)
	f.Add("0", "::::", ":::")
	f.Fuzz(func(t *testing.T, who, passwd, group string) {
		root := newImage(t, map[string]string{"etc/passwd": passwd, "etc/group": group})
		u, err := Resolve(root, Want{ImageUser: who})
		if err == nil && (u.UID > 1<<31-1 || u.GID > 1<<31-1 || !slices.Contains(u.AdditionalGIDs, u.GID)) {
			t.Errorf("%q: %+v", who, u)
		}
	})
}
