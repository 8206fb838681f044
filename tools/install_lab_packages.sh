#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Debian's packages that the lab of several hosts needs. Nothing of them is started by the installation.
set -euo pipefail
exec "$(dirname "$0")/install_debian_packages.sh" \
  podman crun netavark aardvark-dns iptables iproute2 mmdebstrap dpkg-dev openssh-client python3 python3-venv util-linux procps
