# Sourced by the scripts beside it. Sets up a scratch directory, runs in it what a script asks for (a registry
# with the test images, criserver, containerd), and on exit ends all of it by pid and says what is left over.
#
#   begin NAME          first of all; sets $work, $tag, and cd to the checkout
#   start_registry [T]  sets $registry (host:port); with T only images that have T in a name
#   start_criserver     sets $criserver (socket), $criserver_pid; $oci_runtime, if set, is the program of the default handler
#   start_containerd    sets $containerd (socket): Debian's containerd with runc, to compare with
#   start_containerd2 NAME [LINE]…
#                       sets $containerd2 (socket), $containerd2_pid, $containerd2_root: containerd 2, for images only,
#                       with the LINEs in the configuration of its transfer service; may be called again with another NAME
#   give_disk NAME      before a runtime starts whose directory is $work/NAME: has that on an ext4 file system of its own
#   crictl SOCKET …     crictl, against that socket
#   finish              empties the runtimes, ends everything, fails if something is left; runs on exit too
#
# shellcheck shell=bash
set -euo pipefail

die() { echo "$name: $*" >&2; exit 1; }
say() { echo "== $*"; }

begin() {
  name=$1 pids=() sockets=() disks=() finished='' had_portmap=yes
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  bin=$PWD/.cache/bin
  [[ $EUID == 0 ]] || die 'needs root'
  mkdir -p "$bin"
  export PATH=$PATH:/usr/sbin:/sbin
  subnet=$((160 + $$ % 40)) # two scripts at the same time should not share addresses
  tag=c$$ # part of all names that are not below $work: bridges, cgroups
  # Short, as the path of a Unix socket has at most 107 bytes, and with a last part that no other path contains.
  work=$(mktemp -d "/tmp/criserver-$tag.XXXXXX")
  chmod 711 "$work" # for root in a user namespace to pass
  trap 'status=$?; finish || status=1; exit $status' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

# await WHAT LOG PID COMMAND…: polls until COMMAND succeeds, for 30 s or until process PID ends.
await() {
  local what=$1 log=$2 pid=$3 n
  shift 3
  for ((n = 0; n < 300; n++)); do
    "$@" && return
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  tail -n 20 "$log" >&2 || true
  die "$what did not come up; above is the end of its log"
}

start_registry() {
  local log=$work/registry.log
  go build -o "$bin/images" ./test/images
  mkdir -p "$work/registry"
  "$bin/images" -serve "$work/registry" ${1:+-only "$1"} >"$work/registry.addr" 2>"$log" </dev/null &
  pids+=($!)
  await 'the registry' "$log" $! test -s "$work/registry.addr"
  registry=$(<"$work/registry.addr")
}

crictl() {
  local socket=$1
  shift
  # An empty config: a /etc/crictl.yaml of the machine is not ours.
  : >"$work/crictl.yaml"
  "$bin/crictl" --config "$work/crictl.yaml" --runtime-endpoint "unix://$socket" --image-endpoint "unix://$socket" --timeout 60s "$@"
}

answers() { crictl "$1" version >/dev/null 2>&1; }

# With a journal, as nodes have it: without one ext4 searches long for an inode that was not deleted lately (ext4,
# find_inode_bit). Past the page cache of the file below, which would hide what a sync costs.
give_disk() {
  local loop dir=$work/$1
  mkdir -p "$dir"
  truncate -s 8G "$work/$1.disk"
  mkfs.ext4 -q -F -m 0 -E lazy_itable_init=0,lazy_journal_init=0 "$work/$1.disk"
  loop=$(losetup --find --show --direct-io=on "$work/$1.disk")
  mount "$loop" "$dir"
  losetup --detach "$loop" # when it is unmounted
  disks+=("$dir")
}

start_criserver() {
  local dir=$work/criserver log=$work/criserver.log host
  [[ -x bin/criserver && -x bin/crimonitor ]] || die 'no bin/criserver or bin/crimonitor: make build'
  mkdir -p "$dir/net.d"
  criserver=$dir/cri.sock criserver_bridge=$tag-0
  {
    if [[ ${oci_runtime:-} ]]; then
      printf 'default_runtime = "oci"\n[runtimes.oci]\ntype = "oci"\npath = "%s"\n' "$oci_runtime"
    fi
    printf '[runtime]\ncgroup_root = "/criserver-%s"\n' "$tag"
    printf '[cni]\nconf_dir = "%s/net.d"\n[cni.builtin]\nbridge = "%s"\nsubnets = ["10.%s.0.0/16"]\n' "$dir" "$criserver_bridge" "$subnet"
    for host in registry.k8s.io k8s.gcr.io gcr.io docker.io quay.io; do
      printf '[registry.mirrors."%s"]\nendpoints = ["http://%s"]\n' "$host" "$registry"
    done
  } >"$dir/config.toml"
  bin/criserver serve --config "$dir/config.toml" --socket "$criserver" --state "$dir/state" --root "$dir/root" \
    >"$log" 2>&1 </dev/null &
  criserver_pid=$!
  pids+=("$criserver_pid") sockets+=("$criserver")
  await criserver "$log" $! answers "$criserver"
}

start_containerd() {
  local dir=$work/containerd log=$work/containerd.log host
  command -v containerd >/dev/null || die 'no containerd: hack/deps.sh bench'
  mkdir -p "$dir/net.d"
  containerd=$dir/cri.sock containerd_bridge=$tag-1
  cat >"$dir/net.d/10-bridge.conflist" <<CNI
{"cniVersion": "0.4.0", "name": "$tag", "plugins": [
  {"type": "bridge", "bridge": "$containerd_bridge", "isGateway": true, "ipMasq": true,
   "ipam": {"type": "host-local", "dataDir": "$dir/ipam",
            "ranges": [[{"subnet": "10.$((subnet + 40)).0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CNI
  {
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE containerd starts no pod otherwise.
    cat <<TOML
version = 2
root = "$dir/root"
state = "$dir/state"
[grpc]
address = "$containerd"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.k8s.io/pause:3.9"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$dir/net.d"
TOML
    for host in registry.k8s.io k8s.gcr.io gcr.io docker.io quay.io; do
      printf '[plugins."io.containerd.grpc.v1.cri".registry.mirrors."%s"]\nendpoint = ["http://%s"]\n' "$host" "$registry"
    done
  } >"$dir/config.toml"
  had_portmap=no
  if iptables -t nat -S CNI-HOSTPORT-DNAT >/dev/null 2>&1; then had_portmap=yes; fi
  containerd --config "$dir/config.toml" >"$log" 2>&1 </dev/null &
  pids+=($!) sockets+=("$containerd")
  await containerd "$log" $! answers "$containerd"
}

start_containerd2() {
  local dir=$work/$1 log=$work/$1.log host
  [[ -x $bin/containerd2 ]] || die 'no containerd 2: hack/deps.sh bench'
  containerd2=$dir/cri.sock containerd2_root=$dir/root
  for host in registry.k8s.io k8s.gcr.io gcr.io docker.io quay.io; do
    mkdir -p "$dir/certs.d/$host"
    printf 'server = "http://%s"\n[host."http://%s"]\ncapabilities = ["pull", "resolve"]\n' "$registry" "$registry" \
      >"$dir/certs.d/$host/hosts.toml"
  done
  cat >"$dir/config.toml" <<TOML
version = 3
root = "$dir/root"
state = "$dir/state"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.native"]
[grpc]
address = "$containerd2"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "$dir/certs.d"
[plugins.'io.containerd.cri.v1.runtime'.cni]
conf_dir = "$dir/net.d"
[plugins.'io.containerd.transfer.v1.local']
config_path = "$dir/certs.d"
$(printf '%s\n' "${@:2}")
TOML
  "$bin/containerd2" --config "$dir/config.toml" >"$log" 2>&1 </dev/null &
  containerd2_pid=$!
  pids+=("$containerd2_pid") sockets+=("$containerd2")
  await "containerd 2" "$log" $! answers "$containerd2"
}

# strays: pids of processes with $work on their command line, that is, of daemons and monitors started for it.
strays() {
  local p
  for p in /proc/[0-9]*; do
    if [[ ${p#/proc/} != "$$" ]] && grep -qsF "$work/" "$p/cmdline"; then echo "${p#/proc/}"; fi
  done
}

# end PID…: SIGTERM, and after 10 s SIGKILL.
end() {
  local pid n
  for pid in "$@"; do kill "$pid" 2>/dev/null || true; done
  for ((n = 0; n < 100; n++)); do
    kill -0 "$@" 2>/dev/null || return 0
    sleep 0.1
  done
  for pid in "$@"; do kill -KILL "$pid" 2>/dev/null && echo "$name: process $pid did not end on SIGTERM" >&2; done
}

# leaks: what is left when all has ended, one line each. Nothing, in a good run.
leaks() {
  local d
  strays | while read -r d; do echo "process $d $(tr '\0' ' ' <"/proc/$d/cmdline" || true)"; done
  awk -v w="$work/" 'index($5, w) == 1 {print "mount " $5}' /proc/self/mountinfo
  # What rmdir has left.
  for d in /sys/fs/cgroup{,/*}/criserver-$tag; do
    [[ -d $d ]] || continue
    find "$d" -mindepth 1 -type d -printf 'cgroup %p\n'
    sed "s,^,process in $d: ," "$d/cgroup.procs"
  done
}

# remove_bridge NAME: prints the pods' interfaces that are still there. The kernel removes those of a dead
# network namespace a moment later than the namespace.
remove_bridge() {
  local n ports
  [[ $1 && -d /sys/class/net/$1 ]] || return 0
  for ((n = 0; n < 30; n++)); do
    ports=$(ls "/sys/class/net/$1/brif" 2>/dev/null || true)
    [[ $ports ]] || break
    sleep 0.1
  done
  [[ ! $ports ]] || printf 'interface %s\n' "$ports"
  ip link delete "$1"
}

# The portmap plugin makes these chains at first use and never removes them.
remove_portmap() {
  local chain
  iptables -t nat -S CNI-HOSTPORT-DNAT >/dev/null 2>&1 || return 0 # no pod had a port to map
  iptables -t nat -D PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
  iptables -t nat -D OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
  iptables -t nat -D POSTROUTING -m comment --comment 'CNI portfwd requiring masquerade' -j CNI-HOSTPORT-MASQ
  for chain in DNAT MASQ SETMARK; do iptables -t nat -F "CNI-HOSTPORT-$chain"; done
  for chain in DNAT MASQ SETMARK; do iptables -t nat -X "CNI-HOSTPORT-$chain"; done
}

finish() {
  [[ ! $finished ]] || return 0
  finished=1
  local s d found status=0 left=()
  for s in "${sockets[@]}"; do
    crictl "$s" rmp -af >"$work/rmp.log" 2>&1 || { cat "$work/rmp.log" >&2; status=1; }
  done
  # The registry last: a pull that is under way may end well.
  for ((s = ${#pids[@]} - 1; s >= 0; s--)); do end "${pids[s]}"; done
  mapfile -t left < <(strays)
  ((${#left[@]} == 0)) || end "${left[@]}"
  for d in "${disks[@]}"; do umount "$d" || status=1; done
  found=$(for d in "${criserver_bridge:-}" "${containerd_bridge:-}"; do remove_bridge "$d"; done)
  [[ ! $had_portmap == no ]] || remove_portmap
  # The cgroup that the monitor put itself into, and the parent of all.
  for d in /sys/fs/cgroup{,/*}/criserver-"$tag"{/monitor,}; do rmdir "$d" 2>/dev/null || true; done
  found+=$(leaks)
  if [[ $found ]]; then
    printf '%s: left over:\n%s\n' "$name" "$found" >&2
    awk -v w="$work/" 'index($5, w) == 1 {print $5}' /proc/self/mountinfo | tac | while read -r d; do umount -l "$d" || true; done
    status=1
  fi
  if [[ $status == 0 && ! ${KEEP:-} ]]; then rm -rf "$work"; else echo "$name: logs are in $work" >&2; fi
  return $status
}
