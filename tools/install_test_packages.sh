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
  "postgresql-$version-pg-wait-sampling" "postgresql-$version-hypopg" "postgresql-$version-pg-track-settings" "postgresql-plpython3-$version"
  pgbouncer powa-collector python3-psycopg python3-psycopg2 python3-venv shellcheck mmdebstrap tini
)
"$(dirname "$0")/install_debian_packages.sh" "${packages[@]}"
# The other release, for the other generation of PoWA.
"$(dirname "$0")/debian_root.sh" >/dev/null
