package checkpoint

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ErrInvalid says that something is no checkpoint that can be restored.
var ErrInvalid = errors.New("invalid checkpoint")

// Annotations of an image that make it a checkpoint: CRI-O's, and the one that checkpointctl writes.
var Annotations = []string{"io.kubernetes.cri-o.annotations.checkpoint.name", metadata.CheckpointAnnotationName}

// maxDescription is the size of the largest description that is read, in bytes.
const maxDescription = 16 << 20

// Config says what container the checkpoint is of. ErrInvalid.
func (d Dir) Config() (Config, error) {
	var c Config
	err := d.read(metadata.ConfigDumpFile, &c)
	if err == nil && c.RootfsImageRef == "" && c.RootfsImageName == "" && c.RootfsImage == "" {
		err = fmt.Errorf("%w: %s names no image", ErrInvalid, metadata.ConfigDumpFile)
	}
	return c, err
}

// Spec is the specification that the container had. ErrInvalid.
func (d Dir) Spec() (*specs.Spec, error) {
	out := &specs.Spec{}
	err := d.read(SpecFile, out)
	if err == nil && out.Process == nil {
		err = fmt.Errorf("%w: %s has no process", ErrInvalid, SpecFile)
	}
	return out, err
}

// open opens a file to be read. Whoever has made the directory may have put anything there: a fifo would hang, a link would lead
// elsewhere. ErrInvalid, fs.ErrNotExist.
func (d Dir) open(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(string(d), name), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%w: %s is a link", ErrInvalid, name)
	}
	if err != nil {
		return nil, fmt.Errorf("read checkpoint: %w", err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%w: %s is no regular file", ErrInvalid, name), f.Close())
	}
	return f, nil
}

func (d Dir) read(name string, v any) error {
	f, err := d.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: it has no %s", ErrInvalid, name)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxDescription+1))
	if err != nil {
		return fmt.Errorf("read checkpoint: %w", err)
	}
	if len(data) > maxDescription {
		return fmt.Errorf("%w: %s has more than %d bytes", ErrInvalid, name, maxDescription)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
	}
	return nil
}

// EachLayer calls unpack with the tars of what the container had written and deleted, in the order in which they are to be
// unpacked. ErrInvalid.
func (d Dir) EachLayer(unpack func(tar io.Reader) error) error {
	var deleted []string
	if _, err := os.Lstat(filepath.Join(string(d), metadata.DeletedFilesFile)); err == nil {
		if err := d.read(metadata.DeletedFilesFile, &deleted); err != nil {
			return err
		}
	}
	if len(deleted) > 0 {
		whiteouts, err := whiteouts(deleted)
		if err == nil {
			err = unpack(whiteouts)
		}
		if err != nil {
			return fmt.Errorf("delete what the container had deleted: %w", err)
		}
	}
	f, err := d.open(LayerTar)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it had written nothing
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unpack(f); err != nil {
		return fmt.Errorf("write what the container had written: %w", err)
	}
	return nil
}

// Volumes calls unpack with the tar of what was in the container's volumes, and tells whether there is one. ErrInvalid.
func (d Dir) Volumes(unpack func(tar io.Reader) error) (bool, error) {
	f, err := d.open(VolumeTar)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if err := unpack(f); err != nil {
		return false, fmt.Errorf("write what was in the container's volumes: %w", err)
	}
	return true, nil
}

// whiteouts is a layer that deletes files of those below (image-spec, layer.md).
func whiteouts(deleted []string) (io.Reader, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	names := make([]string, len(deleted))
	for i, name := range deleted {
		names[i] = path.Clean("/" + name)[1:]
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if name == "" {
			return nil, fmt.Errorf("%w: %s has an empty name", ErrInvalid, metadata.DeletedFilesFile)
		}
		dir, base := path.Split(name)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: dir + ".wh." + base, Mode: 0o600}); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, metadata.DeletedFilesFile, err)
		}
	}
	return &out, w.Close()
}

// Adapt makes a new container's specification that of the container that is restored, where it is the checkpoint that decides.
// wanted are the destinations of the mounts that were asked for. With must, all that a restore cannot change must be as it was.
// ErrInvalid: the container could not be what was asked for, or not be restored.
func (d Dir) Adapt(spec *specs.Spec, wanted []string, must bool) error {
	had, err := d.Spec()
	if err != nil {
		return err
	}
	if had.Process.Terminal != spec.Process.Terminal {
		return fmt.Errorf("%w: tty: the container had one: %t", ErrInvalid, had.Process.Terminal)
	}
	if must {
		if err := match(had, spec); err != nil {
			return err
		}
	}
	if err := matchNamespaces(had, spec); err != nil {
		return err
	}
	if err := matchMounts(had, spec, wanted); err != nil {
		return err
	}
	p := spec.Process
	p.Args, p.Env, p.Cwd = had.Process.Args, had.Process.Env, had.Process.Cwd
	p.User = had.Process.User
	return nil
}
