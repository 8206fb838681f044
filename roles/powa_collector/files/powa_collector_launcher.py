# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run powa-collector with the configuration file that the only argument names.

The program itself has no option for it and takes the first file that it finds, /etc/powa-collector.conf before all others.
"""

from __future__ import annotations

import sys

from powa_collector import PowaCollector, options


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: %s CONFIGURATION_FILE" % sys.argv[0])
    options.CONF_LOCATIONS[:] = [sys.argv[1]]
    PowaCollector().main()


if __name__ == "__main__":
    main()
