package spec

import (
	"maps"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// setAnnotations passes on the container's annotations, and says what it is in the words that OCI runtimes know from
// containerd (Kata Containers and gVisor read them).
func setAnnotations(s *specs.Spec, p Pod, c Container) error {
	s.Annotations = map[string]string{}
	maps.Copy(s.Annotations, c.Annotations)
	maps.Copy(s.Annotations, map[string]string{
		"io.kubernetes.cri.container-type":    "container",
		"io.kubernetes.cri.sandbox-id":        p.ID,
		"io.kubernetes.cri.sandbox-name":      p.Name,
		"io.kubernetes.cri.sandbox-namespace": p.Namespace,
		"io.kubernetes.cri.sandbox-uid":       p.UID,
		"io.kubernetes.cri.container-name":    c.Name,
		"io.kubernetes.cri.image-name":        c.ImageName,
	})
	if IsSlice(p.CgroupPath) {
		// crun would put the processes below the scope, with the limits on both: changes of them would stop at the scope.
		s.Annotations["run.oci.systemd.subgroup"] = ""
	}
	return nil
}
