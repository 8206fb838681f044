#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Debian's packages named as arguments, installed if they are not. Nothing of them is started by the installation.
set -euo pipefail
if dpkg-query -W -f '${Status}\n' "$@" 2>/dev/null | grep -c '^install ok installed$' | grep -qx "$#"; then
  exit 0
fi
# Packages of servers start them; a policy of our own for the time of the installation keeps them from it.
policy=/usr/sbin/policy-rc.d
kept=$(mktemp -u /usr/sbin/policy-rc.d.kept.XXXXXX)
if [ -e "$policy" ]; then mv "$policy" "$kept"; fi
trap 'rm -f "$policy"; if [ -e "$kept" ]; then mv "$kept" "$policy"; fi' EXIT
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
