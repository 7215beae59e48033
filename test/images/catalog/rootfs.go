package catalog

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"criserver/test/images/image"
)

const (
	passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`
	group = `root:x:0:
daemon:x:1:
bin:x:2:
www-data:x:33:
nogroup:x:65534:
`
)

// parts is what images are put together from.
type parts struct {
	base  *image.Layer // busybox, ipcs, pgrep, users, /tmp
	tools []byte       // guest/tools
	web   []byte       // guest/web
}

func loadParts(ctx context.Context, cache string) (*parts, error) {
	bb, err := loadBusybox(ctx, cache)
	if err != nil {
		return nil, err
	}
	p := &parts{}
	if p.tools, err = compile(ctx, "./guest/tools"); err != nil {
		return nil, err
	}
	if p.web, err = compile(ctx, "./guest/web"); err != nil {
		return nil, err
	}
	p.base, err = image.NewLayer(image.Gzip, baseFiles(bb, p.tools)...)
	return p, err
}

// compile builds a program of this module statically, the same bytes each time.
func compile(ctx context.Context, pkg string) ([]byte, error) {
	tmp, err := os.MkdirTemp("", "criserver-images-*")
	if err != nil {
		return nil, fmt.Errorf("compile %s: %w", pkg, err)
	}
	defer os.RemoveAll(tmp)
	module, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "criserver").Output()
	if err != nil {
		return nil, fmt.Errorf("find module criserver, in which %s is: %w", pkg, err)
	}
	out := filepath.Join(tmp, "program")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", out, pkg)
	cmd.Dir = filepath.Join(strings.TrimSpace(string(module)), "test", "images")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile %s: %w: %s", pkg, err, msg)
	}
	return os.ReadFile(out)
}

func baseFiles(bb *busybox, tools []byte) []image.File {
	files := []image.File{
		image.Dir("bin", 0o755), image.Dir("dev", 0o755), image.Dir("etc", 0o755), image.Dir("home", 0o755),
		image.Dir("lib", 0o755), image.Dir("proc", 0o555), image.Dir("root", 0o700), image.Dir("run", 0o755),
		image.Dir("sys", 0o555), image.Dir("tmp", 0o1777), image.Dir("usr", 0o755), image.Dir("usr/bin", 0o755),
		image.Dir("usr/sbin", 0o755), image.Dir("var", 0o755), image.Dir("var/run", 0o755), image.Dir("var/tmp", 0o1777),
		{Path: "etc/passwd", Mode: 0o644, Body: []byte(passwd)},
		{Path: "etc/group", Mode: 0o644, Body: []byte(group)},
		{Path: "bin/busybox", Mode: 0o755, Body: bb.program},
		{Path: "bin/ipcs", Mode: 0o755, Body: tools},
		image.Hardlink("bin/pgrep", "bin/ipcs"),
	}
	// Hard links: masking one applet's path must not mask them all, as it would by a symbolic link.
	for _, a := range bb.applets {
		if a != "busybox" {
			files = append(files, image.Hardlink("bin/"+a, "bin/busybox"))
		}
	}
	return append(files, bb.libs...)
}
