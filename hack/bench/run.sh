#!/bin/bash
# Compares criserver with Debian's containerd, both started in a scratch directory.
#
#   hack/bench/run.sh [BENCH FLAG]...     such as -n 50; see hack/bench/main.go
set -euo pipefail
# shellcheck source=hack/lib.sh
. "$(dirname "$0")/../lib.sh"

begin bench
hack/deps.sh bench
go build -o "$bin/bench" ./hack/bench
say 'registry'
start_registry busybox
say 'criserver'
start_criserver
say 'containerd'
# Its pause image is not an image of busybox.
"$bin/images" -registry "$registry" -only pause
start_containerd
say 'runs'
"$bin/bench" -a "unix://$criserver" -b "unix://$containerd" "$@"
finish
