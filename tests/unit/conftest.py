# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from hypothesis import settings

# Machines are shared: how long an example takes says nothing about it.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
