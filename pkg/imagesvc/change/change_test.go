package change_test

import (
	"errors"
	"reflect"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"criserver/pkg/imagesvc/change"
)

func TestApply(t *testing.T) {
	base := ocispec.ImageConfig{Env: []string{"A=0", "PATH=/bin"}, Labels: map[string]string{"a": "0"}, WorkingDir: "/w", Cmd: []string{"old"}}
	got := base
	err := change.Apply(&got, []string{
		`CMD ["sleep", "1000"]`, `ENTRYPOINT exec "$0"`, `env A=1 B="two words"`, "EXPOSE 80 53/udp", `LABEL a=1 b='x y'`,
		"STOPSIGNAL SIGINT", "USER 1000:1000", "VOLUME /data /logs", `VOLUME ["/more"]`, "WORKDIR sub",
	})
	if err != nil {
		t.Fatal(err)
	}
	none := struct{}{}
	want := ocispec.ImageConfig{
		Cmd: []string{"sleep", "1000"}, Entrypoint: []string{"/bin/sh", "-c", `exec "$0"`},
		Env:          []string{"PATH=/bin", "A=1", "B=two words"},
		ExposedPorts: map[string]struct{}{"80/tcp": none, "53/udp": none},
		Labels:       map[string]string{"a": "1", "b": "x y"}, StopSignal: "SIGINT", User: "1000:1000",
		Volumes: map[string]struct{}{"/data": none, "/logs": none, "/more": none}, WorkingDir: "/w/sub",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if base.Env[0] != "A=0" || base.Labels["a"] != "0" {
		t.Errorf("the base has changed: %+v", base)
	}
}

func TestRefused(t *testing.T) {
	for _, line := range []string{"", "RUN x", "FROM x", "CMD", `CMD ["a", 1]`, `CMD ["a"`, "ENV", "ENV A", "ENV =x", "LABEL x", "EXPOSE http",
		"EXPOSE 80/icmp", "EXPOSE", "USER a b", "USER", "STOPSIGNAL", "VOLUME rel", `VOLUME ["a"]`, "WORKDIR", `ENV A="open`} {
		if err := change.Apply(&ocispec.ImageConfig{}, []string{line}); !errors.Is(err, change.ErrInvalid) {
			t.Errorf("%q: %v", line, err)
		}
	}
}
