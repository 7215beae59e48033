// Package catalog holds the images that tests pull: stand-ins for those that critest v1.36 names, made of
// Debian's busybox and small programs, and images of unusual shape for the project's own tests.
package catalog

import (
	"archive/tar"
	"context"
	"fmt"
	"runtime"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/test/images/image"
)

// Busybox is the image that critest uses by default.
const Busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"

const (
	e2e     = "registry.k8s.io/e2e-test-images/"
	staging = "gcr.io/k8s-staging-cri-tools/"
	own     = "docker.io/criserver/"

	path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Entry is an image with all its names, each host/repository:tag.
type Entry struct {
	Names []string
	Image *image.Image
}

// Load builds all images; what must be downloaded for that is kept in the directory cache. The images of
// one machine are the same each time, digests included.
func Load(ctx context.Context, cache string) ([]Entry, error) {
	p, err := loadParts(ctx, cache)
	if err != nil {
		return nil, fmt.Errorf("load parts of images: %w", err)
	}
	b := &builder{parts: p}
	b.general()
	b.servers()
	b.users()
	b.references()
	b.shapes()
	return b.entries, b.err
}

// Push uploads the entries under all their names to a registry at host:port, without the hosts of the names.
func Push(ctx context.Context, registry string, entries []Entry) error {
	for _, e := range entries {
		for _, name := range e.Names {
			repository, tag := Split(name)
			if err := e.Image.Push(ctx, registry, repository, tag); err != nil {
				return err
			}
		}
	}
	return nil
}

// Split parts a name into the repository, without host, and the tag.
func Split(name string) (repository, tag string) {
	_, rest, _ := strings.Cut(name, "/")
	i := strings.LastIndex(rest, ":")
	return rest[:i], rest[i+1:]
}

// builder collects entries, and the first error.
type builder struct {
	*parts
	entries []Entry
	err     error
}

func (b *builder) layer(c image.Compression, files ...image.File) *image.Layer {
	l, err := image.NewLayer(c, files...)
	b.keep(err)
	return l
}

func (b *builder) keep(err error) {
	if b.err == nil {
		b.err = err
	}
}

// add adds the image that s describes. Without a command it gets busybox's.
func (b *builder) add(s image.Spec, names ...string) *image.Image {
	s.Config.Env = append([]string{path}, s.Config.Env...)
	if len(s.Config.Cmd) == 0 && len(s.Config.Entrypoint) == 0 {
		s.Config.Cmd = []string{"sh"}
	}
	if b.err != nil {
		return nil
	}
	img, err := image.New(s)
	b.keep(err)
	b.entries = append(b.entries, Entry{Names: names, Image: img})
	return img
}

// onBase is busybox with one more layer.
func (b *builder) onBase(files ...image.File) []*image.Layer {
	return []*image.Layer{b.base, b.layer(image.Gzip, files...)}
}

func (b *builder) general() {
	b.add(image.Spec{Layers: []*image.Layer{b.base}}, Busybox, "docker.io/library/busybox:latest")
	b.add(image.Spec{
		Layers: []*image.Layer{b.layer(image.Gzip, image.File{Path: "pause", Mode: 0o755, Body: b.tools})},
		Config: v1.ImageConfig{Entrypoint: []string{"/pause"}, User: "65535:65535", WorkingDir: "/"},
	}, "registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9")
	// Run as another user, it says whether the setuid bit had effect.
	b.add(image.Spec{
		Layers: b.onBase(image.File{Path: "nnp", Mode: 0o4755, Body: b.tools}),
		Config: v1.ImageConfig{Entrypoint: []string{"/nnp"}},
	}, e2e+"nonewprivs:1.3")
}

func (b *builder) servers() {
	web := func(name string, port string, names ...string) {
		b.add(image.Spec{
			Layers: b.onBase(image.File{Path: "usr/sbin/" + name, Mode: 0o755, Body: b.web}),
			Config: v1.ImageConfig{
				Entrypoint:   []string{"/usr/sbin/" + name, "-port", port},
				ExposedPorts: map[string]struct{}{port + "/tcp": {}},
			},
		}, names...)
	}
	web("nginx", "80", e2e+"nginx:1.14-2", "docker.io/library/nginx:latest")
	web("httpd", "80", e2e+"httpd:2.4.39-4")
	web("nginx", "12003", staging+"hostnet-nginx-"+runtime.GOARCH+":latest")
}

func (b *builder) users() {
	for _, i := range []struct{ name, user string }{
		{"user-uid", "1002"},
		{"user-username", "www-data"},
		{"user-uid-group", "1003:1004"},
		{"user-username-group", "www-data:1004"},
	} {
		b.add(image.Spec{Layers: []*image.Layer{b.base}, Config: v1.ImageConfig{User: i.user}}, staging+"test-image-"+i.name+":latest")
	}
	b.add(image.Spec{
		Layers: b.onBase(
			image.File{Path: "etc/passwd", Mode: 0o644, Body: []byte(passwd + "default-user:x:1000:1000::/home/default-user:/bin/sh\n")},
			image.File{Path: "etc/group", Mode: 0o644, Body: []byte(group + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")},
			image.File{Path: "home/default-user", Type: tar.TypeDir, Mode: 0o755, UID: 1000, GID: 1000},
		),
		Config: v1.ImageConfig{User: "1000"},
	}, staging+"test-image-predefined-group:latest")
}

// references are images that differ in one file, to pull by tag, without tag, by digest and by several tags.
func (b *builder) references() {
	marked := func(file string, names ...string) {
		for i := range names {
			names[i] = staging + names[i]
		}
		b.add(image.Spec{Layers: b.onBase(image.File{Path: file, Mode: 0o644})}, names...)
	}
	for _, name := range []string{"test-image-1", "test-image-2", "test-image-3", "test-image-latest", "test-image-digest"} {
		marked(name, name+":latest")
	}
	marked("same-image", "test-image-tags:1", "test-image-tags:2", "test-image-tags:3")
	marked("test", "test-image-tag:test")
	marked("all", "test-image-tag:all")
}
