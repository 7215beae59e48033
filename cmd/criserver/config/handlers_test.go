package config

import (
	"strings"
	"testing"
)

func TestHandlers(t *testing.T) {
	const runc = "type = \"oci\"\npath = \"/usr/bin/runc\"\n"
	for name, c := range map[string]struct{ text, want string }{
		"good":            {"default_runtime = \"a\"\n[runtimes.a]\n" + runc, ""},
		"builtin's":       {"[runtimes.builtin]\ntype = \"builtin\"\n[runtimes.b]\ntype = \"builtin\"", ""},
		"unknown default": {"default_runtime = \"b\"\n[runtimes.a]\n" + runc, "default_runtime: \"b\" is neither builtin"},
		"no type":         {"[runtimes.a]\npath = \"/usr/bin/runc\"", "runtimes.a.type: \"\" is not one of oci, builtin"},
		"unknown type":    {"[runtimes.a]\ntype = \"vm\"", "runtimes.a.type: \"vm\" is not one of oci, builtin"},
		"no path":         {"[runtimes.a]\ntype = \"oci\"", "runtimes.a.path: \"\" is not an absolute path"},
		"relative":        {"[runtimes.a]\ntype = \"oci\"\npath = \"runc\"", "runtimes.a.path: \"runc\" is not an absolute path"},
		"same root": {"[runtimes.a]\nroot=\"/r\"\n" + runc + "[runtimes.b]\nroot=\"/r/\"\n" + runc,
			"runtimes.b.root: /r/ is that of a as well"},
		"name":           {"[runtimes.\"A b\"]\n" + runc, "cannot be the handler of a RuntimeClass"},
		"builtin as oci": {"[runtimes.builtin]\n" + runc, "builtin is crimonitor's own"},
		"builtin's path": {"[runtimes.a]\ntype = \"builtin\"\npath = \"/x\"", "are for the type oci"},
		"env":            {"[runtimes.a]\nenv = [\"=b\"]\n" + runc, "runtimes.a.env: \"=b\" is not of the form"},
		"ulimit":         {"[runtimes.a]\nulimits = {files = {soft = 1, hard = 2}}\n" + runc, "runtimes.a.ulimits: \"files\" is not one of"},
		"soft":           {"[runtimes.a]\nulimits = {nofile = {soft = 3, hard = 2}}\n" + runc, "the soft limit of nofile is above"},
		"sysctl":         {"[runtimes.a]\nsysctls = {\"vm.swappiness\" = \"1\"}\n" + runc, "runtimes.a.sysctls: "},
		"device":         {"[runtimes.a]\ndevices = [\"/dev/x:q\"]\n" + runc, "not of the form /dev/name:rwm"},
		"time zone":      {"[runtimes.a]\ntimezone = \"../x\"\n" + runc, "runtimes.a.timezone: \"../x\" is neither local"},
		"pids":           {"[runtimes.a]\npids_limit = -1\n" + runc, "runtimes.a.pids_limit: -1 is negative"},
		"stage":          {"[runtimes.a]\nhooks = [{stage = \"before\", path = \"/x\"}]\n" + runc, "\"before\" is no stage"},
		"poststop":       {"[runtimes.a]\ntype = \"builtin\"\nhooks = [{stage = \"poststop\", path = \"/x\"}]", ""},
		"all":            {"[runtimes.a]\nulimits = {nofile = {soft = 1, hard = 2}}\nsysctls = {\"net.ipv4.ip_forward\" = \"1\"}\ndevices = [\"/dev/fuse\"]\ntimezone = \"Europe/Berlin\"\npids_limit = 7\nhooks_dirs = [\"/h\"]\ncontainer_env = [\"A=b\"]\nhooks = [{stage = \"poststop\", path = \"/x\", timeout = \"3s\"}]\n" + runc, ""},
		"network":        {"[runtimes.a]\ncni_conf_dir = \"/n\"\ncni_max_networks = 0\n" + runc, ""},
		"network dir":    {"[runtimes.a]\ncni_conf_dir = \"n\"\n" + runc, "runtimes.a.cni_conf_dir: \"n\" is not an absolute path"},
		"networks":       {"[runtimes.a]\ncni_max_networks = -1\n" + runc, "runtimes.a.cni_max_networks: -1 is negative"},
		"pattern":        {"[runtimes.a]\npod_annotations = [\"[\"]\n" + runc, "runtimes.a.pod_annotations: \"[\" is not a pattern"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(write(t, map[string]string{"config.toml": c.text}), true)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("err = %v, want %q", err, c.want)
			}
		})
	}
}
