package hosts

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// document is a hosts.toml (containerd, docs/hosts.md). Its keys beyond containerd's are rewrite, which k3s has too, and
// takes_credentials.
type document struct {
	hosts []*Endpoint
	// server stands in the place of the registry itself; nil: that is asked, in the way that root says.
	server *Endpoint
	root   Endpoint
	// unknown are keys that have no meaning here.
	unknown []*Problem
}

// parseHosts reads a hosts.toml. base is the directory that its file names are relative to. The error is a Problem.
func parseHosts(file, base string, doc []byte) (*document, error) {
	p := &parser{file: file, base: base}
	var root map[string]any
	if err := toml.Unmarshal(doc, &root); err != nil {
		return nil, p.broken(err)
	}
	p.index(doc)
	d := &document{}
	entry, err := p.entry(nil, root)
	if err != nil {
		return nil, err
	}
	if server, ok := root["server"]; ok {
		if entry.URL, ok = server.(string); !ok {
			return nil, p.problem([]string{"server"}, "want a string")
		}
	}
	if d.root, err = p.root(entry); err != nil {
		return nil, err
	}
	if entry.URL != "" {
		if d.server, err = p.endpoint([]string{"server"}, nil, entry); err != nil {
			return nil, err
		}
	}
	tables, ok := root["host"].(map[string]any)
	if !ok && root["host"] != nil {
		return nil, p.problem([]string{"host"}, `want tables [host."https://mirror.example"]`)
	}
	for _, name := range p.order {
		e, err := p.host(name, tables[name])
		if err != nil {
			return nil, err
		}
		d.hosts = append(d.hosts, e)
	}
	d.unknown = p.unknown
	return d, nil
}

type parser struct {
	file, base string
	lines      map[string]int // by quoted dotted key
	order      []string       // of host tables
	unknown    []*Problem
}

func (p *parser) problem(key []string, format string, args ...any) *Problem {
	return &Problem{File: p.file, Line: p.line(key), Key: dotted(key), Reason: fmt.Sprintf(format, args...)}
}

// line is where a key stands, or else the nearest table around it.
func (p *parser) line(key []string) int {
	for n := len(key); n > 0; n-- {
		if line := p.lines[dotted(key[:n])]; line != 0 {
			return line
		}
	}
	return 1
}

func (p *parser) broken(err error) *Problem {
	problem := &Problem{File: p.file, Line: 1, Reason: strings.TrimPrefix(err.Error(), "toml: ")}
	var at *toml.DecodeError
	if errors.As(err, &at) {
		problem.Line, _ = at.Position()
		problem.Key = dotted(at.Key())
	}
	return problem
}

func dotted(key []string) string {
	quoted := make([]string, len(key))
	for i, part := range key {
		quoted[i] = part
		if strings.Trim(part, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" || part == "" {
			quoted[i] = strconv.Quote(part)
		}
	}
	return strings.Join(quoted, ".")
}

// index notes where keys stand, and in which order hosts do: a decoded map has none.
func (p *parser) index(doc []byte) {
	p.lines = map[string]int{}
	var parser unstable.Parser
	parser.Reset(doc)
	var table []string
	for parser.NextExpression() {
		e := parser.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = p.note(&parser, nil, e)
		case unstable.KeyValue:
			p.note(&parser, table, e)
		}
	}
}

// note takes the key of a node, and those within an inline table.
func (p *parser) note(parser *unstable.Parser, prefix []string, n *unstable.Node) []string {
	key := slices.Clone(prefix)
	for it := n.Key(); it.Next(); {
		part := it.Node()
		key = append(key, string(part.Data))
		if name := dotted(key); p.lines[name] == 0 {
			p.lines[name] = parser.Shape(part.Raw).Start.Line
		}
	}
	if len(key) > 1 && key[0] == "host" && !slices.Contains(p.order, key[1]) {
		p.order = append(p.order, key[1])
	}
	if n.Kind == unstable.KeyValue && n.Value().Kind == unstable.InlineTable {
		for it := n.Value().Children(); it.Next(); {
			if child := it.Node(); child.Kind == unstable.KeyValue {
				p.note(parser, key, child)
			}
		}
	}
	return key
}

func (p *parser) host(name string, value any) (*Endpoint, error) {
	key := []string{"host", name}
	table, ok := value.(map[string]any)
	if !ok {
		return nil, p.problem(key, "want a table")
	}
	entry, err := p.entry(key, table)
	if err != nil {
		return nil, err
	}
	entry.URL = name
	return p.endpoint(key, key, entry)
}

