package spec

import (
	"slices"
	"testing"
)

func TestUser(t *testing.T) {
	s := build(t, func(_ *Pod, c *Container) { c.User = User{UID: 1, GID: 20, AdditionalGIDs: []uint32{30, 10, 30}} })
	u := s.Process.User
	if u.UID != 1 || u.GID != 20 || !slices.Equal(u.AdditionalGids, []uint32{10, 20, 30}) {
		t.Errorf("got %+v", u)
	}
}
