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
	return tryNamespace(ctx, ns.Config{Helper: helper}, state, func(userNS string) error {
		return snapshot.CanMap(root, snapshot.IDMap{UserNS: userNS, UID: somebody, GID: somebody})
	})
}

// TryUsersOnHostNetwork tells why pods that can have user namespaces cannot have them on the host's network; nil if they can.
func TryUsersOnHostNetwork(ctx context.Context, helper, state string) error {
	return tryNamespace(ctx, ns.Config{Helper: helper, TryHostSys: true}, state, func(string) error { return nil })
}

// somebody is anyone but the host's root.
const somebody = 1 << 30

// tryNamespace makes a user namespace for the time of try.
func tryNamespace(ctx context.Context, c ns.Config, state string, try func(userNS string) error) error {
	ids := []idmap.Range{{Container: 0, Host: somebody, Size: 1}}
	c.Users = &idmap.Mappings{UIDs: ids, GIDs: ids}
	c.Dir = filepath.Join(state, "user-namespace-trial")
	if err := ns.Remove(c.Dir); err != nil { // of a process that was killed
		return err
	}
	err := ns.Make(ctx, c)
	if err == nil {
		err = try(ns.Path(c.Dir, ns.User))
	}
	return errors.Join(err, ns.Remove(c.Dir))
}
