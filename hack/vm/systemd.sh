#!/bin/bash
# Checks the systemd units where systemd runs, in a virtual machine booted with it: both start, a pod runs,
# and it still runs when criserver was killed, and when it was restarted.
# "hack/vm/run-in-vm --systemd -- hack/vm/systemd.sh"
set -euo pipefail
cd "$(dirname "$0")/../.."

install -m 755 bin/criserver bin/crimonitor /usr/bin/
install -m 644 deploy/systemd/*.service /etc/systemd/system/
systemctl daemon-reload
systemctl start criserver
# Type=simple: started is not yet serving.
timeout 60 bash -c 'until [[ -S /run/criserver/criserver.sock ]]; do sleep 0.1; done'
socket=unix:///run/criserver/criserver.sock
crictl() { .cache/bin/crictl --config /dev/null -r $socket "$@"; }
die() { echo "$*" >&2; journalctl --no-pager -u criserver -u crimonitor >&2; exit 1; }

# ready OLD: criserver has another pid than OLD, answers, and has the pod; crimonitor runs, once.
ready() {
  local n
  for ((n = 0; n < 300; n++)); do
    if [[ $(systemctl show -P MainPID criserver) != "$1" ]] && crictl version >/dev/null 2>&1; then break; fi
    sleep 0.2
  done
  [[ $(crictl pods -q --state ready --no-trunc) == "$pod" ]] || die 'the pod is not ready'
  [[ $(pidof crimonitor | wc -w) == 1 ]] || die "pids of crimonitor: $(pidof crimonitor)"
}

systemctl is-active criserver crimonitor
cat >/tmp/pod.json <<'JSON'
{"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "linux": {"security_context": {"namespace_options": {"pid": 1}}}}
JSON
pod=$(crictl runp --cancel-timeout 60s /tmp/pod.json 2>/dev/null)
monitor=$(systemctl show -P MainPID crimonitor) daemon=$(systemctl show -P MainPID criserver)

kill -KILL "$daemon"
ready "$daemon"
[[ $(systemctl show -P MainPID crimonitor) == "$monitor" ]] || die 'crimonitor is not the same after a crash of criserver'
daemon=$(systemctl show -P MainPID criserver)

systemctl restart criserver
ready "$daemon"
crictl rmp -f "$pod"
echo 'systemd units: fine'
