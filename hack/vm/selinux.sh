#!/bin/bash
# Runs the tests of SELinux labels in a virtual machine whose kernel has SELinux, with a policy that is made here of Debian's base
# policy and container.te. Nothing of it is installed. First permissive, with all tests; then what is to be denied is.
#
#   hack/vm/selinux.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$PWD/.cache/vm/selinux

# make_policy: $out/policy and $out/contexts.
make_policy() {
  local d=$out/packages
  mkdir -p "$d"
  [[ -x $d/usr/bin/checkmodule && -x $d/usr/bin/semodule_link ]] || (
    cd "$d"
    apt-get -qq update || true
    apt-get -qq -o APT::Sandbox::User=root download checkpolicy semodule-utils selinux-policy-default
    for p in *.deb; do dpkg-deb -x "$p" . && rm "$p"; done
  )
  local PATH=$PATH:$d/usr/bin
  bunzip2 -c "$d/usr/share/selinux/default/base.pp.bz2" >"$out/base.pp"
  checkmodule -M -m -o "$out/container.mod" hack/vm/container.te
  semodule_package -o "$out/container.pp" -m "$out/container.mod"
  semodule_link -o "$out/linked.pp" "$out/base.pp" "$out/container.pp"
  semodule_expand -c 33 "$out/linked.pp" "$out/policy"
  cp -r "$d/etc/selinux/default/contexts" "$out/"
}

make_policy
go test -c -o "$out/e2e.test" ./test/e2e
go test -tags seccomp -c -o "$out/confine.test" ./pkg/sandbox/confine
go build -o "$out/images" ./test/images
"$out/images" -list >/dev/null
exec hack/vm/run-in-vm --selinux --timeout 900 --mem 3072 --share "$(readlink -f .cache)" -- bash -c '
  set -e
  echo 0 >/proc/sys/kernel/printk_ratelimit # each denial is told
  mount -t selinuxfs selinuxfs /sys/fs/selinux
  mkdir -p /etc/selinux/default
  cp -r "$1/contexts" /etc/selinux/default/
  printf "SELINUX=permissive\nSELINUXTYPE=default\n" >/etc/selinux/config
  dd if="$1/policy" of=/sys/fs/selinux/load bs=8M status=none
  cp "$1/e2e.test" "$1/confine.test" "$1/images" /tmp/
  (cd pkg/sandbox/confine && /tmp/confine.test -test.v -test.run SELinux)
  export CRISERVER_E2E_IMAGES=/tmp/images
  # The directory that is shared has no labels.
  cp -r bin /tmp/bin
  chcon -t bin_t /tmp/bin/*
  mount --bind /tmp/bin bin
  cd test/e2e
  failed=0
  for enforce in 0 1; do
    echo "enforcing: $enforce"
    echo $enforce >/sys/fs/selinux/enforce
    /tmp/e2e.test -test.v -test.timeout 10m -test.run "^TestSELinux" || failed=1
  done
  echo 0 >/sys/fs/selinux/enforce
  [[ $failed == 0 ]] || { dmesg | grep "avc:.*permissive=0" >&2 || true; exit 1; }' selinux "$out"
