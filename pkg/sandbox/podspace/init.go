package podspace

import (
	"context"
	"os"
	"path/filepath"

	"criserver/pkg/sandbox/confine"
	"criserver/pkg/sandbox/ledger"
	"criserver/pkg/sandbox/spec"
	"criserver/pkg/sandbox/specfile"
)

// MakeInit makes the bundle of a pod's process 1, the container id that runs crimonitor, which is the file binary, and returns its
// place. Remove undoes it.
func (s Store) MakeInit(ctx context.Context, p ledger.PodStatus, id, binary string) (dir string, err error) {
	dir = s.InitBundle(p.ID)
	rootfs := filepath.Join(dir, "rootfs")
	if err := os.MkdirAll(rootfs, 0o711); err != nil {
		return "", err
	}
	if users := p.Config.Namespaces.Users; users != nil { // whose root makes mount points in it
		uid, gid := users.Root()
		if err := os.Chown(rootfs, uid, gid); err != nil {
			return "", err
		}
	}
	profile, err := confine.AppArmor{}.Resolve(ctx, false)
	if err != nil {
		return "", err
	}
	return dir, specfile.Write(dir, spec.PodInit(s.Spec(p), spec.Init{
		ID: id, RootFS: rootfs, Binary: binary, AppArmorProfile: profile, ProcessLabel: p.Labels.Process,
	}))
}
