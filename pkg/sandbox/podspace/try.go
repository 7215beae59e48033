package podspace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"criserver/pkg/sandbox/idmap"
	"criserver/pkg/sandbox/ns"
	"criserver/pkg/snapshot"
)

// TryUsers tells why pods whose state is below the directory state, and whose file systems are below root, cannot have user
// namespaces of their own; nil if they can. helper is as in Store.
func TryUsers(ctx context.Context, helper, state, root string) error {
	for dir := state; dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err == nil && info.Mode()&0o1 == 0 {
			err = fmt.Errorf("others cannot pass %s, which is above their root file systems: chmod o+x, or choose another state directory", dir)
		}
		if err != nil {
			return err
		}
	}
	const somebody = 1 << 30 // anyone but the host's root
	ids := []idmap.Range{{Container: 0, Host: somebody, Size: 1}}
	dir := filepath.Join(state, "user-namespace-trial")
	if err := ns.Remove(dir); err != nil { // of a process that was killed
		return err
	}
	err := ns.Make(ctx, ns.Config{Dir: dir, Users: &idmap.Mappings{UIDs: ids, GIDs: ids}, Helper: helper})
	if err == nil {
		err = snapshot.CanMap(root, snapshot.IDMap{UserNS: ns.Path(dir, ns.User), UID: somebody, GID: somebody})
	}
	return errors.Join(err, ns.Remove(dir))
}
