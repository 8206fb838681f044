# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make this checkout importable as ansible_collections.pgfleet.ops, below .build/dev."""

import pathlib

root = pathlib.Path(__file__).resolve().parents[1]
link = root / ".build" / "dev" / "ansible_collections" / "pgfleet" / "ops"
link.parent.mkdir(parents=True, exist_ok=True)
if link.is_symlink() or link.exists():
    link.unlink()
link.symlink_to(root)
