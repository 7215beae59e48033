package imagesvc_test

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/registry/registrytest"
)

// sender answers a request for bytes of a blob, which is the n-th that it gets, from 1 on.
type sender func(w http.ResponseWriter, blob []byte, from, to, n int)

func rightBytes(w http.ResponseWriter, blob []byte, from, to, _ int) {
	partial(w, from, to, len(blob), blob[from:to+1])
}

func wrongBytes(w http.ResponseWriter, blob []byte, from, to, _ int) {
	partial(w, from, to, len(blob), bytes.Repeat([]byte("x"), to+1-from))
}

func noBytes(w http.ResponseWriter, _ []byte, _, _, _ int) {
	w.WriteHeader(http.StatusServiceUnavailable)
}

// startOnly answers for the beginning of the blob, and has no more of it.
func startOnly(s sender) sender {
	return func(w http.ResponseWriter, blob []byte, from, to, n int) {
		if from > 0 {
			noBytes(w, blob, from, to, n)
			return
		}
		s(w, blob, from, to, n)
	}
}

// cutting answers with half of what it is asked for.
func cutting(s sender) sender {
	return func(w http.ResponseWriter, blob []byte, from, to, n int) {
		s(w, blob, from, from+(to-from)/2, n)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// shortly does so for the first requests.
func shortly(requests int, s sender) sender {
	return func(w http.ResponseWriter, blob []byte, from, to, n int) {
		if n > requests {
			rightBytes(w, blob, from, to, n)
			return
		}
		s(w, blob, from, to, n)
	}
}

// sending makes a registry that has an image, and sends its layer so.
func sending(t *testing.T, l registrytest.Layer, s sender) *registrytest.Memory {
	t.Helper()
	m := registrytest.NewMemory(t)
	m.Add("a/b", "v1", image(l))
	var n atomic.Int64
	m.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/blobs/"+l.Descriptor().Digest.String()) {
			return false
		}
		from, to, _ := asked(r, len(l.Blob))
		s(w, l.Blob, from, to, int(n.Add(1)))
		return true
	}
	return m
}

// mixture is who has a layer: the registry itself and its mirrors.
type mixture struct {
	layer   registrytest.Layer
	mirrors []sender
	own     sender
	first   bool // own comes before the mirrors
	kept    bool // some is on the disk already, and it is wrong
	fails   bool // and the error names all, of which each sent something wrong
}

// A pull succeeds if one of the endpoints has the right bytes, whatever the others send before it, after it and in between.
func TestWrongBytesAmongRightOnes(t *testing.T) {
	big, small := bigLayer(t), layer(t, "small")
	for name, test := range map[string]mixture{
		"mirror":                        {layer: big, mirrors: []sender{wrongBytes}, own: rightBytes},
		"mirror for a part":             {layer: big, mirrors: []sender{startOnly(wrongBytes)}, own: rightBytes},
		"mirror for half a part":        {layer: big, mirrors: []sender{cutting(wrongBytes)}, own: rightBytes},
		"mirror for half a small blob":  {layer: small, mirrors: []sender{cutting(wrongBytes)}, own: rightBytes},
		"mirrors for a part each":       {layer: big, mirrors: []sender{startOnly(wrongBytes), wrongBytes}, own: rightBytes},
		"mirror after a failure":        {layer: big, mirrors: []sender{wrongBytes}, own: shortly(6, startOnly(rightBytes)), first: true},
		"mirror after a cut":            {layer: big, mirrors: []sender{wrongBytes}, own: shortly(12, cutting(rightBytes)), first: true},
		"first mirror, second is right": {layer: big, mirrors: []sender{startOnly(wrongBytes), rightBytes}, own: noBytes},
		"second mirror, first is right": {layer: big, mirrors: []sender{shortly(6, startOnly(rightBytes)), wrongBytes}, own: noBytes},
		"own, mirror is right":          {layer: big, mirrors: []sender{rightBytes}, own: startOnly(wrongBytes), first: true},
		"own all, mirror is right":      {layer: big, mirrors: []sender{rightBytes}, own: wrongBytes, first: true},
		"disk":                          {layer: big, mirrors: []sender{rightBytes}, own: rightBytes, kept: true},
		"disk and mirror":               {layer: big, mirrors: []sender{wrongBytes}, own: rightBytes, kept: true},
		"disk and mirror for a part":    {layer: big, mirrors: []sender{startOnly(wrongBytes)}, own: rightBytes, kept: true},
		"all":                           {layer: big, mirrors: []sender{wrongBytes, wrongBytes}, own: wrongBytes, fails: true},
		"all, one for a part":           {layer: big, mirrors: []sender{startOnly(wrongBytes), wrongBytes}, own: wrongBytes, fails: true},
		"all, one for half a part":      {layer: big, mirrors: []sender{cutting(wrongBytes)}, own: wrongBytes, fails: true},
		"all and disk":                  {layer: big, mirrors: []sender{startOnly(wrongBytes)}, own: wrongBytes, kept: true, fails: true},
		"all of a small blob":           {layer: small, mirrors: []sender{wrongBytes}, own: wrongBytes, fails: true},
		"no mirror":                     {layer: big, own: wrongBytes, fails: true},
	} {
		t.Run(strings.ReplaceAll(name, ",", ""), func(t *testing.T) { tryMixture(t, test) })
	}
}

