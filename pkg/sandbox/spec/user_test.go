package spec

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"criserver/pkg/sandbox/idmap"
)

func TestUser(t *testing.T) {
	s := build(t, func(_ *Pod, c *Container) { c.User = User{UID: 1, GID: 20, AdditionalGIDs: []uint32{30, 10, 30}} })
	u := s.Process.User
	if u.UID != 1 || u.GID != 20 || !slices.Equal(u.AdditionalGids, []uint32{10, 20, 30}) {
		t.Errorf("got %+v", u)
	}
}

// Who is not in the pod's user namespace cannot be run as.
func TestUserBeyondTheNamespace(t *testing.T) {
	ids := []idmap.Range{{Container: 0, Host: 65536, Size: 1000}}
	p := plainPod()
	p.UserNS, p.Users = "/run/user", &idmap.Mappings{UIDs: ids, GIDs: ids}
	for want, u := range map[string]User{
		"":                                       {UID: 999, GID: 999, AdditionalGIDs: []uint32{0}},
		"security_context.run_as_user: the user": {UID: 1000},
		"no group 1000":                          {GID: 1000},
		"no group 2000, of user 5":               {UID: 5, AdditionalGIDs: []uint32{1, 2000}},
	} {
		c := plainContainer()
		c.User = u
		_, err := Build(p, c)
		if (want == "") != (err == nil) || err != nil && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%+v: %v, want %q", u, err, want)
		}
	}
}
