#!/usr/bin/env bash
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Run a command in a copy of this checkout that lies where Ansible's tools want a collection to lie.
# Usage: in_collection_tree.sh DIRECTORY COMMAND
set -euo pipefail
tree=$(realpath -m "$1")/ansible_collections/pgfleet/ops
rm -rf "$tree"
mkdir -p "$tree"
git ls-files -co --exclude-standard -z | while IFS= read -r -d '' file; do
  # A file that was deleted and not committed is still listed.
  if [ -e "$file" ]; then printf '%s\0' "$file"; fi
done | tar --null -T - -c | tar -x -C "$tree"
cd "$tree"
# The tools decide by git what belongs to the tree.
git init -q .
git add -A
# What the collection depends on, so that a linter finds it.
root=$(realpath -m "$tree/../../..")
export ANSIBLE_COLLECTIONS_PATH="$root:${ANSIBLE_COLLECTIONS_PATH:-}"
eval "$2"
