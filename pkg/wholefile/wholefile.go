// Package wholefile writes small files that are there whole or not at all.
package wholefile

import "os"

// Write writes a file of root's alone, in the place of one that may be there, wherever this process is killed. It is not synced: after a
// power cut the file may be empty. Who writes the same path at the same time must wait for its turn; path with ".new" behind is taken.
func Write(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
