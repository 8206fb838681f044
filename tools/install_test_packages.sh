#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Debian's packages that the integration tests start servers from, of this release and of the other one. Nothing of them is started by the
# installation.
set -euo pipefail
version=$(case "$(. /etc/os-release && echo "$VERSION_ID")" in 12) echo 15 ;; 13) echo 17 ;; *) echo "only Debian 12 and 13" >&2; exit 1 ;; esac)
packages=(
  "postgresql-$version" "postgresql-$version-powa" "postgresql-$version-pg-qualstats" "postgresql-$version-pg-stat-kcache"
  "postgresql-$version-pg-wait-sampling" "postgresql-$version-hypopg" "postgresql-$version-pg-track-settings"
  pgbouncer powa-collector python3-psycopg python3-psycopg2 python3-venv shellcheck mmdebstrap tini
)
# In a process of its own, whose end takes the policy away.
install() (
  # Packages of servers start them; a policy of our own for the time of the installation keeps them from it.
  policy=/usr/sbin/policy-rc.d
  kept=$(mktemp -u /usr/sbin/policy-rc.d.kept.XXXXXX)
  if [ -e "$policy" ]; then mv "$policy" "$kept"; fi
  trap 'rm -f "$policy"; if [ -e "$kept" ]; then mv "$kept" "$policy"; fi' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
)
if ! dpkg-query -W -f '${Status}\n' "${packages[@]}" 2>/dev/null | grep -c '^install ok installed$' | grep -qx "${#packages[@]}"; then
  install
fi
# The other release, for the other generation of PoWA.
"$(dirname "$0")/debian_root.sh" >/dev/null
