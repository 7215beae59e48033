package template

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cni.template")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func cidrs(all ...string) (out []netip.Prefix) {
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// All values, in the ways in which templates for containerd use them.
const all = `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"ptp","ipam":{"type":"host-local","subnet":"{{.PodCIDR}}",
"ranges":[{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet":"{{$range}}"}]{{end}}],
"routes":[{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst":"{{$route}}"}{{end}}]}}]}`

func TestRender(t *testing.T) {
	for name, c := range map[string]struct {
		cidrs []netip.Prefix
		want  string
	}{
		"IPv4": {cidrs("10.244.1.0/24"), `{"type":"host-local","subnet":"10.244.1.0/24","ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}`},
		"both": {cidrs("fd00:1::/64", "10.244.1.0/24"), `{"type":"host-local","subnet":"fd00:1::/64",
			"ranges":[[{"subnet":"fd00:1::/64"}],[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"::/0"},{"dst":"0.0.0.0/0"}]}`},
	} {
		text, err := Render(file(t, all), c.cidrs)
		if err != nil {
			t.Fatal(err)
		}
		var got struct{ Plugins []struct{ IPAM any } }
		var want any
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(c.want), &want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got.Plugins[0].IPAM, want) {
			t.Errorf("%s: got %v, want %v", name, got.Plugins[0].IPAM, want)
		}
	}
}

func TestRenderRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"{{.PodCIDR":                             "unclosed action",
		"{{.PodCidr}}":                           "PodCidr",
		"":                                       "no list of plugins",
		`{"cniVersion":"1.0.0","type":"bridge"}`: "no list of plugins",
		strings.Repeat(" ", maxSize) + "{}":      "is larger than",
		strings.Replace(all, `"name":"net",`, "", 1): "name",
	} {
		path := file(t, text)
		if _, err := Render(path, cidrs("10.0.0.0/24")); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%.40q: got %v, want %q and the file's name", text, err, want)
		}
	}
	if _, err := Render("/nowhere", cidrs("10.0.0.0/24")); !os.IsNotExist(err) && !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("got %v", err)
	}
}

func TestInstall(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	ours := filepath.Join(dir, FileName)
	install := func(text, wantOther, want string) {
		t.Helper()
		other, err := Install(dir, []byte(text))
		if err != nil || other != wantOther {
			t.Errorf("other = %q, %v, want %q", other, err, wantOther)
		}
		if got, _ := os.ReadFile(ours); string(got) != want {
			t.Errorf("content = %q, want %q", got, want)
		}
	}
	install("a", "", "a")
	before, err := os.Stat(ours)
	if err != nil {
		t.Fatal(err)
	}
	install("a", "", "a")
	if after, err := os.Stat(ours); err != nil || !os.SameFile(before, after) {
		t.Errorf("what is as it should be was written again: %v", err)
	}
	other := filepath.Join(dir, "20-other.conf")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	install("b", "", "b") // ours is kept up to date
	if err := os.Remove(ours); err != nil {
		t.Fatal(err)
	}
	install("c", other, "")
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
}
