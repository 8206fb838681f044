#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs a command where plain podman can start hosts with systemd on a network of their own.
#   lab.sh why          what keeps podman from it on this machine, if anything
#   lab.sh run CMD...   CMD in a fresh sandbox, which ends with it, whatever ends it
#   lab.sh up | down    a sandbox that stays
#   lab.sh exec CMD...  CMD in the sandbox that is up
# Where nothing keeps podman from it there is no sandbox: up and down do nothing, run and exec only run CMD. The sandbox has namespaces of its own for
# mounts, network, processes and cgroups; what lives in it ends with its first process, and its network has no way out. Needs root.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
state=/var/cache/pgfleet-tests/lab
hierarchy=$(findmnt --raw --noheadings --types cgroup2 --output TARGET | head -n 1)
group=$hierarchy/pgfleet-lab

# Prints why podman needs the sandbox; nothing where it does not.
reason() {
  [ "$(stat --file-system --format %T /sys/fs/cgroup)" = cgroup2fs ] || echo "/sys/fs/cgroup is not the unified hierarchy of cgroup v2"
  local effective
  effective=$(sed -n 's/^CapEff:\s*//p' /proc/self/status)
  (((16#$effective >> 24) & 1)) || echo "CAP_SYS_RESOURCE is missing, so limits cannot be raised"
}

is_up() {
  [ -s "$state/pid" ] && grep --quiet --line-regexp --no-messages "$(cat "$state/pid")" "$group/init/cgroup.procs"
}

# Ends every process of the sandbox, also of one that somebody's kill has left half, and takes its cgroups away.
down() {
  if [ -d "$group" ]; then
    if grep --quiet ":/pgfleet-lab\(/\|$\)" /proc/self/cgroup; then
      echo "lab: this runs in the sandbox and cannot end it" >&2
      return 1
    fi
    echo 1 >"$group/cgroup.kill"
    local try
    for try in $(seq 100); do
      if grep --quiet '^populated 0' "$group/cgroup.events" && find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; then break; fi
      [ "$try" -lt 100 ] || { echo "lab: processes in $group do not end" >&2; return 1; }
      sleep 0.1
    done
  fi
  rm -f "$state/pid" "$state/ready"
}

# With an argument the sandbox dies with this process, even where that is killed.
up() {
  local tie=("$@")
  if [ -z "$hierarchy" ]; then
    echo "lab: no cgroup2 hierarchy is mounted on this machine, not even beside that of version 1" >&2
    return 1
  fi
  mkdir -p "$state/run" "$state/containers" "$state/networks"
  down
  mkdir -p "$group/init" "$group/exec"
  (
    echo 0 >"$group/cgroup.procs"
    exec setsid "${tie[@]}" unshare --cgroup --mount --net --pid --fork --kill-child --mount-proc bash "$here/sandbox.sh" "$state"
  ) </dev/null >"$state/log" 2>&1 9>&- &
  local outer=$!
  disown "$outer"
  local try
  for try in $(seq 600); do
    if [ -e "$state/ready" ] || ! kill -0 "$outer" 2>/dev/null; then break; fi
    sleep 0.05
  done
  if [ ! -e "$state/ready" ]; then
    echo "lab: the sandbox did not start:" >&2
    cat "$state/log" >&2
    down
    return 1
  fi
  # A cgroup whose children are given controllers holds no processes itself.
  echo "$outer" >"$group/init/cgroup.procs"
  pgrep --parent "$outer" >"$state/pid"
}

enter() {
  if [ -z "$(reason)" ]; then exec "$@"; fi
  is_up || { echo "lab: it is not up: make lab-up" >&2; exit 1; }
  echo 0 >"$group/exec/cgroup.procs"
  CONTAINERS_CONF=$state/run/containers.conf exec nsenter --target "$(cat "$state/pid")" --cgroup --mount --net --pid --wd="$PWD" -- "$@"
}

# One at a time on a machine: they would take each other's addresses.
alone() {
  mkdir -p "$state"
  exec 9>"$state/lock"
  flock --nonblock 9 || { echo "lab: another one is in use on this machine, waiting for its end" >&2; flock 9; }
}

case ${1:-} in
  why) found=$(reason); echo "${found:-nothing}" ;;
  up)
    alone
    if [ -n "$(reason)" ] && ! is_up; then up; fi
    ;;
  down)
    alone
    if [ -n "$(reason)" ]; then down; fi
    ;;
  exec) shift; enter "$@" ;;
  run)
    shift
    alone
    if [ -z "$(reason)" ]; then enter "$@" 9>&-; fi
    trap down EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    up setpriv --pdeathsig KILL
    status=0
    (enter "$@" 9>&-) || status=$?
    exit "$status"
    ;;
  *) sed -n '/^# Runs/,/^# mounts/s/^# \?//p' "$0"; exit 2 ;;
esac
