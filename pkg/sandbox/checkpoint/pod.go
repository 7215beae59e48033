package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
)

// Pod is the directory of a pod's checkpoint, which has one of each container in it, in the form of an archive's files, and
// pod.options, which says what they are.
type Pod string

// podName is the one thing in the directory that a caller has a pod's checkpoint written to.
const podName = "pod"

// podVersion is that of pod.options.
const podVersion = 1

// PodIn is where the checkpoint of a pod is in a caller's directory.
func PodIn(output string) Pod { return Pod(filepath.Join(output, podName)) }

// Container makes the directory of the n-th container.
func (p Pod) Container(n int) (Dir, error) {
	dir := Dir(filepath.Join(string(p), "container-"+strconv.Itoa(n)))
	for _, path := range []string{string(dir), dir.Images()} {
		if err := os.Mkdir(path, 0o700); err != nil {
			return "", fmt.Errorf("make directory for a checkpoint: %w", err)
		}
	}
	return dir, nil
}

// Describe writes which container has which name; it is the last thing that is written.
func (p Pod) Describe(containers map[string]Dir) error {
	options := metadata.CheckpointedPodOptions{Version: podVersion, Containers: map[string]string{}}
	for name, dir := range containers {
		options.Containers[name] = filepath.Base(string(dir))
	}
	if _, err := metadata.WriteJSONFile(options, string(p), metadata.PodOptionsFile); err != nil {
		return fmt.Errorf("describe checkpoint of a pod: %w", err)
	}
	return nil
}

// Containers are the checkpoints of the containers by name. ErrInvalid.
func (p Pod) Containers() (map[string]Dir, error) {
	var options metadata.CheckpointedPodOptions
	if err := Dir(p).read(metadata.PodOptionsFile, &options); err != nil {
		return nil, err
	}
	if options.Version != podVersion {
		return nil, fmt.Errorf("%w: %s has version %d, want %d", ErrInvalid, metadata.PodOptionsFile, options.Version, podVersion)
	}
	out := map[string]Dir{}
	for name, dir := range options.Containers {
		if !filepath.IsLocal(dir) || filepath.Base(dir) != dir {
			return nil, fmt.Errorf("%w: %s: the directory of %s is %q", ErrInvalid, metadata.PodOptionsFile, name, dir)
		}
		out[name] = Dir(filepath.Join(string(p), dir))
	}
	return out, nil
}

// Claim makes the directory at path, and has it removed by Remove of the claim, also of a later process, unless Release comes
// before.
func (t Tools) Claim(path string) (Dir, error) {
	claim, err := StageDir(t.Root)
	if err != nil {
		return "", err
	}
	err = os.WriteFile(claim.note(), []byte(path), 0o600)
	if err == nil {
		err = os.Mkdir(path, 0o700)
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("make directory for a checkpoint: %w", err), claim.Release())
	}
	return claim, err
}

// Release gives a claim up: what it claimed stays.
func (d Dir) Release() error {
	if err := os.RemoveAll(d.note()); err != nil {
		return fmt.Errorf("keep a checkpoint: %w", err)
	}
	return d.Remove()
}
