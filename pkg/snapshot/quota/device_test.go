package quota

import "testing"

func TestMountDevice(t *testing.T) {
	for line, want := range map[string][2]string{
		"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue": {"98:0", "/dev/root"},
		`41 27 7:0 / /a\040-\040b rw shared:1 master:2 - ext4 /dev/a\040b\134c rw`:       {"7:0", `/dev/a b\c`},
		"22 21 0:5 / /proc rw - proc proc rw":                                            {"0:5", "proc"},
		"":                                                                               {},
		"1 2":                                                                            {},
		"1 2 3:4 / / rw":                                                                 {},
		"1 2 3:4 / / rw - ext4":                                                          {},
		" - ":                                                                            {},
	} {
		if device, source := mountDevice(line); device != want[0] || source != want[1] {
			t.Errorf("%q: %q, %q; want %q", line, device, source, want)
		}
	}
}
