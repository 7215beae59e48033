package nri

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// checkSocket refuses a path that is not free: the adaptation package removes whatever is there, be it a file, or the socket of
// another runtime of the node (containerd's is at the same place if nothing else is said).
func checkSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&os.ModeSocket == 0:
		return fmt.Errorf("%s is there and is no socket", path)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close()
		return fmt.Errorf("somebody else answers on %s: another runtime has NRI too; set nri.socket_path", path)
	}
	return nil
}
