// Package checkpoint is the form that checkpoints of containers have on disk: the one of containerd and CRI-O, which checkpointctl
// reads, a tar with these files.
//
//	config.dump       what container it was, of which image (Config)
//	spec.dump         its OCI specification
//	status            its times, for checkpointctl
//	checkpoint/       criu's images of its processes
//	rootfs-diff.tar   what it has written, as a layer of an image
//	volumes.tar       what is in the volumes that its image declares, by their names (snapshot.Volumes); criserver's own
//	deleted.files     what it has deleted, a list in JSON, where the layer has no whiteouts (CRI-O, Podman); read, not written
//	dump.log, stats-dump  what criu said and counted
package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"golang.org/x/sys/unix"

	"criserver/pkg/ctxreader"
)

// Config says what container a checkpoint is of.
type Config = metadata.ContainerConfig

// Names in an archive, and of a directory in which one is being made.
const (
	ImagesDir = metadata.CheckpointDirectory
	LayerTar  = metadata.RootFsDiffTar
	SpecFile  = metadata.SpecDumpFile
	VolumeTar = "volumes.tar"
)

// Dir is a directory in which a checkpoint is being made, on the disk of the daemon.
type Dir string

// Images is where criu's images go.
func (d Dir) Images() string { return filepath.Join(string(d), ImagesDir) }

// note is a file beside the directory, in which there may be whatever a stranger's archive has. It names a file or directory that
// is being written elsewhere.
func (d Dir) note() string { return string(d) + noteSuffix }

const noteSuffix = ".partial"

// MakeDir makes the directory of a checkpoint below root, which only root may enter.
func MakeDir(root string) (Dir, error) {
	dir, err := StageDir(root)
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(dir.Images(), 0o700); err != nil {
		return "", errors.Join(fmt.Errorf("make directory for a checkpoint: %w", err), dir.Remove())
	}
	return dir, nil
}

// StageDir makes an empty directory below root, for the files of a checkpoint that is to be restored.
func StageDir(root string) (Dir, error) {
	dir, err := os.MkdirTemp(root, "dump-")
	if err != nil {
		return "", fmt.Errorf("make directory for a checkpoint: %w", err)
	}
	return Dir(dir), nil
}

// Remove removes the directory, and what was being written elsewhere. It is idempotent.
func (d Dir) Remove() error {
	name, err := os.ReadFile(d.note())
	if err == nil {
		err = os.RemoveAll(string(name))
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENAMETOOLONG) { // there never was such a file
		err = nil
	}
	// Memory of processes does not stay for want of something else.
	err = errors.Join(err, os.RemoveAll(string(d)))
	if err == nil {
		err = os.RemoveAll(d.note())
	}
	if err != nil {
		return fmt.Errorf("remove directory of a checkpoint: %w", err)
	}
	return nil
}

// Describe writes the files that say what the checkpoint is of. started is when the container was.
func (d Dir) Describe(c Config, spec []byte, started time.Time) error {
	_, err := metadata.WriteJSONFile(c, string(d), metadata.ConfigDumpFile)
	if err == nil {
		_, err = metadata.WriteJSONFile(metadata.ContainerdStatus{
			CreatedAt: c.CreatedTime.UnixNano(), StartedAt: started.UnixNano(),
		}, string(d), metadata.StatusFile)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(string(d), SpecFile), spec, 0o600)
	}
	if err != nil {
		return fmt.Errorf("describe checkpoint: %w", err)
	}
	return nil
}

// WriteLayer has write write what the container has written.
func (d Dir) WriteLayer(write func(w io.Writer) error) error {
	return d.write(LayerTar, "what the container has written", write)
}

// WriteVolumes has write write what is in the container's volumes. If that fails there is no such file.
func (d Dir) WriteVolumes(write func(w io.Writer) error) error {
	err := d.write(VolumeTar, "what is in the container's volumes", write)
	if err != nil {
		err = errors.Join(err, os.RemoveAll(filepath.Join(string(d), VolumeTar)))
	}
	return err
}

func (d Dir) write(name, what string, write func(w io.Writer) error) (err error) {
	f, err := os.OpenFile(filepath.Join(string(d), name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", what, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := write(f); err != nil {
		return fmt.Errorf("write %s: %w", what, err)
	}
	return nil
}

// Pack makes the archive of the directory at the path location, which has mode 0600, and is there whole or not at all, wherever
// this process is killed. fs.ErrExist: something is there.
func (d Dir) Pack(ctx context.Context, location string) (err error) {
	if _, err := os.Lstat(location); err == nil {
		return fmt.Errorf("write archive %s: %w", location, fs.ErrExist)
	}
	partial := location + "." + filepath.Base(string(d)) + ".partial" // nobody else's
	if err := os.WriteFile(d.note(), []byte(partial), 0o600); err != nil {
		return fmt.Errorf("write archive %s: %w", location, err)
	}
	f, err := os.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write archive %s: %w", location, err), os.Remove(partial))
		}
	}()
	err = d.writeTar(ctx, f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = unix.Renameat2(unix.AT_FDCWD, partial, unix.AT_FDCWD, location, unix.RENAME_NOREPLACE); errors.Is(err, unix.EINVAL) {
		err = os.Rename(partial, location) // a file system without that, such as NFS
	}
	return err
}

func (d Dir) writeTar(ctx context.Context, w io.Writer) error {
	out := tar.NewWriter(w)
	err := filepath.WalkDir(string(d), func(path string, entry fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(string(d), path)
		if err != nil || name == "." {
			return err
		}
		return addFile(ctx, out, path, name, entry)
	})
	if err != nil {
		return err
	}
	return out.Close()
}

func addFile(ctx context.Context, out *tar.Writer, path, name string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return fmt.Errorf("%s is neither a file nor a directory", path)
	}
	header, err := tar.FileInfoHeader(info, "")
	if err != nil {
		return err
	}
	header.Name = name
	if info.IsDir() {
		header.Name += "/"
	}
	if err := out.WriteHeader(header); err != nil || info.IsDir() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(out, ctxreader.New(ctx, f))
	return err
}
