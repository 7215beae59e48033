package hosts

import (
	"fmt"

	"criserver/pkg/imagesvc/opfile"
)

// stampOf changes when a file does, or what is in a directory, or why it cannot be looked at.
func stampOf(path string) string {
	stamp, err := opfile.StampOf(path)
	return fmt.Sprintf("%s: %v %v\n", path, stamp, err)
}
