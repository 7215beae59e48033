package want

import (
	"errors"
	"strings"
	"testing"

	"criserver/pkg/sandbox/device"
	"criserver/pkg/sandbox/idmap"
	"criserver/pkg/sandbox/spec"
)

func TestCheckContainer(t *testing.T) {
	users := &idmap.Mappings{UIDs: []idmap.Range{{Host: 65536, Size: 65536}}, GIDs: []idmap.Range{{Host: 65536, Size: 65536}}}
	others := &idmap.Mappings{UIDs: []idmap.Range{{Host: 131072, Size: 65536}}, GIDs: users.GIDs}
	pod := Pod{Namespaces: Namespaces{Users: users}}
	for _, row := range []struct {
		field string
		c     Container
	}{
		{"", Container{LogPath: "c/0.log"}},
		{"log_path", Container{LogPath: "."}},
		{"log_path", Container{LogPath: "c/.."}},
		{"log_path", Container{LogPath: "../c"}},
		{"log_path", Container{LogPath: "c\x00"}},
		{"devices[0]", Container{Devices: []device.Want{{HostPath: "/dev/null\x00"}}}},
		{"mounts[0]", Container{Mounts: []spec.Mount{{Source: "/a\x00", Destination: "/v"}}}},
		{"mounts[0]", Container{Mounts: []spec.Mount{{Source: "/a", Destination: "/v\x00"}}}},
		{"", Container{Mounts: []spec.Mount{{Source: "/a", Destination: "/v", Users: users}}}},
		{"mounts[0].uidMappings", Container{Mounts: []spec.Mount{{Source: "/a", Destination: "/v", Users: others}}}},
		{"", Container{Volumes: []ImageVolume{{Destination: "/v", Users: users}}}},
		{"mounts.uidMappings", Container{Volumes: []ImageVolume{{Destination: "/v", Users: others}}}},
		{"mounts.mappings", Container{Volumes: []ImageVolume{{Destination: "/v", Users: &idmap.Mappings{}}}}},
		{"mounts", Container{Volumes: []ImageVolume{{Destination: "/v", SubPath: "a\x00"}}}},
	} {
		row.c.Name, row.c.Namespaces.PID = "c", NamespaceContainer
		err := row.c.Check(pod)
		if row.field == "" && err != nil || row.field != "" && (!errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), row.field+": ")) {
			t.Errorf("%+v: %v, want an error of %q", row.c, err, row.field)
		}
	}
}

func TestCheckCommand(t *testing.T) {
	for _, cmd := range [][]string{nil, {"sh", "a\x00b"}} {
		if err := CheckCommand(cmd); !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), "cmd: ") {
			t.Errorf("%q: %v", cmd, err)
		}
	}
	if err := CheckCommand([]string{"true", ""}); err != nil {
		t.Error(err)
	}
}

func TestHostName(t *testing.T) {
	for name, host := range map[string]string{
		"web-0": "web-0", "Web_0.b": "web-0-b", "-": "pod", "é": "pod", "a." + strings.Repeat("b", 100): "a-" + strings.Repeat("b", 61),
		strings.Repeat("b", 62) + "-c": strings.Repeat("b", 62),
	} {
		if got := (Pod{Name: name}).HostName(); got != host {
			t.Errorf("%q: %q, want %q", name, got, host)
		}
	}
	if got := (Pod{Name: "a", Hostname: "B.c"}).HostName(); got != "B.c" {
		t.Errorf("a host name that is sent: %q", got)
	}
}
