package snapshot

import (
	"slices"
	"strconv"
)

// Labelled are the mounts with an SELinux label, such as "system_u:object_r:container_file_t:s0:c1,c2", on all that is in them, whatever
// label it has where it is stored (mount(8), "context="); "" changes nothing. Bind mounts have the labels of their sources. One that is
// read-only becomes an overlay, for which empty is an empty directory that stays as long as the mount, or "" to have it keep its
// labels; for a writable one the caller has the directory to itself, and labels that.
func Labelled(mounts []Mount, label, empty string) []Mount {
	if label == "" {
		return mounts
	}
	out := slices.Clone(mounts)
	for i, m := range out {
		switch {
		case !m.bind():
		case slices.Contains(m.Options, "ro") && empty != "":
			// Overlayfs without an upper directory wants two lower ones.
			m = Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + m.path(m.Source) + ":" + empty, "ro"}}
		default:
			continue
		}
		m.Options = append(slices.Clone(m.Options), "context="+strconv.Quote(label))
		out[i] = m
	}
	return out
}

func (m Mount) bind() bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}
