package hosts

import (
	"errors"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"criserver/pkg/imagesvc/opfile"
)

const (
	// checkEvery is how often files are looked at for changes, while they are used.
	checkEvery = time.Second
	// maxHostsFile bounds what is read of a file.
	maxHostsFile = 1 << 20
	// maxRemembered bounds the hosts whose files are remembered: anybody can name hosts, in names of images.
	maxRemembered = 1024
)

// dirs are directories of the layout certs.d/<host>/.
type dirs struct {
	roots []string

	mu     sync.Mutex
	byHost map[string]*lookup
	warned map[string]bool
}

// lookup is what was found for a host.
type lookup struct {
	checked time.Time
	stamp   string
	found   *hostDir
	err     error
}

// hostDir is the directory of a host.
type hostDir struct {
	path      string
	isDefault bool
	doc       *document
}

func newDirs(roots []string) *dirs {
	return &dirs{roots: roots, byHost: map[string]*lookup{}, warned: map[string]bool{}}
}

// find returns nil if there is no directory for a host.
func (d *dirs) find(host string) (*hostDir, error) {
	now := time.Now()
	d.mu.Lock()
	known := d.byHost[host]
	d.mu.Unlock()
	if known != nil && now.Sub(known.checked) < checkEvery {
		return known.found, known.err
	}
	fresh := d.look(host, known)
	fresh.checked = now
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.byHost) >= maxRemembered {
		clear(d.byHost)
	}
	d.byHost[host] = fresh
	return fresh.found, fresh.err
}

// look finds the directory, and reads it unless it is as it was.
func (d *dirs) look(host string, known *lookup) *lookup {
	path, isDefault, err := d.choose(host)
	if err != nil {
		return &lookup{err: &Problem{File: path, Reason: err.Error(), cause: err}}
	}
	if path == "" {
		return &lookup{}
	}
	file := filepath.Join(path, "hosts.toml")
	l := &lookup{stamp: stampOf(path) + stampOf(file)}
	if known != nil && known.stamp == l.stamp {
		l.found, l.err = known.found, known.err
		return l
	}
	l.found = &hostDir{path: path, isDefault: isDefault}
	l.found.doc, l.err = readDir(path, file)
	if l.err != nil {
		l.found = nil
		var p *Problem
		if errors.As(l.err, &p) && p.Line == 0 {
			l.stamp = "" // not what was written, but reading it: that may be better next time
		}
		return l
	}
	d.warn(l.found.doc.unknown)
	return l
}

// warn logs each thing once.
func (d *dirs) warn(problems []*Problem) {
	for _, p := range problems {
		d.mu.Lock()
		told := d.warned[p.Error()]
		d.warned[p.Error()] = true
		d.mu.Unlock()
		if !told {
			logrus.WithField("key", p.Key).Warnf("%s: %s", at(p.File, p.Line), p.Reason)
		}
	}
}

// choose picks the directory: of the host's in the first root that has anything in one, or else an empty one, which says
// that the host is none of the others; then the default's. "": there is none.
func (d *dirs) choose(host string) (path string, isDefault bool, err error) {
	own, hasFiles, err := d.first(directoryNames(host))
	if err != nil || hasFiles || own != "" {
		return own, false, err
	}
	path, hasFiles, err = d.first([]string{Default})
	if err == nil && !hasFiles {
		path = ""
	}
	return path, true, err
}

// first is the first directory with anything in it, or else the first empty one.
func (d *dirs) first(names []string) (path string, hasFiles bool, err error) {
	empty := ""
	for _, root := range d.roots {
		for _, name := range names {
			path := filepath.Join(root, name)
			entries, err := opfile.ReadDir(path)
			switch {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				return path, false, err
			case len(entries) > 0:
				return path, true, nil
			case empty == "":
				empty = path
			}
		}
	}
	return empty, false, nil
}

// directoryNames are those of a host, the first before the others.
func directoryNames(host string) []string {
	if host != filepath.Base(host) || strings.HasPrefix(host, ".") || host == Default {
		return nil // no name of a host
	}
	if i := strings.LastIndexByte(host, ':'); i > 0 {
		if _, _, err := net.SplitHostPort(host); err == nil {
			return []string{host[:i] + "_" + host[i+1:] + "_", host}
		}
	}
	return []string{host}
}

// readDir reads hosts.toml, or the files of docker's layout where that is not, or is empty.
func readDir(dir, file string) (*document, error) {
	doc, err := opfile.Read(file, maxHostsFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, &Problem{File: file, Reason: err.Error(), cause: err}
	}
	if len(doc) > 0 {
		return parseHosts(file, dir, doc)
	}
	entries, err := opfile.ReadDir(dir)
	if err != nil {
		return nil, &Problem{File: dir, Reason: err.Error(), cause: err}
	}
	var tls TLS
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch base, isCert := strings.CutSuffix(path, ".cert"); {
		case strings.HasSuffix(path, ".crt"):
			tls.CA = append(tls.CA, path)
		case isCert:
			pair := KeyPair{Cert: path}
			if _, err := opfile.Stat(base + ".key"); err == nil {
				pair.Key = base + ".key"
			}
			tls.Client = append(tls.Client, pair)
		}
	}
	return &document{root: Endpoint{Source: dir, Capabilities: All, TLS: tls}}, nil
}

func (h *hostDir) source() string { return h.path }

func (h *hostDir) endpoints(host string) []*Endpoint {
	list := mirrorsOf(host, h.doc.hosts)
	if h.doc.server != nil {
		return withLast(list, expand(h.doc.server, host, true))
	}
	return withLast(list, itself(host, h.doc.root))
}
