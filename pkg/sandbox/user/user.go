// Package user finds out who a container's process runs as: what the CRI asks for, or else the image, looked up in
// the /etc/passwd and /etc/group of the image. Those files are an attacker's to write.
package user

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"

	"criserver/pkg/sandbox/spec"
)

// Want is who the process shall be, in the terms of LinuxContainerSecurityContext in api.proto. The first that is set
// counts of UID or Username (not both), ImageUser, and user 0.
type Want struct {
	UID *int64
	// GID is the primary group; only together with UID or Username. nil takes the user's from the image, else 0.
	GID *int64
	// Username must exist in the image.
	Username string
	// ImageUser is the image's config.User: "user", "uid", "user:group", "uid:gid" or a mixture.
	ImageUser string
	// SupplementalGIDs join the groups that the image's /etc/group has the user in.
	SupplementalGIDs []int64
	// StrictGroups leaves those of /etc/group out (SupplementalGroupsPolicy Strict).
	StrictGroups bool
}

// The fields of the CRI that errors name.
const (
	fieldUser      = "security_context.run_as_user"
	fieldUsername  = "security_context.run_as_username"
	fieldGroup     = "security_context.run_as_group"
	fieldGroups    = "security_context.supplemental_groups"
	fieldImageUser = "image: config.User"
)

// Resolve finds the user in the root file system that is mounted at rootfs. The primary group is among the
// AdditionalGIDs, which are sorted. Errors that w or the image are to blame for are spec.FieldErrors.
func Resolve(rootfs string, w Want) (spec.User, error) {
	who, err := w.identity()
	if err != nil {
		return spec.User{}, err
	}
	files := image{rootfs}
	u, name, err := files.account(who)
	if err != nil {
		return spec.User{}, err
	}
	if who.group != "" {
		if u.GID, err = files.group(who); err != nil {
			return spec.User{}, err
		}
	}
	u.AdditionalGIDs = []uint32{u.GID}
	for _, g := range w.SupplementalGIDs {
		id, err := checkID(fieldGroups, g)
		if err != nil {
			return spec.User{}, err
		}
		u.AdditionalGIDs = append(u.AdditionalGIDs, id)
	}
	if name != "" && !w.StrictGroups {
		member, err := files.groupsOf(name)
		if err != nil {
			return spec.User{}, err
		}
		u.AdditionalGIDs = append(u.AdditionalGIDs, member...)
	}
	slices.Sort(u.AdditionalGIDs)
	u.AdditionalGIDs = slices.Compact(u.AdditionalGIDs)
	return u, nil
}

// identity is a user, and a group or "", by name or number, and the fields that they come from.
type identity struct {
	userField, user   string
	groupField, group string
	// named: user is a name, even when it looks like a number.
	named bool
}

func (w Want) identity() (identity, error) {
	var who identity
	switch {
	case w.Username != "" && w.UID != nil:
		return who, spec.Invalidf(fieldUsername, "cannot be set together with run_as_user")
	case w.GID != nil && w.Username == "" && w.UID == nil:
		return who, spec.Invalidf(fieldGroup, "cannot be set without run_as_user or run_as_username")
	case w.Username != "":
		who = identity{userField: fieldUsername, user: w.Username, named: true}
	case w.UID != nil:
		who = identity{userField: fieldUser, user: strconv.FormatInt(*w.UID, 10)}
	default:
		u, g, _ := strings.Cut(w.ImageUser, ":")
		if u == "" {
			u = "0"
		}
		who = identity{userField: fieldImageUser, user: u, groupField: fieldImageUser, group: g}
	}
	if w.GID != nil {
		who.groupField, who.group = fieldGroup, strconv.FormatInt(*w.GID, 10)
	}
	return who, nil
}

// account finds the user, and its name when the image's /etc/passwd has it. A number need not be there.
func (f image) account(who identity) (spec.User, string, error) {
	uid, numeric, err := parseID(who.userField, who.user)
	if who.named {
		numeric, err = false, nil
	}
	if err != nil {
		return spec.User{}, "", err
	}
	entry, err := f.findUser(func(u user.User) bool {
		return u.Name == who.user && !numeric || u.Uid == int(uid) && numeric
	})
	switch {
	case err != nil:
		return spec.User{}, "", err
	case entry == nil && numeric:
		return spec.User{UID: uid}, "", nil
	case entry == nil:
		return spec.User{}, "", spec.Invalidf(who.userField, "the image has no user %q in %s", who.user, passwdFile)
	}
	if uid, err = checkID(passwdFile+" of the image: "+entry.Name, int64(entry.Uid)); err != nil {
		return spec.User{}, "", err
	}
	gid, err := checkID(passwdFile+" of the image: "+entry.Name, int64(entry.Gid))
	return spec.User{UID: uid, GID: gid, Home: entry.Home}, entry.Name, err
}

// group finds the primary group. A number need not be in the image.
func (f image) group(who identity) (uint32, error) {
	gid, numeric, err := parseID(who.groupField, who.group)
	if err != nil || numeric {
		return gid, err
	}
	groups, err := f.findGroups(func(g user.Group) bool { return g.Name == who.group })
	if err != nil {
		return 0, err
	}
	if len(groups) == 0 {
		return 0, spec.Invalidf(who.groupField, "the image has no group %q in %s", who.group, groupFile)
	}
	return groups[0], nil
}

func (f image) groupsOf(name string) ([]uint32, error) {
	return f.findGroups(func(g user.Group) bool { return slices.Contains(g.List, name) })
}

// parseID tells whether s is a number, which must then be one that a user or group can have.
func parseID(field, s string) (id uint32, numeric bool, err error) {
	if strings.Trim(s, "-0123456789") != "" {
		return 0, false, nil
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		// Not a name: what is too large for a number must not become another one (CVE-2024-40635).
		return 0, false, spec.Invalidf(field, "%q is not a number from 0 to %d", s, math.MaxInt32)
	}
	id, err = checkID(field, v)
	return id, true, err
}

// checkID checks for OCI runtimes' range of IDs. The kernel's is twice as wide.
func checkID(field string, v int64) (uint32, error) {
	if v < 0 || v > math.MaxInt32 {
		return 0, spec.Invalidf(field, "%d is not from 0 to %d", v, math.MaxInt32)
	}
	return uint32(v), nil
}
