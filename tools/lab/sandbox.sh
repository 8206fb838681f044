#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The first process of the sandbox that lab.sh makes; the argument is the directory that it and podman keep their state in.
set -euo pipefail
state=$1
here=$(cd "$(dirname "$0")" && pwd)

mount --make-rprivate /
umount --recursive --lazy /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo 0 >/sys/fs/cgroup/init/cgroup.procs
# What podman shares with another podman of this machine otherwise: locks, sockets, names, containers, networks.
mount -t tmpfs tmpfs /dev/shm
for directory in /run/libpod /run/containers /run/netns /run/crun /run/lock; do
  mkdir -p "$directory"
  mount -t tmpfs tmpfs "$directory"
done
mkdir -p /var/lib/containers /etc/containers/networks
mount --bind "$state/containers" /var/lib/containers
mount --bind "$state/networks" /etc/containers/networks
printf '127.0.0.1 localhost\n' >"$state/run/hosts"
mount --bind "$state/run/hosts" /etc/hosts
: >"$state/run/resolv.conf"
mount --bind "$state/run/resolv.conf" "$(readlink -f /etc/resolv.conf)"
ip link set lo up

cat >"$state/run/runtime" <<END
#!/bin/sh
exec /usr/bin/python3 -IS '$here/oci_runtime.py' "\$@"
END
chmod 755 "$state/run/runtime"
cat >"$state/run/containers.conf" <<END
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "lab"
[engine.runtimes]
lab = ["$state/run/runtime"]
[network]
network_backend = "netavark"
END
export CONTAINERS_CONF=$state/run/containers.conf
# What a run that was killed has left. If podman cannot do even this its storage is broken; the image is imported anew then.
if ! { podman rm --all --force --time 0 && podman network prune --force; } >/dev/null 2>&1; then
  rm -rf "$state"/containers/* "$state"/networks/*
fi
touch "$state/ready"
# Without a wish to hear of ended children the kernel clears away those that lose their parent.
exec env --ignore-signal=CHLD sleep infinity