// endpoint makes an endpoint of an entry, whose URL stands at one key and whose other values stand below another.
func (p *parser) endpoint(at, table []string, entry Entry) (*Endpoint, error) {
	if !strings.Contains(entry.URL, "://") {
		entry.URL = "https://" + entry.URL
	}
	e, f := entry.endpoint(p.base)
	if f != nil && f.key == "url" {
		return nil, p.problem(at, "%s", f.reason)
	}
	if f != nil {
		return nil, p.problem(append(slices.Clone(table), f.key), "%s", f.reason)
	}
	e.Source = fmt.Sprintf("%s:%d", p.file, p.line(at))
	return e, nil
}

// root makes what the registry itself is asked with.
func (p *parser) root(entry Entry) (Endpoint, error) {
	e := Endpoint{Source: p.file, DialTimeout: entry.DialTimeout, TakesCredentials: entry.TakesCredentials}
	var f *fault
	if e.TLS, f = entry.tls(p.base); f == nil {
		f = entry.options(&e)
	}
	if f != nil {
		return e, p.problem([]string{f.key}, "%s", f.reason)
	}
	return e, nil
}

// entry decodes the values of a table.
func (p *parser) entry(key []string, table map[string]any) (e Entry, err error) {
	for _, name := range slices.Sorted(maps.Keys(table)) {
		value := table[name]
		ok := true
		switch name {
		case "capabilities":
			e.Capabilities, ok = stringList(value)
		case "ca":
			e.CA, ok = stringOrList(value)
		case "client":
			e.Client, ok = keyPairs(value)
		case "skip_verify":
			e.SkipVerify, ok = value.(bool)
		case "header":
			e.Header, ok = header(value)
		case "rewrite":
			e.Rewrite, ok = stringMap(value)
		case "override_path":
			e.OverridePath, ok = value.(bool)
		case "takes_credentials":
			e.TakesCredentials, ok = value.(bool)
		case "dial_timeout":
			e.DialTimeout, ok = duration(value)
		case "proxy":
			e.Proxy, ok = value.(string)
		case "server", "host":
			if len(key) > 0 {
				p.ignore(key, name)
			}
		default:
			p.ignore(key, name)
		}
		if !ok {
			return e, p.problem(append(slices.Clone(key), name), "want %s", forms[name])
		}
	}
	return e, nil
}

func (p *parser) ignore(key []string, name string) {
	p.unknown = append(p.unknown, p.problem(append(slices.Clone(key), name), "unknown key, which has no effect"))
}

// forms are what values should look like.
var forms = map[string]string{
	"capabilities":      `a list such as ["pull", "resolve"]`,
	"ca":                "a file name or a list of them",
	"client":            "a file name, or a list of file names and of pairs [certificate, key]",
	"skip_verify":       "true or false",
	"header":            "a table of strings and lists of strings",
	"rewrite":           "a table of strings",
	"override_path":     "true or false",
	"takes_credentials": "true or false",
	"dial_timeout":      `a time such as "5s"`,
	"proxy":             "a string",
}

func stringList(v any) ([]string, bool) {
	list, ok := v.([]any)
	var out []string
	for _, item := range list {
		s, isString := item.(string)
		out, ok = append(out, s), ok && isString
	}
	return out, ok
}

func stringOrList(v any) ([]string, bool) {
	if s, ok := v.(string); ok {
		return []string{s}, true
	}
	return stringList(v)
}

func keyPairs(v any) ([]KeyPair, bool) {
	if s, ok := v.(string); ok {
		return []KeyPair{{Cert: s}}, true
	}
	list, ok := v.([]any)
	var out []KeyPair
	for _, item := range list {
		files, good := stringOrList(item)
		_, pair := item.([]any)
		if !good || pair && len(files) != 2 {
			return nil, false
		}
		out = append(out, KeyPair{files[0], strings.Join(files[1:], "")})
	}
	return out, ok
}

func header(v any) (map[string][]string, bool) {
	table, ok := v.(map[string]any)
	out := map[string][]string{}
	for name, value := range table {
		values, good := stringOrList(value)
		out[name], ok = values, ok && good
	}
	return out, ok
}

func stringMap(v any) (map[string]string, bool) {
	table, ok := v.(map[string]any)
	out := map[string]string{}
	for name, value := range table {
		s, good := value.(string)
		out[name], ok = s, ok && good
	}
	return out, ok
}

func duration(v any) (time.Duration, bool) {
	s, ok := v.(string)
	if !ok {
		return 0, false
	}
	if s == "" { // as if it were not there
		return 0, true
	}
	d, err := time.ParseDuration(s)
	return d, err == nil
}
