#!/bin/bash
# Prints the memory that criserver's processes take (PSS: private pages, and a share of the shared ones),
# idle and with N running pods of one sleeping container each, and those of the stream server with and without sessions.
#
#   hack/memory.sh [-n N] [--socket PATH]
#
# Without --socket it starts criserver in a scratch directory. With it, criserver runs there already, can
# pull the image, and is the only one on the machine.
set -euo pipefail
# shellcheck source=hack/lib.sh
. "$(dirname "$0")/lib.sh"

count=50 sessions=20 socket='' image=registry.k8s.io/e2e-test-images/busybox:1.29-2
while (($#)); do
  case $1 in
    -n) count=$2; shift 2 ;;
    --socket) socket=$2; shift 2 ;;
    *) sed -n '2,/^set/{/^#/s/^# \?//p}' "$0" >&2; exit 2 ;;
  esac
done
[[ $count =~ ^([2-9]|[1-9][0-9]+)$ ]] || { echo "memory: -n $count: not a number above 1" >&2; exit 2; }

# memory NAME [FIELD [ARGUMENT]]: the sum of a field (Pss) of smaps_rollup over the processes that execute the program NAME with the
# ARGUMENT, and without one those that are no stream server; only those that this script has started, if it has started criserver.
memory() {
  local p exe sum=0 field=${2:-Pss}
  for p in /proc/[0-9]*; do
    exe=$(readlink "$p/exe" 2>/dev/null) || continue
    exe=${exe% (deleted)}
    [[ ${exe##*/} == "$1" ]] || continue
    [[ $given ]] || grep -qsF "$work/" "$p/cmdline" || continue
    if [[ ${3:-} ]]; then grep -qszxF -- "$3" "$p/cmdline" || continue
    else ! grep -qszxF stream-server "$p/cmdline" || continue; fi
    sum=$((sum + $(awk -v f="$field:" '$1 == f {print $2}' "$p/smaps_rollup" 2>/dev/null || echo 0)))
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
idle=$(memory crimonitor) daemon_idle=$(memory criserver)
say "1 pod, then $count"
run_pods 0 1
sleep 2 # for the garbage collectors
one=$(memory crimonitor) daemon_one=$(memory criserver)
run_pods 1 "$count"
sleep 2
full=$(memory crimonitor) daemon_full=$(memory criserver)
streams() { echo "$(memory criserver Pss stream-server) $(memory criserver Rss stream-server)"; }
say "no session, 1, then $sessions"
container=$(crictl "$socket" ps -q | head -n 1)
crictl "$socket" exec "$container" true # which starts the stream server
sleep 2
without=$(streams)
# A session lives as long as its standard input.
mkfifo "$work/typed"
exec {typed}<>"$work/typed"
clients=()
open_sessions() {
  local begun=$work/begun.$1
  while ((${#clients[@]} < $1)); do
    crictl "$socket" exec -i "$container" sh -c 'echo begun; cat' <"$work/typed" >>"$begun" 2>&1 &
    clients+=($!)
  done
  until [[ $(wc -l <"$begun") -ge $2 ]]; do sleep 0.1; done
  sleep 2
}
open_sessions 1 1
with_one=$(streams)
open_sessions "$sessions" $((sessions - 1))
with_all=$(streams)
kill "${clients[@]}"
wait "${clients[@]}" || true
exec {typed}>&-
[[ ! $given ]] || remove_pods
{
  echo "PSS/KiB idle with-1 with-$count per-container-more"
  echo "crimonitor $idle $one $full $(((full - one) / (count - 1)))"
  echo "criserver $daemon_idle $daemon_one $daemon_full $(((daemon_full - daemon_one) / (count - 1)))"
} | column -t -R 2,3,4,5
{
  echo "stream-server/KiB PSS RSS"
  echo "without-session $without"
  echo "1-session $with_one"
  echo "$sessions-sessions $with_all"
} | column -t -R 2,3
finish
