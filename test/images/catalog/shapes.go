package catalog

import (
	"archive/tar"
	"bytes"
	"runtime"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/test/images/image"
)

// netBindService is security.capability with cap_net_bind_service=ep, revision 2; see capabilities(7).
const netBindService = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// shapes are images that differ in form: compression, media types, layers, platforms, configuration.
func (b *builder) shapes() {
	marker := image.File{Path: "marker", Mode: 0o644, Body: []byte("here\n")}
	plain := []*image.Layer{b.base, b.layer(image.Zstd, marker)}
	b.add(image.Spec{Layers: plain}, own+"zstd:latest")
	b.add(image.Spec{Layers: []*image.Layer{b.base, b.layer(image.None, marker)}}, own+"uncompressed:latest")
	b.add(image.Spec{Layers: b.onBase(marker), Docker: true}, own+"schema2:latest")
	b.add(image.Spec{Layers: b.layers()}, own+"layers:latest")
	b.add(image.Spec{
		Layers: b.onBase(marker, image.File{Path: "data", Type: tar.TypeDir, Mode: 0o750, UID: 33, GID: 33},
			image.File{Path: "data/from-image", Mode: 0o644, Body: []byte("kept\n"), UID: 33, GID: 33}),
		Config: v1.ImageConfig{
			Entrypoint: []string{"/bin/echo", "entrypoint"},
			Cmd:        []string{"cmd"},
			Env:        []string{"FROM_IMAGE=yes", "SPACES=a b c"},
			WorkingDir: "/made/by/runtime",
			User:       "www-data",
			Volumes:    map[string]struct{}{"/data": {}},
			StopSignal: "SIGUSR1",
			Labels:     map[string]string{"from": "image"},
		},
	}, own+"config:latest")
	b.add(image.Spec{Layers: b.onBase(
		image.File{Path: "bin/attach", Mode: 0o755, Body: b.tools},
		image.Hardlink("bin/overwrite", "bin/attach"), image.Hardlink("bin/syscalls", "bin/attach"),
		image.File{Path: "self", Mode: 0o755, Body: []byte("#!/proc/self/exe\n")},
		image.Symlink("data", "/etc"), image.Symlink("up", "../../../../../../../../etc"),
	)}, own+"attacks:latest")
	b.add(image.Spec{Layers: b.onBase(marker), Config: v1.ImageConfig{StopSignal: "12"}}, own+"stop-number:latest")
	b.index(marker)
}

// layers has each thing that a lower layer can have done to it by an upper one.
func (b *builder) layers() []*image.Layer {
	file := func(path, body string) image.File { return image.File{Path: path, Mode: 0o644, Body: []byte(body)} }
	return []*image.Layer{
		b.base,
		b.layer(image.Gzip,
			image.Dir("l", 0o755), image.Dir("l/opaque", 0o755), image.Dir("l/removed", 0o755), image.Dir("l/kept", 0o700),
			file("l/opaque/old", "old\n"), file("l/removed/file", "old\n"), file("l/kept/file", "first\n"),
			file("l/overwritten", "first\n"), file("l/deleted", "first\n"), file("l/becomes-dir", "first\n"),
			image.Dir("l/becomes-file", 0o755), file("l/becomes-file/inner", "first\n"),
			image.Symlink("l/link", "kept/file"), image.Symlink("l/absolute", "/etc/passwd"), image.Symlink("l/dangling", "nowhere"),
			image.Hardlink("l/hard", "l/overwritten"),
		),
		b.layer(image.Gzip), // empty, as a Dockerfile's metadata steps make
		b.layer(image.Gzip,
			image.Dir("l", 0o755), image.Opaque("l/opaque"), file("l/opaque/new", "new\n"),
			image.Whiteout("l", "removed"), image.Whiteout("l", "deleted"),
			file("l/overwritten", "second\n"),
			image.Whiteout("l", "becomes-dir"), image.Dir("l/becomes-dir", 0o755), file("l/becomes-dir/inner", "second\n"),
			file("l/becomes-file", "second\n"),
			image.File{Path: "l/setuid", Mode: 0o4755, Body: []byte("#!/bin/sh\n")},
			image.File{Path: "l/setgid", Type: tar.TypeDir, Mode: 0o2775, GID: 50},
			image.File{Path: "l/owned", Mode: 0o640, UID: 1234, GID: 5678},
			image.File{Path: "l/capable", Mode: 0o755, Body: []byte("#!/bin/sh\n"),
				Xattrs: map[string]string{"security.capability": netBindService}},
			image.File{Path: "l/fifo", Type: tar.TypeFifo, Mode: 0o600},
			image.File{Path: "l/null", Type: tar.TypeChar, Mode: 0o666, Major: 1, Minor: 3},
			image.File{Path: "l/big", Mode: 0o644, Body: bytes.Repeat([]byte("criserver\n"), 1<<17)},
			// No entries for the directories on the way: they are implied, with the default mode.
			file("l/implied/parents/file", "deep\n"),
		),
	}
}

// index is one name for two platforms: this machine's, and one whose image says that it is the wrong one.
func (b *builder) index(marker image.File) {
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	wrong := image.File{Path: "wrong-platform", Mode: 0o644}
	if b.err != nil {
		return
	}
	archs := []string{other, runtime.GOARCH}
	images := make([]*image.Image, len(archs))
	for i, f := range []image.File{wrong, marker} {
		img, err := image.New(image.Spec{Layers: b.onBase(f), Arch: archs[i], Config: v1.ImageConfig{Env: []string{path}, Cmd: []string{"sh"}}})
		b.keep(err)
		images[i] = img
	}
	if b.err != nil {
		return
	}
	img, err := image.Index(archs, images)
	b.keep(err)
	b.entries = append(b.entries, Entry{Names: []string{own + "index:latest"}, Image: img})
}
