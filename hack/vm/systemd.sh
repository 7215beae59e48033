#!/bin/bash
# Checks the systemd units where systemd runs, in a virtual machine booted with it: both start, a pod runs,
# and it still runs when criserver has been restarted. "hack/vm/run-in-vm --systemd -- hack/vm/systemd.sh"
set -euo pipefail
cd "$(dirname "$0")/../.."

install -m 755 bin/criserver bin/crimonitor /usr/bin/
install -m 644 deploy/systemd/*.service /etc/systemd/system/
systemctl daemon-reload
systemctl start criserver
# Type=simple: started is not yet serving.
timeout 60 bash -c 'until [[ -S /run/criserver/criserver.sock ]]; do sleep 0.1; done'
crictl() { .cache/bin/crictl --config /dev/null -r unix:///run/criserver/criserver.sock "$@"; }

systemctl is-active criserver crimonitor
monitor=$(systemctl show -P MainPID crimonitor)
echo '{"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "linux": {"security_context": {"namespace_options": {"pid": 1}}}}' >/tmp/pod.json
pod=$(crictl runp /tmp/pod.json)
systemctl restart criserver
timeout 60 bash -c 'until .cache/bin/crictl --config /dev/null -r unix:///run/criserver/criserver.sock version >/dev/null 2>&1; do sleep 0.1; done'
[[ $(crictl pods -q --state ready --no-trunc) == "$pod" ]] || { echo 'the pod is not ready after a restart of criserver'; exit 1; }
[[ $(systemctl show -P MainPID crimonitor) == "$monitor" ]] || { echo 'crimonitor is not the same after a restart of criserver'; exit 1; }
[[ $(pidof crimonitor) == "$monitor" ]] || { echo 'crimonitor runs more than once'; exit 1; }
crictl rmp -f "$pod"
echo 'systemd units: fine'
