package idmap

import (
	"math"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	good := []Range{{0, 65536, 65536}}
	for name, row := range map[string]struct {
		m    Mappings
		want string
	}{
		"one range":      {Mappings{good, good}, ""},
		"two ranges":     {Mappings{[]Range{{0, 1000, 1}, {1, 70000, 65535}}, good}, ""},
		"host's root":    {Mappings{good, []Range{{0, 65536, 10}, {10, 0, 1}}}, "gids: the range from 10 has the host's ID 0"},
		"no terminals":   {Mappings{good, []Range{{0, 65536, 5}}}, "gids: the ID 5, of terminals, is not mapped"},
		"none":           {Mappings{nil, good}, "uids: the ID 0 is not mapped"},
		"no groups":      {Mappings{good, nil}, "gids: the ID 0 is not mapped"},
		"no root":        {Mappings{good, []Range{{1, 65536, 65535}}}, "gids: the ID 0 is not mapped"},
		"empty":          {Mappings{[]Range{{0, 65536, 0}}, good}, "uids: the range from 0 to host ID 65536 has no length"},
		"too long":       {Mappings{[]Range{{0, math.MaxUint32 - 9, 10}}, good}, "too long"},
		"inside overlap": {Mappings{[]Range{{0, 65536, 100}, {99, 1000, 10}}, good}, "overlap"},
		"host overlap":   {Mappings{[]Range{{0, 65536, 100}, {100, 65635, 10}}, good}, "overlap"},
		"too many":       {Mappings{make([]Range, 341), good}, "341 ranges, the kernel takes 340"},
	} {
		err := row.m.Check()
		if (row.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
}

func TestHost(t *testing.T) {
	m := Mappings{UIDs: []Range{{0, 1000, 1}, {1, 70000, 10}}, GIDs: []Range{{0, 65536, 5}}}
	if uid, gid := m.Root(); uid != 1000 || gid != 65536 {
		t.Errorf("root = %d, %d", uid, gid)
	}
	if !m.HasUID(10) || m.HasUID(11) || !m.HasGID(4) || m.HasGID(5) {
		t.Error("wrong members")
	}
}
