#!/bin/bash
# From a checkout to a running container, in a scratch directory: installs what is missing, builds, starts
# a registry with a busybox image and criserver, runs a container, shows its log, and removes it all again.
set -euo pipefail
# shellcheck source=hack/lib.sh
. "$(dirname "$0")/lib.sh"

begin quickstart
say 'install what is missing (apt, Go modules)'
hack/deps.sh build test
say 'build bin/criserver and bin/crimonitor'
make -s build
say 'start a registry on loopback, push docker.io/library/busybox to it'
start_registry library/busybox
say "start criserver: bin/criserver serve --config … --socket … --state … --root … (in $work)"
start_criserver

say 'crictl pull docker.io/library/busybox:latest'
crictl "$criserver" pull docker.io/library/busybox:latest
mkdir "$work/logs"
cat >"$work/pod.json" <<JSON
{"metadata": {"name": "hello", "namespace": "default", "uid": "$tag"}, "hostname": "hello-pod", "log_directory": "$work/logs", "linux": {}}
JSON
cat >"$work/container.json" <<'JSON'
{"metadata": {"name": "hello"}, "image": {"image": "docker.io/library/busybox:latest"}, "log_path": "hello.log", "linux": {},
 "command": ["sh", "-c", "echo Hello from $(hostname), pid $$"]}
JSON
say 'crictl runp: a pod'
pod=$(crictl "$criserver" runp "$work/pod.json")
say 'crictl create: a container in it'
container=$(crictl "$criserver" create "$pod" "$work/container.json" "$work/pod.json")
say 'crictl start'
crictl "$criserver" start "$container" >/dev/null
for ((n = 0; n < 100; n++)); do
  state=$(crictl "$criserver" inspect -o json "$container" | jq -r .status.state)
  [[ $state != CONTAINER_EXITED ]] || break
  sleep 0.1
done
[[ $state == CONTAINER_EXITED ]] || die "the container is $state after 10 s"
say 'crictl logs'
crictl "$criserver" logs "$container" | tee "$work/output"
grep -q '^Hello from ' "$work/output" || die 'the container wrote no greeting'
say 'crictl stopp, rmp'
crictl "$criserver" stopp "$pod" >/dev/null
crictl "$criserver" rmp "$pod" >/dev/null
say 'stop everything, look for leftovers'
finish
say 'done: nothing is left over'
