#!/bin/bash
# Compares how criserver and containerd 2 pull images from a registry on this machine: time, CPU, memory, bytes written.
#
#   hack/bench/pull.sh [-proxy] [FLAG]...     such as -n 20, -only random1; see "pull run -h"
#
# -proxy puts a slow way before the registry: each connection gets 20 MB/s, 30 ms late (RATE, LATENCY in the environment).
set -euo pipefail
# shellcheck source=hack/lib.sh
. "$(dirname "$0")/../lib.sh"

slow=''
if [[ ${1:-} == -proxy ]]; then slow=1; shift; fi

# side NAME SOCKET PID ROOT: one more runtime to compare.
sides=()
side() { sides+=(-side "$1,$2,$3,$4"); }

begin bench-pull
hack/deps.sh bench
go build -o "$bin/bench-pull" ./hack/bench/pull
say 'registry'
start_registry registry.k8s.io/pause
"$bin/bench-pull" push -registry "$registry"
if [[ $slow ]]; then
  "$bin/bench-pull" proxy -registry "$registry" -rate "${RATE:-20000000}" -latency "${LATENCY:-30ms}" \
    >"$work/proxy.addr" 2>"$work/proxy.log" </dev/null &
  pids+=($!)
  await 'the proxy' "$work/proxy.log" $! test -s "$work/proxy.addr"
  registry=$(<"$work/proxy.addr")
fi
say 'criserver'
give_disk criserver
start_criserver
side '' "$criserver" "$criserver_pid" "$work/criserver/root"
say 'containerd 2: as it comes, with parallel unpacking, and on a slow way with parallel ranges'
give_disk containerd2
start_containerd2 containerd2
side '' "$containerd2" "$containerd2_pid" "$containerd2_root"
unpacks=('max_concurrent_unpacks = 4' 'max_concurrent_downloads = 4')
give_disk unpacks
start_containerd2 unpacks "${unpacks[@]}"
side '4 unpacks' "$containerd2" "$containerd2_pid" "$containerd2_root"
if [[ $slow ]]; then
  give_disk ranges
  start_containerd2 ranges "${unpacks[@]}" 'concurrent_layer_fetch_buffer = 4194304'
  side '4 unpacks + ranges' "$containerd2" "$containerd2_pid" "$containerd2_root"
fi
say 'runs'
"$bin/bench-pull" run "${sides[@]}" "$@"
finish
