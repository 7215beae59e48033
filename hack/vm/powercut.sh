#!/bin/bash
# Cuts the power under pulls, in a virtual machine: all that criserver writes to its disk from a random moment on is lost.
#
#   hack/vm/powercut.sh [ROUNDS]     default: 5; a seed in CRISERVER_E2E_SEED repeats a run
set -euo pipefail
export CRISERVER_E2E_POWERCUTS=${1:-5}
exec "$(dirname "$0")/smoke.sh" '^TestPowerCut$'
