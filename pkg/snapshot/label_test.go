package snapshot

import (
	"reflect"
	"slices"
	"testing"

	"criserver/pkg/snapshot/fsmount"
)

func TestLabelled(t *testing.T) {
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	const option = `context="` + label + `"`
	overlay := Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=a:b", "upperdir=u", "workdir=w"}, Dir: "/layers"}
	writable := Mount{Type: "bind", Source: "/u", Options: []string{"bind", "rw"}}
	readOnly := Mount{Type: "bind", Source: "/layers/a", Options: []string{"bind", "ro"}}
	in := []Mount{overlay, writable, readOnly}
	if got := Labelled(in, "", "/empty"); !reflect.DeepEqual(got, in) {
		t.Errorf("without a label: %v", got)
	}
	labelled := overlay
	labelled.Options = append(slices.Clone(overlay.Options), option)
	want := []Mount{labelled, writable,
		{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/layers/a:/empty", "ro", option}}}
	got := Labelled(in, label, "/empty")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if len(in[0].Options) != 3 || in[2].Type != "bind" {
		t.Error("the caller's mounts were changed")
	}
	_, data := parseOptions(labelled.Options)
	params, ok := labelled.overlayParams(0, data)
	if !ok || !slices.Contains(params, fsmount.Param{Key: "context", Value: label}) {
		t.Errorf("parameters %v, %v", params, ok)
	}
}
