#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Prints the path of a root directory with the other supported Debian (13 on 12, 12 on 13) and its PostgreSQL, PoWA, statistics extensions and
# powa-collector. The integration tests start servers in it, so that both generations of PoWA run on one machine. Made once, as root, from the
# mirror that apt uses here, and kept outside the checkout under a name with this file's hash.
# shellcheck disable=SC1091,SC2016
set -euo pipefail
case "$(. /etc/os-release && echo "$VERSION_ID")" in
  12) release=13 suite=trixie version=17 ;;
  13) release=12 suite=bookworm version=15 ;;
  *) echo "only Debian 12 and 13" >&2; exit 1 ;;
esac
cache=/var/cache/pgfleet-tests
root=$cache/debian$release-$(sha256sum "$0" | cut -c 1-12)
if [ -d "$root" ]; then
  echo "$root"
  exit 0
fi

mkdir -p "$cache"
# A build that was killed holds the lock until its last child has ended; what it left is not complete and goes.
exec 9>"$cache/lock"
flock 9
if [ ! -d "$root" ]; then
  rm -rf --one-file-system "$cache"/building.*
  building=$cache/building.$$
  trap 'rm -rf --one-file-system "$building"' EXIT
  mirror() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' 'Component: main' | head -n 1; }
  [ -n "$(mirror)" ] || apt-get update -qq >&2
  packages=(
    "postgresql-$version" "postgresql-$version-powa" "postgresql-$version-pg-qualstats" "postgresql-$version-pg-stat-kcache"
    "postgresql-$version-pg-wait-sampling" "postgresql-$version-hypopg" "postgresql-$version-pg-track-settings"
    powa-collector pgbouncer python3-psycopg python3-psycopg2
  )
  no_cluster='mkdir -p "$1/etc/postgresql-common" && echo "create_main_cluster = false" >"$1/etc/postgresql-common/createcluster.conf"'
  unshare --mount --propagation private mmdebstrap --quiet --variant=minbase --include="$(IFS=, && echo "${packages[*]}")" \
    --aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io --dpkgopt=force-confold \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --setup-hook="$no_cluster" "$suite" "$building" "$(mirror)" >&2
  mv "$building" "$root"
fi
# Roots of other versions of this file go, but for those that tests use: these hold a shared lock.
for old in "$cache/debian$release"-*; do
  if [ "$old" != "$root" ]; then
    flock --exclusive --nonblock "$old" rm -rf --one-file-system "$old" || true
  fi
done
echo "$root"
