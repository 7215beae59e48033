package config

import (
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

// add notes the keys of a file, which has been decoded without an error.
func (p places) add(file string, doc []byte) {
	var parser unstable.Parser
	parser.Reset(doc)
	var table []string
	for parser.NextExpression() {
		e := parser.Expression()
		if e.Kind == unstable.Table || e.Kind == unstable.ArrayTable {
			table = nil
		}
		p.addNode(&parser, file, &table, e)
	}
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
