#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Debian's packages of the programs that the benchmark compares this collection with. Nothing of them is started by the installation.
set -euo pipefail
exec "$(dirname "$0")/install_debian_packages.sh" patroni python3-etcd etcd-server haproxy
