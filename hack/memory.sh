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
[[ $count =~ ^[1-9][0-9]*$ ]] || { echo "memory: -n $count: not a number above 0" >&2; exit 2; }

# find_pid NAME: the one process that executes the program NAME, that is not a container's init, and that
# belongs to $work if this script has started criserver.
find_pid() {
  local p exe found=()
  for p in /proc/[0-9]*; do
    exe=$(readlink "$p/exe" 2>/dev/null) || continue
    exe=${exe% (deleted)}
    [[ ${exe##*/} == "$1" ]] || continue
    case $(tr '\0' '\n' <"$p/cmdline" 2>/dev/null | sed -n 2p) in init | pod-init) continue ;; esac
    [[ $given ]] || grep -qsF "$work/" "$p/cmdline" || continue
    found+=("${p#/proc/}")
  done
  ((${#found[@]} == 1)) || die "found ${#found[@]} processes of $1, wanted one"
  echo "${found[0]}"
}

pss() { awk '$1 == "Pss:" {print $2}' "/proc/$1/smaps_rollup"; }

remove_pods() { ((${#pods[@]} == 0)) || crictl "$socket" rmp -f "${pods[@]}" >/dev/null; }

run_pods() {
  local i
  for ((i = 0; i < count; i++)); do
    jq -n --arg n "memory-$tag-$i" '{metadata: {name: $n, namespace: "memory", uid: $n}, linux: {}}' >"$work/pod.json"
    jq -n --arg i "$image" '{metadata: {name: "main"}, image: {image: $i}, command: ["sleep", "86400"], linux: {}}' >"$work/container.json"
    pods+=("$(crictl "$socket" runp "$work/pod.json")")
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
# crimonitor starts with the first pod at the latest.
saved=$count count=1
run_pods
remove_pods
pods=() count=$saved
monitor=$(find_pid crimonitor) daemon=$(find_pid criserver)
sleep 2 # for the garbage collectors
monitor_idle=$(pss "$monitor") daemon_idle=$(pss "$daemon")
say "$count pods"
run_pods
sleep 2
monitor_full=$(pss "$monitor") daemon_full=$(pss "$daemon")
[[ ! $given ]] || remove_pods
{
  echo "PSS/KiB idle with-$count per-container"
  echo "crimonitor $monitor_idle $monitor_full $(((monitor_full - monitor_idle) / count))"
  echo "criserver $daemon_idle $daemon_full $(((daemon_full - daemon_idle) / count))"
} | column -t -R 2,3,4
finish
