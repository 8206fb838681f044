#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# customize.sh ROOT: makes a fresh Debian root one that many hosts are started from, each with an identity of its own, and that touches nothing of
# the machine it runs on.
set -eu
root=$1

# The only way in: an ordinary user who may become root, as on most people's servers.
chroot "$root" useradd --create-home --shell /bin/bash --uid 1000 deploy
install -d -o 1000 -g 1000 -m 0700 "$root/home/deploy/.ssh"
echo 'deploy ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/deploy"
chmod 0440 "$root/etc/sudoers.d/deploy"
printf 'PermitRootLogin no\nPasswordAuthentication no\n' >"$root/etc/ssh/sshd_config.d/lab.conf"

# Each host makes its own.
rm -f "$root"/etc/ssh/ssh_host_*
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
mkdir -p "$root/etc/systemd/system/ssh.service.d"
printf '[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n' >"$root/etc/systemd/system/ssh.service.d/keys.conf"

# Packages come from the directory that the lab mounts.
rm -rf "$root"/etc/apt/sources.list.d/* "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb
rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap"
echo 'deb [trusted=yes] file:/srv/lab/apt ./' >"$root/etc/apt/sources.list"
echo 'APT::Install-Recommends "false";' >"$root/etc/apt/apt.conf.d/lab"
mkdir -p "$root/srv/lab"
echo 'LANG=C.UTF-8' >"$root/etc/default/locale"

# The lab's hosts talk to each other and to the controller, also on a machine where podman would give them a way out.
cat >"$root/etc/systemd/system/lab-network.service" <<'END'
[Unit]
Description=Take away the way out of the lab
Before=ssh.service

[Service]
Type=oneshot
ExecStart=-/usr/sbin/ip route delete default

[Install]
WantedBy=multi-user.target
END
chroot "$root" systemctl enable --quiet lab-network.service

# What would set up the machine's own devices, kernel and network, or work by the clock.
for unit in systemd-networkd.service systemd-networkd.socket systemd-resolved.service systemd-timesyncd.service systemd-udevd.service \
  systemd-modules-load.service systemd-sysctl.service systemd-binfmt.service dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount \
  sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount getty.target \
  console-getty.service ssh.socket apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
