#!/bin/bash
# Installs what building and testing need: Debian packages (only those missing), then crictl, critest
# and the linter into .cache/bin. Does nothing, and needs no network, when all of it is there.
#
#   hack/deps.sh [build|test|lint|bench]...   default: build test lint
#     build  C compiler and libseccomp: crimonitor          test   tools and daemons that tests drive
#     lint   golangci-lint                                  bench  containerd 1 and 2 and runc, to compare with
# shellcheck disable=SC2034 # the lists of packages are read by name
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.cache/bin

cri_tools=v1.36.0
golangci_lint=v2.15.0
containerd2=v2.4.2
gvisor=v0.0.0-20260905035102-160fafc42237

packages_build=(gcc libc6-dev libseccomp-dev pkg-config)
packages_test=(apache2-utils binutils buildah busybox-static containernetworking-plugins crun curl docker-registry
  e2fsprogs iproute2 iptables jq kmod nftables openssl procps runc skopeo strace sudo tmux umoci util-linux
  xfsprogs)
# Not every release has these; tests that need them say so, and are skipped.
packages_optional=(criu)
packages_lint=()
packages_bench=(containerd containernetworking-plugins iptables runc)

step() { echo "deps: $*"; }
die() { echo "deps: $*" >&2; exit 1; }

check_go() {
  local want have
  command -v go >/dev/null || die "no 'go' in PATH: install Go from https://go.dev/dl/"
  want=$(awk '$1 == "go" {print $2}' go.mod)
  # With GOTOOLCHAIN=auto an older go fetches the wanted one; else it says here that it is too old.
  have=$(go env GOVERSION) || die "go $want is needed (go.mod)"
  step "$have"
}

install_packages() {
  local p missing=()
  for p in "$@"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null || true) == installed ]] || missing+=("$p")
  done
  if ((${#missing[@]} == 0)); then
    step "Debian packages: all installed"
    return
  fi
  [[ $EUID == 0 ]] || die "run as root to install: ${missing[*]}"
  step "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq -o DPkg::Lock::Timeout=300 update </dev/null || step "apt-get update did not succeed, trying with the lists there are"
  apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
}

# module_dir MODULE VERSION: where the module's source is in the module cache. Tools are built there, by
# their own go.mod, because critest is a test binary and "go install" does not build those.
module_dir() { (cd / && go mod download -json "$1@$2") | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'; }

# build NAME MODULE VERSION COMMAND...: runs COMMAND -o TARGET in the module, unless this version is built.
build() {
  local name=$1 module=$2 version=$3 dir
  shift 3
  if [[ -x $bin/$name && $(cat "$bin/.$name.version" 2>/dev/null) == "$version" ]]; then
    step "$name $version: there"
    return
  fi
  step "building $name $version"
  dir=$(module_dir "$module" "$version")
  [[ $dir ]] || die "cannot download $module@$version"
  (cd "$dir" && CGO_ENABLED=0 GOFLAGS=-mod=readonly "${@/%@OUT@/$bin/$name}")
  echo "$version" >"$bin/.$name.version"
}

install_test_tools() {
  local module=sigs.k8s.io/cri-tools
  local ldflags="-s -w -X $module/pkg/version.Version=$cri_tools"
  build crictl $module $cri_tools go build -trimpath -ldflags "$ldflags" -o @OUT@ ./cmd/crictl
  build critest $module $cri_tools go test -c -trimpath -ldflags "$ldflags" -o @OUT@ ./cmd/critest
  # Reads the checkpoints of containers, of the version whose library writes them.
  local checkpointctl
  checkpointctl=$(go list -m -f '{{.Version}}' github.com/checkpoint-restore/checkpointctl)
  build checkpointctl github.com/checkpoint-restore/checkpointctl "$checkpointctl" go build -trimpath -ldflags "-s -w" -o @OUT@ .
  # The runtime of the version whose library crimonitor embeds, beside Debian's.
  local runc
  runc=$(go list -m -f '{{.Version}}' github.com/opencontainers/runc)
  build runc github.com/opencontainers/runc "$runc" env CGO_ENABLED=1 go build -trimpath -tags seccomp \
    -ldflags "-s -w -X main.version=${runc#v}" -o @OUT@ .
  # A runtime whose containers have a kernel of their own. Tests with it are skipped without it.
  (build runsc gvisor.dev/gvisor $gvisor go build -trimpath -ldflags "-s -w" -o @OUT@ ./runsc) || step "there is no runsc"
}

install_linter() {
  build golangci-lint github.com/golangci/golangci-lint/v2 $golangci_lint \
    go build -trimpath -ldflags "-s -w -X main.version=${golangci_lint#v}" -o @OUT@ ./cmd/golangci-lint
}

# Of containerd the daemon, and its shim: Debian's of containerd 1 does not work with it. The snapshotters left out need C libraries
# or tools that nothing here uses.
install_containerd2() {
  local module=github.com/containerd/containerd/v2
  build containerd2 $module $containerd2 go build -trimpath -tags 'no_btrfs no_devmapper no_zfs' \
    -ldflags "-s -w -X $module/version.Version=$containerd2" -o @OUT@ ./cmd/containerd
  build containerd2-shim $module $containerd2 go build -trimpath -ldflags "-s -w" -o @OUT@ ./cmd/containerd-shim-runc-v2
}

(($#)) || set -- build test lint
packages=()
for group in "$@"; do
  case $group in build | test | lint | bench) ;; *) die "unknown group $group (build, test, lint, bench)" ;; esac
  declare -n list=packages_$group
  packages+=("${list[@]}")
done
check_go
((${#packages[@]} == 0)) || install_packages "${packages[@]}"
if [[ " $* " == *" test "* ]]; then
  for p in "${packages_optional[@]}"; do
    (install_packages "$p") || step "there is no package $p"
  done
fi
mkdir -p "$bin"
for group in "$@"; do
  case $group in
    test) install_test_tools ;;
    lint) install_linter ;;
    bench) install_containerd2 ;;
  esac
done
