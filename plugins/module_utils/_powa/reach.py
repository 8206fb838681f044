# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Whether a server can be collected from: asked on the server itself, with the collector's login."""

from __future__ import annotations

import typing as t

from .._sql.connection import Session, Target, connect
from .preload import PRELOADED
from .repository import MANDATORY, read_installed, repository_class, version_tuple


def find_faults(target: Target, extensions: t.Collection[str], repository_version: str, timeout: float) -> list[str]:
    """What keeps a collector from collecting these extensions, as clauses. Raises what ``connect`` raises."""
    session = connect(target, timeout=timeout, read_only=True)
    try:
        return _faults(session, extensions, repository_version)
    finally:
        session.close()


def _faults(session: Session, extensions: t.Collection[str], repository_version: str) -> list[str]:
    target = session.target
    powa = read_installed(session)
    if powa is None:
        return ['its database "%s" has no extension powa' % target.dbname]
    wanted = {*extensions, *MANDATORY}
    faults = []
    same = version_tuple(powa.version)[:2] == version_tuple(repository_version)[:2]
    if not same:
        faults.append("it has powa %s, and the repository has %s: the first two numbers must be the same" % (powa.version, repository_version))
    here = {row["extname"] for row in session.rows("SELECT extname FROM pg_extension")}
    missing = sorted(wanted - here)
    if missing:
        faults.append('its database "%s" has no extension %s' % (target.dbname, ", ".join(missing)))
    # The list of libraries itself is hidden from the collector's role. Each of them defines parameters, but only while it is preloaded.
    loaded = {row["prefix"] for row in session.rows("SELECT DISTINCT split_part(name, '.', 1) AS prefix FROM pg_settings WHERE strpos(name, '.') > 0")}
    unloaded = [name for name in PRELOADED if name in wanted and name not in loaded]
    if unloaded:
        faults.append("its shared_preload_libraries has no %s" % ", ".join(unloaded))
    if same:
        role = session.value("SELECT current_user::text")
        rights = repository_class(powa.version)(session, powa).missing_rights(role, "monitor")
        if rights:
            faults.append('its role "%s" lacks: %s' % (role, "; ".join(right.text for right in rights)))
    return faults
