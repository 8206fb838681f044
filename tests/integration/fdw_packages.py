# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages with wrappers where the Python of a test's server finds them."""

from __future__ import annotations

import shutil

from lab import REPOSITORY

PACKAGES = REPOSITORY / "roles" / "fdw_host" / "files"


def install_packages(lab, **modules):
    """A directory for PYTHONPATH with pgfleet_fdw and modules of one file, by their names."""
    directory = lab.path / ("packages%d" % len(list(lab.path.glob("packages*"))))
    shutil.copytree(PACKAGES / "pgfleet_fdw", directory / "pgfleet_fdw", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in modules.items():
        (directory / (name + ".py")).write_text(text)
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return directory
