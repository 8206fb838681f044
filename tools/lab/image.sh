#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# image.sh SUITE: prints the directory with what the lab's hosts are made of, and makes it if there is none for this state of the two scripts:
#   base.tar   the root of a small Debian (bookworm or trixie) with systemd, sshd, sudo and Python
#   apt/       an apt repository with all packages that the roles install, which the hosts mount: they have no other network than the lab's
#   wheels/    the same for pip
# Packages come from the mirror that apt uses here. Needs root.
# shellcheck disable=SC2016
set -euo pipefail
suite=$1
case $suite in
  bookworm) version=15 python=3.11 powa_web=4.1.4 ;;
  trixie) version=17 python=3.13 powa_web=5.0.2 ;;
  *) echo "the suite is bookworm or trixie, not $suite" >&2; exit 2 ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
cache=/var/cache/pgfleet-tests/lab/images
built=$cache/$suite-$(cat "$here/image.sh" "$here/customize.sh" | sha256sum | cut -c 1-12)
if [ -d "$built" ]; then
  echo "$built"
  exit 0
fi

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ ! -d "$built" ]; then
  base=(
    systemd systemd-sysv dbus libpam-systemd openssh-server sudo python3 python3-apt iproute2 iputils-ping ca-certificates procps less logrotate cron
  )
  packages=(
    "postgresql-$version" "postgresql-$version-powa" "postgresql-$version-pg-qualstats" "postgresql-$version-pg-stat-kcache"
    "postgresql-$version-pg-wait-sampling" "postgresql-$version-hypopg" "postgresql-$version-pg-track-settings"
    pgbouncer powa-collector python3-psycopg python3-psycopg2 python3-venv python3-packaging
  )
  mirror() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' 'Component: main' | head -n 1; }
  [ -n "$(mirror)" ] || apt-get update -qq >&2
  # What a build that was killed has left.
  rm -rf --one-file-system "$cache"/building.*
  building=$cache/building.$$
  trap 'rm -rf --one-file-system "$building"' EXIT
  mkdir -p "$building/apt" "$building/wheels"
  unshare --mount --propagation private mmdebstrap --quiet --variant=minbase --include="$(IFS=, && echo "${base[*]}")" \
    --aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="APT_CONFIG=\$MMDEBSTRAP_APT_CONFIG apt-get --yes -qq install --download-only ${packages[*]}" \
    --customize-hook="sync-out /var/cache/apt/archives $building/apt" \
    --customize-hook="bash $here/customize.sh \"\$1\"" \
    "$suite" "$building/base.tar" "$(mirror)" >&2
  rm -rf "$building/apt/partial" "$building/apt/lock"
  (cd "$building/apt" && dpkg-scanpackages --multiversion . >Packages 2>/dev/null)
  python3 -m venv "$building/venv"
  pip() { "$building/venv/bin/pip" --quiet --disable-pip-version-check "$@" >&2; }
  pip wheel --no-deps --wheel-dir "$building/wheels" "powa-web==$powa_web"
  old=()
  [ "$suite" != bookworm ] || old=('SQLAlchemy<2')
  pip download --only-binary :all: --python-version "$python" --dest "$building/wheels" tornado psycopg2-binary "${old[@]}"
  rm -rf "$building/venv"
  mv "$building" "$built"
fi
# Those of other versions of these scripts go.
for old in "$cache/$suite"-*; do
  [ "$old" = "$built" ] || rm -rf --one-file-system "$old"
done
echo "$built"
