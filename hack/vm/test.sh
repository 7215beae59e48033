#!/bin/bash
# Runs tests in a virtual machine with what this machine's kernel may lack: cgroup v2 alone, device-mapper,
# AppArmor. They are compiled here, as the machine is emulated and slow.
#
#   hack/vm/test.sh [PACKAGE]...     default: the packages that touch cgroups, namespaces, mounts
set -euo pipefail
cd "$(dirname "$0")/../.."

(($#)) || set -- ./pkg/sandbox/... ./pkg/snapshot/... ./pkg/cni/...
out=.cache/vm
rm -rf $out && mkdir -p $out
go test -tags seccomp -c -o $out/ "$@"
# A package without tests gets no binary; nameless binaries of two packages would overwrite each other, which go refuses.
go list -tags seccomp -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' "$@" | sed '/^$/d' >$out/dirs
cat >$out/run <<'GUEST'
#!/bin/bash
failed=()
while read -r dir; do
  test=$PWD/.cache/vm/$(basename "$dir").test
  echo "== ${dir#"$PWD/"}"
  # A copy on the guest's disk: over 9p each page of the program would be a request.
  cp "$test" /tmp/ && (cd "$dir" && "/tmp/${test##*/}" -test.timeout 20m) || failed+=("${dir#"$PWD/"}")
done <.cache/vm/dirs
((${#failed[@]} == 0)) || { echo "failed: ${failed[*]}"; exit 1; }
GUEST
exec hack/vm/run-in-vm --timeout 3600 --mem 3072 -- bash $out/run