func tryMixture(t *testing.T, test mixture) {
	own := sending(t, test.layer, test.own)
	all := []*registrytest.Memory{own}
	for i, s := range test.mirrors {
		all = slices.Insert(all, len(all)-1, sending(t, test.layer, s))
		if test.first {
			all[i], all[i+1] = all[i+1], all[i]
		}
	}
	var sent atomic.Int64
	var endpoints []registry.Endpoint
	for _, m := range all {
		endpoints = append(endpoints, registry.Endpoint{URL: "http://" + m.Host})
		hook := m.Hook
		m.Hook = func(w http.ResponseWriter, r *http.Request) bool { return hook(&counted{w, &sent}, r) }
	}
	n := newNode(t, registry.Config{Mirrors: map[string][]registry.Endpoint{own.Host: endpoints}})
	n.config.Connections, n.config.KeepDownloads = 2, time.Hour
	n.restart(t)
	if test.kept {
		keep(t, n, test.layer, bytes.Repeat([]byte("y"), 8<<20))
	}
	_, err := n.Pull(t.Context(), own.Host+"/a/b:v1", registry.Auth{})
	t.Log(err)
	if size := int64(len(test.layer.Blob)); sent.Load() > size*int64(len(all)+1) {
		t.Errorf("%d bytes of %d were sent by %d endpoints", sent.Load(), size, len(all))
	}
	switch {
	case !test.fails && err != nil:
		t.Fatal(err)
	case test.fails && err == nil:
		t.Fatal("the pull succeeded")
	case test.fails:
		for _, m := range all {
			if !strings.Contains(err.Error(), m.Host) || !strings.Contains(err.Error(), "sent by") {
				t.Errorf("%v does not name %s", err, m.Host)
			}
		}
	default:
		n.wantLayers(t, test.layer)
		if err := n.Remove(t.Context(), own.Host+"/a/b:v1"); err != nil {
			t.Fatal(err)
		}
		n.wantClean(t)
	}
}

// counted adds up what is sent.
type counted struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (c *counted) Write(p []byte) (int, error) {
	c.sent.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// keep leaves the beginning of a layer's blob as a download does that a restart has ended.
func keep(t *testing.T, n *node, l registrytest.Layer, data []byte) {
	t.Helper()
	dir := filepath.Join(n.root, "downloads", strings.Replace(l.Descriptor().Digest.String(), ":", "-", 1))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "0"), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A mirror that sends a part of a configuration and cuts the connection does not have the rest be thought wrong.
func TestWrongBytesOfConfiguration(t *testing.T) {
	l := layer(t, "x")
	img := image(l)
	own, mirror := registrytest.NewMemory(t), registrytest.NewMemory(t)
	own.Add("a/b", "v1", img)
	mirror.Add("a/b", "v1", img)
	mirror.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/blobs/"+img.Manifest.Config.Digest.String()) {
			return false
		}
		from, to, _ := asked(r, len(img.ConfigData))
		cutting(wrongBytes)(w, img.ConfigData, from, to, 0)
		return true
	}
	n := newNode(t, registry.Config{Mirrors: map[string][]registry.Endpoint{own.Host: {{URL: "http://" + mirror.Host}, {URL: "http://" + own.Host}}}})
	n.pull(t, own.Host+"/a/b:v1")
	own.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/blobs/"+img.Manifest.Config.Digest.String()) {
			return false
		}
		from, to, _ := asked(r, len(img.ConfigData))
		wrongBytes(w, img.ConfigData, from, to, 0)
		return true
	}
	n = newNode(t, n.reg)
	_, err := n.Pull(t.Context(), own.Host+"/a/b:v1", registry.Auth{})
	if !errors.Is(err, registry.ErrDigest) || !strings.Contains(err.Error(), own.Host+": content") || !strings.Contains(err.Error(), mirror.Host+": content") {
		t.Errorf("all wrong: %v", err)
	}
}

// The registry of one pull that sends wrong bytes does not make that of another fail, though parts of both have been put together.
func TestWrongBytesOfAnotherRegistry(t *testing.T) {
	big := bigLayer(t)
	begun, open := make(chan struct{}), make(chan struct{})
	var once sync.Once
	bad := sending(t, big, func(w http.ResponseWriter, blob []byte, from, to, n int) {
		once.Do(func() { close(begun) })
		<-open
		startOnly(wrongBytes)(w, blob, from, to, n)
	})
	good := sending(t, big, rightBytes)
	n := newNode(t, registry.Config{Mirrors: map[string][]registry.Endpoint{
		bad.Host: {{URL: "http://" + bad.Host}}, good.Host: {{URL: "http://" + good.Host}},
	}})
	n.config.Connections = 2
	n.restart(t)
	first := n.begin(t.Context(), bad.Host+"/a/b:v1")
	<-begun
	second := n.begin(t.Context(), good.Host+"/a/b:v1")
	waitForLayer(t, n, big, 2)
	close(open)
	if err := errors.Join(<-first, <-second); err != nil {
		t.Error(err)
	}
	n.wantLayers(t, big)
}

// A kept blob that is lost is fetched again, small as it is, though a mirror has got other bytes since.
func TestWrongBytesForRepair(t *testing.T) {
	l := layer(t, "x")
	own := sending(t, l, rightBytes)
	mirror := sending(t, l, wrongBytes)
	n := newNode(t, registry.Config{Mirrors: map[string][]registry.Endpoint{own.Host: {{URL: "http://" + own.Host}}}})
	n.config.KeepBlobs = true
	n.restart(t)
	n.pull(t, own.Host+"/a/b:v1")
	n.reg.Mirrors[own.Host] = []registry.Endpoint{{URL: "http://" + mirror.Host}, {URL: "http://" + own.Host}}
	n.config.KeepBlobs = false
	n.restart(t)
	if err := os.Remove(filepath.Join(n.root, "content/sha256", l.Descriptor().Digest.Encoded())); err != nil {
		t.Fatal(err)
	}
	if found := n.check(t, true); len(found) != 1 || !found[0].Repaired {
		t.Errorf("found %+v", found)
	}
	if found := n.check(t, false); len(found) > 0 {
		t.Errorf("after the repair: %+v", found)
	}
}
