package volume

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	root := t.TempDir()
	in := func(p string) string { return filepath.Join(root, p) }
	err := errors.Join(os.MkdirAll(in("data/sub"), 0o755), os.Mkdir(in("run"), 0o755), os.Mkdir(in("var"), 0o755),
		os.Symlink("/run", in("var/run")), os.Symlink("../../../../..", in("up")), os.Symlink("/proc", in("p")), os.WriteFile(in("file"), nil, 0o644))
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		declared, mounted string
		want, reasons     string
	}{
		"plain":                {"/data", "", "0:/data:data", ""},
		"not there":            {"/new/deep", "", "0:/new/deep:", ""},
		"not clean":            {"/data/../data//sub/ /data/sub", "", "0:/data/sub:data/sub", "/data/sub="},
		"nested":               {"/data /data/sub", "", "0:/data:data 1:/data/sub:data/sub", ""},
		"same mount":           {"/data", "/data/", "", "/data="},
		"mount above":          {"/data/sub", "/data", "", "/data/sub="},
		"mount below":          {"/data", "/data/sub", "0:/data:data", ""},
		"mount beside":         {"/data /database", "/data", "1:/database:", "/data="},
		"through a link":       {"/var/run/x", "/run/x", "", "/var/run/x="},
		"mount through a link": {"/run/x", "/var/run/x", "", "/run/x="},
		"link to the volume":   {"/var/run", "", "0:/run:run", ""},
		"relative":             {"data", "", "", "data=it is not absolute"},
		"empty":                {"=", "", "", "=it is not absolute"},
		"root":                 {"/ /. /up", "", "", "/=it is the root directory /.=it is the root directory /up=it is the root directory"},
		"runtime's":            {"/sys/fs/cgroup /p/x", "", "", "/p/x=the runtime mounts /proc /sys/fs/cgroup=the runtime mounts /sys"},
		"pod's":                {"/etc/hosts /etc", "", "0:/etc:", "/etc/hosts=it is a file of the pod's"},
		"file":                 {"/file", "", "", "/file=the image has no directory there"},
	} {
		declared := map[string]struct{}{}
		for _, p := range strings.Fields(row.declared) {
			declared[strings.Trim(p, "=")] = struct{}{}
		}
		volumes, ignored, err := Of(root, declared, strings.Fields(row.mounted))
		var got, reasons []string
		for _, v := range volumes {
			got = append(got, v.Name+":"+v.Destination+":"+strings.TrimPrefix(v.Content, root+"/"))
		}
		for _, i := range ignored {
			reasons = append(reasons, i.Path+"="+i.Reason)
		}
		if err != nil || strings.Join(got, " ") != row.want || strings.Join(reasons, " ") != row.reasons {
			t.Errorf("%s: %q, ignored %q, %v; want %q and %q", name, got, reasons, err, row.want, row.reasons)
		}
	}
}
