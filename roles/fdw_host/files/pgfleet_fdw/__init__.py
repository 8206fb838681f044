# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Foreign data wrappers in Python: what a wrapper is made of.

A wrapper is a class with the interface that Multicorn calls. This package has that interface without importing Multicorn, so that the same class is
hosted by the C extension and by PL/Python, and is tested without either (``pgfleet_fdw.testing``).
"""

from __future__ import annotations

from .deadline import Deadline, positive_seconds
from .errors import WrapperError, log
from .options import Option
from .quals import allowed_values, safe_quals
from .tables import Table
from .wrapper import Wrapper

__all__ = ["Deadline", "Option", "Table", "Wrapper", "WrapperError", "allowed_values", "log", "positive_seconds", "safe_quals"]
