package config

import (
	"maps"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// place is a line of a file.
type place struct {
	file string
	line int
}

// places tells where each key was set last.
type places map[string]place

// add notes the keys of a file, which has been decoded without an error. The tables of an array are numbered:
// "trust.policy.0".
func (p places) add(file string, doc []byte) {
	var parser unstable.Parser
	parser.Reset(doc)
	var table []string
	arrays := map[string]int{} // how many tables each has so far
	for parser.NextExpression() {
		e := parser.Expression()
		if e.Kind == unstable.Table || e.Kind == unstable.ArrayTable {
			table = nil
		}
		p.addNode(&parser, file, &table, e)
		if e.Kind == unstable.ArrayTable {
			p.number(arrays, &table)
		}
	}
}

// number gives the table of an array its place. The first replaces what another file has said.
func (p places) number(arrays map[string]int, table *[]string) {
	array := joinKey(*table...)
	if arrays[array] == 0 {
		maps.DeleteFunc(p, func(key string, _ place) bool { return strings.HasPrefix(key, array+".") })
	}
	*table = append(*table, strconv.Itoa(arrays[array]))
	arrays[array]++
	p[joinKey(*table...)] = p[array]
}

// addNode notes a table or a key below the table prefix. A table becomes the prefix.
func (p places) addNode(parser *unstable.Parser, file string, prefix *[]string, n *unstable.Node) {
	key := append([]string{}, *prefix...)
	line := 0
	for it := n.Key(); it.Next(); {
		part := it.Node()
		key = append(key, string(part.Data))
		line = parser.Shape(part.Raw).Start.Line
	}
	p[joinKey(key...)] = place{file, line}
	if n.Kind != unstable.KeyValue {
		*prefix = key
		return
	}
	if n.Value().Kind == unstable.InlineTable {
		for it := n.Value().Children(); it.Next(); {
			if child := it.Node(); child.Kind == unstable.KeyValue {
				p.addNode(parser, file, &key, child)
			}
		}
	}
}

// find returns where key was set, or else the nearest table around it.
func (p places) find(key string) (string, int) {
	for key != "" {
		if at, found := p[key]; found {
			return at.file, at.line
		}
		key = key[:max(0, strings.LastIndexByte(key, '.'))]
	}
	return "", 0
}

// joinKey writes a dotted key as it stands in a file.
func joinKey(parts ...string) string {
	quoted := make([]string, len(parts))
	for i, part := range parts {
		bare := strings.Trim(part, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
		if quoted[i] = part; !bare || part == "" {
			quoted[i] = strconv.Quote(part)
		}
	}
	return strings.Join(quoted, ".")
}
