#!/bin/bash
# Runs end-to-end tests in a virtual machine with pure cgroup v2: crictl's day, a container's fields, the web server, the
# OOM kill, the kill of the daemon, checkpoints by Debian's criu. There are a few huge pages. All is compiled here, as the machine is emulated and slow.
#
#   hack/vm/smoke.sh [--systemd] [PATTERN]     of tests in test/e2e; --systemd: where that runs, and with its cgroup driver
#
# The programs of bin/ are used where they are: do not build them meanwhile.
set -euo pipefail
cd "$(dirname "$0")/../.."
systemd=() driver=cgroupfs
if [[ ${1-} == --systemd ]]; then
  systemd=(--systemd) driver=systemd
  shift
fi
pattern=${1:-^(TestCrictl|TestFields|TestWebServerIsReachable|TestOOMKilled|TestDaemonKilled|TestStopSignalAndGrace|TestRestore|TestCheckpointPod)\$}
out=.cache/vm
mkdir -p $out
go test -c -o $out/e2e.test ./test/e2e
go build -o $out/images ./test/images
# The images are built here too: the cache keeps them for the machine.
$out/images -list >/dev/null
exec hack/vm/run-in-vm "${systemd[@]}" --timeout 1800 --mem 3072 --share "$(readlink -f .cache)" -- bash -c '
  [[ $(stat -fc %T /sys/fs/cgroup) == cgroup2fs ]] || { echo "no pure cgroup v2 here"; exit 1; }
  echo 8 >/proc/sys/vm/nr_hugepages
  # On the guest'\''s disk programs start faster than over 9p.
  cp .cache/vm/e2e.test .cache/vm/images /tmp/
  cd test/e2e && CRISERVER_E2E_REQUIRE=users,criu,devmapper CRISERVER_E2E_CGROUP_DRIVER=$2 CRISERVER_E2E_IMAGES=/tmp/images /tmp/e2e.test -test.v -test.timeout 25m -test.run "$1"' smoke "$pattern" "$driver"
