// Package template makes a CNI configuration of an operator's template and of the addresses that the cluster has given the
// node. The values are those that containerd's conf_template has, so that its templates can be kept as they are.
package template

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"text/template"

	"github.com/containernetworking/cni/libcni"

	"criserver/pkg/cni/confdir"
)

// FileName is that of the configuration that is made.
const FileName = "10-criserver.conflist"

// maxSize bounds what is read of a file that was named by mistake.
const maxSize = 1 << 20

// values are what a template may use.
type values struct {
	// PodCIDR is the first range of the pods' addresses, PodCIDRRanges are all.
	PodCIDR       string
	PodCIDRRanges []string
	// Routes are the default routes of the ranges' families.
	Routes []string
}

// Render executes the template at path. Its result is a network that libcni can read.
func Render(path string, cidrs []netip.Prefix) ([]byte, error) {
	text, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("read CNI template: %w", err)
	}
	t, err := template.New(filepath.Base(path)).Option("missingkey=error").Parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("CNI template %s: %w", path, err)
	}
	v := values{PodCIDR: cidrs[0].String()}
	for _, c := range cidrs {
		v.PodCIDRRanges = append(v.PodCIDRRanges, c.String())
		route := "0.0.0.0/0"
		if c.Addr().Is6() {
			route = "::/0"
		}
		if !slices.Contains(v.Routes, route) {
			v.Routes = append(v.Routes, route)
		}
	}
	var out bytes.Buffer
	if err := t.Execute(&out, v); err != nil {
		return nil, fmt.Errorf("CNI template %s: %w", path, err)
	}
	if _, err := libcni.NetworkConfFromBytes(out.Bytes()); err != nil {
		return nil, fmt.Errorf("CNI template %s: the result is no list of plugins (.conflist): %w", path, err)
	}
	return out.Bytes(), nil
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err == nil && len(b) > maxSize {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxSize)
	}
	return b, err
}

// Install writes a configuration into dir as FileName, as a whole or not at all. It does not if there is a configuration
// of somebody else's and none of ours: then other is that file's path. One that is as it should be is left alone.
func Install(dir string, text []byte) (other string, err error) {
	path := filepath.Join(dir, FileName)
	former, err := os.ReadFile(path)
	if err == nil && bytes.Equal(former, text) {
		return "", nil
	}
	if errors.Is(err, os.ErrNotExist) {
		var files []string
		if files, err = confdir.Files(dir); len(files) > 0 {
			return files[0], nil
		}
	}
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		err = replace(path, text)
	}
	if err != nil {
		return "", fmt.Errorf("install CNI configuration: %w", err)
	}
	return "", nil
}

// replace is synced: a file without content after a power cut would keep the network from being ready.
func replace(path string, text []byte) error {
	f, err := os.OpenFile(filepath.Join(filepath.Dir(path), "."+FileName+".new"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
