#!/bin/bash
# Prints the memory that criserver's processes take (PSS: private pages, and a share of the shared ones),
# idle and with N running pods of one sleeping container each.
#
#   hack/memory.sh [-n N] [--socket PATH]
#
# Without --socket it starts criserver in a scratch directory. With it, criserver runs there already, can
# pull the image, and is the only one on the machine.
set -euo pipefail
# shellcheck source=hack/lib.sh
. "$(dirname "$0")/lib.sh"

count=50 socket='' image=registry.k8s.io/e2e-test-images/busybox:1.29-2
while (($#)); do
  case $1 in
    -n) count=$2; shift 2 ;;
    --socket) socket=$2; shift 2 ;;
    *) sed -n '2,/^set/{/^#/s/^# \?//p}' "$0" >&2; exit 2 ;;
  esac
done
[[ $count =~ ^([2-9]|[1-9][0-9]+)$ ]] || { echo "memory: -n $count: not a number above 1" >&2; exit 2; }

# pss NAME: the sum over the processes that execute the program NAME; only those that this script has
# started, if it has started criserver.
pss() {
  local p exe sum=0
  for p in /proc/[0-9]*; do
    exe=$(readlink "$p/exe" 2>/dev/null) || continue
    exe=${exe% (deleted)}
    [[ ${exe##*/} == "$1" ]] || continue
    [[ $given ]] || grep -qsF "$work/" "$p/cmdline" || continue
    sum=$((sum + $(awk '$1 == "Pss:" {print $2}' "$p/smaps_rollup" 2>/dev/null || echo 0)))
  done
  ((sum > 0)) || die "found no process of $1"
  echo $sum
}

remove_pods() { ((${#pods[@]} == 0)) || crictl "$socket" rmp -f "${pods[@]}" >/dev/null; }

# run_pods FROM TO: pods as the kubelet makes them, where each container has a PID namespace of its own.
run_pods() {
  local i id namespaces='{security_context: {namespace_options: {pid: 1}}}'
  for ((i = $1; i < $2; i++)); do
    jq -n --arg n "memory-$tag-$i" "{metadata: {name: \$n, namespace: \"memory\", uid: \$n}, linux: $namespaces}" >"$work/pod.json"
    jq -n --arg i "$image" "{metadata: {name: \"main\"}, image: {image: \$i}, command: [\"sleep\", \"86400\"], linux: $namespaces}" \
      >"$work/container.json"
    pods+=("$(crictl "$socket" runp "$work/pod.json" 2>"$work/runp.log")") || die "$(<"$work/runp.log")"
    id=$(crictl "$socket" create --no-pull "${pods[-1]}" "$work/container.json" "$work/pod.json")
    crictl "$socket" start "$id" >/dev/null
  done
}

begin memory
pods=() given=$socket
if [[ ! $socket ]]; then
  say 'registry, criserver'
  start_registry busybox
  start_criserver
  socket=$criserver
fi
crictl "$socket" pull "$image" >/dev/null
idle=$(pss crimonitor) daemon_idle=$(pss criserver)
say "1 pod, then $count"
run_pods 0 1
sleep 2 # for the garbage collectors
one=$(pss crimonitor) daemon_one=$(pss criserver)
run_pods 1 "$count"
sleep 2
full=$(pss crimonitor) daemon_full=$(pss criserver)
[[ ! $given ]] || remove_pods
{
  echo "PSS/KiB idle with-1 with-$count per-container-more"
  echo "crimonitor $idle $one $full $(((full - one) / (count - 1)))"
  echo "criserver $daemon_idle $daemon_one $daemon_full $(((daemon_full - daemon_one) / (count - 1)))"
} | column -t -R 2,3,4,5
finish
