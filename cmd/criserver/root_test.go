package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"criserver/cmd/criserver/config"
)

// served runs a command line and returns the configuration that the daemon got, nil when it was not started.
func served(t *testing.T, args ...string) (*config.Config, error) {
	t.Helper()
	var got *config.Config
	err := run(t.Context(), args, io.Discard, func(_ context.Context, cfg *config.Config, _ loadFunc) error {
		got = cfg
		return nil
	})
	return got, err
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestServeIsTheDefault(t *testing.T) {
	file := writeFile(t, "root = '/r'\n")
	for _, args := range [][]string{{"--config", file}, {"serve", "--config", file}, {"--config", file, "serve"}} {
		cfg, err := served(t, args...)
		if err != nil || cfg == nil || cfg.Root != "/r" {
			t.Errorf("%q: got %+v, %v", args, cfg, err)
		}
	}
}

func TestFlagsWin(t *testing.T) {
	file := writeFile(t, "socket = '/file.sock'\nstate = '/state-of-file'\n[log]\nlevel = 'warn'\nformat = 'json'\n")
	got, err := served(t, "--config", file, "--socket=/1", "--root=/2", "--log-level=debug", "--log-file=/3", "--monitor=/4",
		"--monitor-log=/5", "--monitor-socket=/6", "--cgroup-root=/7", "--cni-conf-dir=/8", "--cni-bin-dir=/9,9", "--cni-bin-dir=/10",
		"--admin-socket=/11")
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.Socket, want.State, want.Root = "/1", "/state-of-file", "/2"
	want.Log = config.Log{Level: "debug", Format: "json", File: "/3"}
	want.Monitor = config.Monitor{Path: "/4", Log: "/5", Socket: "/6"}
	want.Admin.Socket, want.Runtime.CgroupRoot = "/11", "/7"
	want.CNI.ConfDir, want.CNI.BinDirs = "/8", []string{"/9,9", "/10"}
	want.Files = []string{file}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestBadCommandLines(t *testing.T) {
	good := writeFile(t, "")
	for name, tc := range map[string]struct {
		args []string
		err  string
	}{
		"missing file":    {[]string{"--config", "/nonexistent/config.toml"}, "/nonexistent/config.toml"},
		"bad flag value":  {[]string{"--config", good, "--socket", "relative"}, "command line: socket: "},
		"unknown flag":    {[]string{"--sokcet", "/a"}, "--sokcet"},
		"unknown command": {[]string{"srve"}, `unknown command "srve"`},
		"extra argument":  {[]string{"serve", "now"}, `"now"`},
		"bad file":        {[]string{"--config", writeFile(t, "sokcet = 1\n")}, ":1: sokcet: unknown key"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := served(t, tc.args...)
			if cfg != nil {
				t.Error("the daemon was started")
			}
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("got %v, want %q in it", err, tc.err)
			}
		})
	}
}

func TestServeErrorComesBack(t *testing.T) {
	want := errors.New("port is burning")
	err := run(t.Context(), []string{"--config", writeFile(t, "")}, io.Discard,
		func(context.Context, *config.Config, loadFunc) error { return want })
	if !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}

// output runs a command that must not start the daemon.
func output(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), args, &out, func(context.Context, *config.Config, loadFunc) error {
		t.Error("the daemon was started")
		return nil
	})
	return out.String(), err
}

func TestConfigDefaultPassesCheck(t *testing.T) {
	sample, err := output(t, "config", "default")
	if err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, sample)
	for _, args := range [][]string{{"config", "check", file}, {"config", "check", "--config", file}} {
		if out, err := output(t, args...); err != nil || out != "ok: "+file+"\n" {
			t.Errorf("%q: got %q, %v", args, out, err)
		}
	}
}

func TestConfigCheckFindsProblems(t *testing.T) {
	file := writeFile(t, "[log]\nlevel = 'loud'\n")
	_, err := output(t, "config", "check", file)
	var p *config.Problem
	if !errors.As(err, &p) || p.File != file || p.Line != 2 || p.Key != "log.level" {
		t.Errorf("got %v", err)
	}
	if _, err := output(t, "config", "check", "/nonexistent/config.toml"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestVersion(t *testing.T) {
	out, err := output(t, "version")
	if err != nil || !regexp.MustCompile(`^criserver \d+\.\d+\.\d+\S* (\(commit \w+\) )?go\S+ linux/\w+\n$`).MatchString(out) {
		t.Errorf("got %q, %v", out, err)
	}
}
