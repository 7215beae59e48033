#!/bin/bash
# Compares how fast criserver and containerd 2 take the output of one container, in turns. Prints MiB/s of content, and the CPU time
# that whoever reads it (crimonitor, containerd) uses for a MiB.
#
#   hack/bench/logs.sh [-n TURNS] [-m MIB]     default: 3 turns of 512 MiB, in lines of 100 bytes
#
# The first and the last time stamp in the log tell how long it took: what the container does before it prints is not part of it.
set -euo pipefail
# shellcheck source=hack/lib.sh
. "$(dirname "$0")/../lib.sh"

turns=3 mib=512 image=registry.k8s.io/e2e-test-images/busybox:1.29-2
while (($#)); do
  case $1 in
    -n) turns=$2; shift 2 ;;
    -m) mib=$2; shift 2 ;;
    *) sed -n '2,/^set/{/^#/s/^# \?//p}' "$0" >&2; exit 2 ;;
  esac
done
[[ $turns =~ ^[1-9][0-9]*$ && $mib =~ ^[1-9][0-9]*$ ]] || { echo "logs: -n and -m take numbers above 0" >&2; exit 2; }

# ticks PID: the CPU time it has used, in ticks of 10 ms.
ticks() { sed 's/.*) //' "/proc/$1/stat" | awk '{print $12 + $13}'; }

# print_lines NAME SOCKET PID COMMAND: one run of a container that prints.
print_lines() {
  local runtime=$1 socket=$2 reader=$3 dir pod id before log bytes
  dir=$(mktemp -d "$work/logs.XXXXXX")
  jq -n --arg n "$(basename "$dir")" --arg d "$dir" '{metadata: {name: $n, namespace: "logs", uid: $n}, log_directory: $d,
    linux: {security_context: {namespace_options: {network: 2}}}}' >"$dir/pod.json"
  jq -n --arg i "$image" --arg c "$4" '{metadata: {name: "main"}, image: {image: $i}, command: ["sh", "-c", $c], log_path: "log",
    linux: {security_context: {namespace_options: {network: 2}}}}' >"$dir/container.json"
  pod=$(crictl "$socket" runp "$dir/pod.json" 2>"$work/runp.log") || die "$(<"$work/runp.log")"
  id=$(crictl "$socket" create --no-pull "$pod" "$dir/container.json" "$dir/pod.json")
  before=$(ticks "$reader")
  crictl "$socket" start "$id" >/dev/null
  until [[ $(crictl "$socket" inspect -o json "$id" | jq -r .status.state) == CONTAINER_EXITED ]]; do sleep 0.2; done
  log=$dir/log
  bytes=$(awk -v mib="$mib" 'BEGIN {print mib * 1048576}')
  (($(tail -c +1 "$log" | wc -l) >= bytes / 101)) || die "$runtime: the log has too few lines"
  awk -v name="$runtime" -v mib="$mib" -v ticks=$(($(ticks "$reader") - before)) \
    -v from="$(date -d "$(head -n 1 "$log" | cut -d' ' -f1)" +%s.%N)" -v to="$(date -d "$(tail -n 1 "$log" | cut -d' ' -f1)" +%s.%N)" \
    'BEGIN {printf "%-12s %8.0f MiB/s %8.2f ms CPU/MiB\n", name, mib / (to - from), ticks * 10 / mib}'
  crictl "$socket" rmp -f "$pod" >/dev/null
  rm -f -- "$log"
}

begin bench-logs
hack/deps.sh bench
say 'registry, criserver, containerd 2'
start_registry
start_criserver
start_containerd2 containerd2 "[plugins.'io.containerd.cri.v1.runtime']" 'restrict_oom_score_adj = true' \
  "[plugins.'io.containerd.cri.v1.images'.pinned_images]" 'sandbox = "registry.k8s.io/pause:3.9"' \
  "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]" 'runtime_type = "io.containerd.runc.v2"' \
  "runtime_path = \"$bin/containerd2-shim\""
for socket in "$criserver" "$containerd2"; do crictl "$socket" pull "$image" >/dev/null; done
monitor=$(strays | while read -r p; do [[ $(readlink "/proc/$p/exe") != */crimonitor ]] || echo "$p"; done | head -n 1)
[[ $monitor ]] || die 'found no crimonitor'
say "$mib MiB in lines of 100 bytes, as fast as cat prints them"
line=$(printf 'x%.0s' {1..99})
for ((turn = 0; turn < turns; turn++)); do
  for side in "criserver $criserver $monitor" "containerd2 $containerd2 $containerd2_pid"; do
    # shellcheck disable=SC2086 # three words
    print_lines $side "yes $line | head -c 1048576 >/tmp/lines; i=0; while [ \$i -lt $mib ]; do cat /tmp/lines; i=\$((i+1)); done"
  done
done
finish
