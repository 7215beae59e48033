// Package wholefile writes small files that are there whole or not at all.
package wholefile

import (
	"errors"
	"os"
)

// Write writes a file of root's alone, in the place of one that may be there, wherever this process is killed. It is not synced: after a
// power cut the file may be empty. Who writes the same path at the same time must wait for its turn; path with Suffix behind is taken.
func Write(path string, data []byte) error { return write(path, data, false) }

// WriteSynced is Write with the content synced: after a power cut the file is the former one or this one, as the directory was synced or
// not.
func WriteSynced(path string, data []byte) error { return write(path, data, true) }

// Suffix is behind the name of a file that is being written.
const Suffix = ".new"

func write(path string, data []byte, synced bool) error {
	f, err := os.OpenFile(path+Suffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && synced {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(path+Suffix, path)
}
