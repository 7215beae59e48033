package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"criserver/pkg/imagesvc/opfile"
)

// DefaultPath is where criserver looks for its configuration.
const DefaultPath = "/etc/criserver/config.toml"

// maxFileSize bounds what is read of a file that was named by mistake.
const maxFileSize = 1 << 20

// Problem is one thing that is wrong with the configuration.
type Problem struct {
	// File and Line are where it was said; "" and 0 when it was not said in a file.
	File string
	Line int
	// Key is the dotted TOML key; "" for a file that is not TOML.
	Key    string
	Reason string
}

func (p *Problem) Error() string {
	var b strings.Builder
	if p.File != "" {
		fmt.Fprintf(&b, "%s:%d: ", p.File, p.Line)
	}
	if p.Key != "" {
		fmt.Fprintf(&b, "%s: ", p.Key)
	}
	return b.String() + p.Reason
}

// Load reads the file at path and config.d/*.toml beside it over the defaults, and validates the result. Without the
// file the others count alone, unless explicit says that somebody has named it. The error joins all Problems, as far
// as they can be seen at the same time.
func Load(path string, explicit bool) (*Config, error) {
	c := Default()
	said := places{}
	files, err := dropIns(path)
	if err != nil {
		return nil, err
	}
	for i, file := range append([]string{path}, files...) {
		doc, err := readFile(file)
		if errors.Is(err, os.ErrNotExist) && i == 0 && !explicit {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		if err := c.merge(file, doc); err != nil {
			return nil, err
		}
		said.add(file, doc)
		c.Files = append(c.Files, file)
	}
	problems := c.problems()
	for _, p := range problems {
		p.File, p.Line = said.find(p.Key)
	}
	if err := join(problems); err != nil {
		return nil, err
	}
	return c, nil
}

// dropIns lists config.d/*.toml beside path, sorted by name.
func dropIns(path string) ([]string, error) {
	dir := filepath.Join(filepath.Dir(path), "config.d")
	entries, err := opfile.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var files []string
	for _, e := range entries {
		if !e.IsDir() && strings.HasSuffix(e.Name(), ".toml") {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	return files, nil
}

// readFile reads a file, or a pipe: a shell may have made it of a command.
func readFile(path string) ([]byte, error) {
	return opfile.Within(path, func() ([]byte, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		doc, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
		if err != nil {
			return nil, err
		}
		if len(doc) > maxFileSize {
			return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFileSize)
		}
		return doc, nil
	})
}

// merge decodes a file over what c has.
func (c *Config) merge(file string, doc []byte) error {
	err := toml.NewDecoder(bytes.NewReader(doc)).DisallowUnknownFields().Decode(c)
	var unknown *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case errors.As(err, &unknown): // before DecodeError, which is what it is made of
		var problems []*Problem
		for i := range unknown.Errors {
			p := problemOf(file, &unknown.Errors[i])
			p.Reason = "unknown key"
			problems = append(problems, p)
		}
		return join(problems)
	case errors.As(err, &bad):
		return problemOf(file, bad)
	case err != nil:
		return fmt.Errorf("decode %s: %w", file, err)
	}
	return nil
}

func problemOf(file string, e *toml.DecodeError) *Problem {
	line, _ := e.Position()
	return &Problem{File: file, Line: line, Key: joinKey(e.Key()...), Reason: strings.TrimPrefix(e.Error(), "toml: ")}
}

func join(problems []*Problem) error {
	var errs []error
	for _, p := range problems {
		errs = append(errs, p)
	}
	return errors.Join(errs...)
}
