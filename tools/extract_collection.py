# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take one collection out of a downloaded wheel of the package `ansible`.

Usage: extract_collection.py DIRECTORY NAMESPACE.NAME DESTINATION
"""

import pathlib
import sys
import zipfile

directory, name, destination = sys.argv[1:]
(wheel,) = pathlib.Path(directory).glob("ansible-*.whl")
prefix = "ansible_collections/%s/" % name.replace(".", "/")
with zipfile.ZipFile(wheel) as archive:
    members = [member for member in archive.namelist() if member.startswith(prefix) and not member.startswith(prefix + "tests/")]
    if not members:
        sys.exit("%s holds no %s" % (wheel.name, name))
    archive.extractall(destination, members)
# A new time, so that make does not take it for older than what it was made from.
(pathlib.Path(destination) / prefix / "MANIFEST.json").touch()
