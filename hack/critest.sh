#!/bin/bash
# Runs the CRI conformance suite against the built criserver, on images from a registry of its own.
#
#   hack/critest.sh [--containerd | --oci PROGRAM] [CRITEST FLAG]...     such as -ginkgo.focus='runtime should support exec'
#
# CRITEST FLAG -parallel N runs N specs at the same time.
# --oci: with that OCI runtime as the default handler, such as /usr/sbin/runc or .cache/bin/runc.
# --containerd: against Debian's containerd instead, to tell a fault of an image from one of criserver.
# Skipped are the 5 benchmarks, which a flag of critest selects, and what the kernel has not: the 9 specs of AppArmor where there is none.
# critest is built with one change: the digest by which it pulls test-image-digest is that of our image.
set -euo pipefail
# shellcheck source=hack/lib.sh
. "$(dirname "$0")/lib.sh"

# build_critest DIGEST: sets $critest.
build_critest() {
  local module=sigs.k8s.io/cri-tools version dir consts=pkg/validate/consts.go scratch=$PWD/.cache/critest
  version=$(sed -n 's/^cri_tools=//p' hack/deps.sh)
  critest=$bin/critest-local
  [[ ! -x $critest || $(cat "$scratch/built" 2>/dev/null) != "$version $1" ]] || return 0
  say "building critest $version"
  dir=$(cd / && go mod download -json "$module@$version" | jq -r .Dir)
  rm -rf "$scratch" && mkdir -p "$scratch"
  # A copy: what is in the module cache cannot be changed, not by an overlay either.
  cp -r --no-preserve=mode "$dir/." "$scratch/src"
  sed -i -E "s/(test-image-digest@)sha256:[0-9a-f]{64}/\1$1/" "$scratch/src/$consts"
  ! cmp -s "$dir/$consts" "$scratch/src/$consts" || die "critest $version names test-image-digest in another way"
  (cd "$scratch/src" && CGO_ENABLED=0 GOFLAGS=-mod=readonly go test -c -trimpath \
    -ldflags "-s -w -X $module/pkg/version.Version=$version" -o "$critest" ./cmd/critest)
  rm -rf "$scratch/src"
  echo "$version $1" >"$scratch/built"
}

# build_ginkgo: the program that runs specs at the same time, of the version that critest is built with.
build_ginkgo() {
  local module=github.com/onsi/ginkgo/v2 version gomod
  version=$(sed -n 's/^cri_tools=//p' hack/deps.sh)
  gomod=$(cd / && go mod download -json "sigs.k8s.io/cri-tools@$version" | jq -r .GoMod)
  version=$(awk -v m=$module '$1 == m {print $2}' "$gomod")
  [[ $(go version -m "$bin/ginkgo" 2>/dev/null | awk '$1 == "mod" {print $3}') != "$version" ]] || return 0
  say "building ginkgo $version"
  (cd / && GOBIN=$bin CGO_ENABLED=0 go install -trimpath "$module/ginkgo@$version")
}

begin critest
runtime=criserver
if [[ ${1:-} == --containerd ]]; then runtime=containerd; shift; fi
if [[ ${1:-} == --oci ]]; then
  oci_runtime=$(realpath "${2:?}")
  say "containers by $("$oci_runtime" --version | head -n 1)"
  shift 2
fi
[[ -x $bin/crictl ]] || die 'no crictl: make deps'

say 'registry'
start_registry ""
build_critest "$("$bin/images" -list -only test-image-digest | awk '{print $2}')"
say "$runtime"
"start_$runtime"
socket=${!runtime}

[[ " $* " != *" -parallel "* ]] || build_ginkgo

say 'critest'
log=$work/critest.log
status=0
PATH=$bin:$PATH "$critest" -config "$work/crictl.yaml" -runtime-endpoint "unix://$socket" -image-endpoint "unix://$socket" \
  -ginkgo.no-color "$@" </dev/null >"$log" 2>&1 || status=$?
sed -n '/^Summarizing/,/^Ran /p' "$log" | sed '/^Ran /d'
grep -E '^(Ran [0-9]+ of|(SUCCESS|FAIL)! --)' "$log" || tail -n 20 "$log"
cp "$log" .cache/critest.log
say 'all output: .cache/critest.log'
finish || status=1
exit $status
