# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a benchmark makes of the moments of commits: gaps, medians, ratios, and the table of them."""

from __future__ import annotations

import dataclasses
import math
import statistics


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One round of one method. Times are seconds of the monotonic clock, but for ``milliseconds``, the figure that is compared."""

    method: str
    milliseconds: float
    errors: int
    lost: int
    zero: float
    """The moment that the picture begins with: the last commit before the outage, or the kill."""
    commits: list[float] = dataclasses.field(default_factory=list, repr=False)
    failures: list[float] = dataclasses.field(default_factory=list, repr=False)


@dataclasses.dataclass(frozen=True)
class Run:
    """What clients saw of one switchover among many. Times are milliseconds."""

    outage: float
    wait: float
    """The longest that one client has waited for one row, its connection included."""
    before: float
    """The same before the switchover: what the machine adds on its own."""
    connections: int
    commits: int
    errors: int
    lost: int


def longest_wait(report, since, until=float("inf")):
    """The longest, in seconds, that a client has waited for a row that was acknowledged between two moments. Raises ValueError where there is none."""
    return max(wait for moment, wait in zip(report["moments"], report["waits"]) if since < moment <= until)


def longest_gap(moments, since):
    """The longest time without a commit that ends after ``since``: its begin and its end. Raises ValueError where no commit came after ``since``."""
    gaps = [(later - sooner, sooner, later) for sooner, later in zip(moments, moments[1:]) if later > since]
    if not gaps:
        raise ValueError("no commit came after the beginning, so that nothing can be said about an outage")
    _length, sooner, later = max(gaps)
    return sooner, later


def of_switchover(method, report, lost, began):
    """What clients saw of a planned switchover: the longest time without any commit."""
    sooner, later = longest_gap(report["moments"], began)
    return Measurement(method, (later - sooner) * 1000, report["errors"], lost, sooner, report["moments"], report["error_moments"])


def of_failover(method, report, lost, killed):
    """What clients saw of a lost primary: from the kill to the first commit after the outage.

    Some answers may still come after the kill, so the first commit is the one that ends the longest gap.
    """
    _sooner, later = longest_gap(report["moments"], killed)
    return Measurement(method, (later - killed) * 1000, report["errors"], lost, killed, report["moments"], report["error_moments"])


def steady(measurements):
    """The longest time without a commit before anything happened, in milliseconds: the median over all rounds."""
    before = [[moment for moment in row.commits if moment <= row.zero] for row in measurements]
    return statistics.median(max(later - sooner for sooner, later in zip(moments, moments[1:])) * 1000 for moments in before)


def by_method(measurements):
    """Method -> its measurements, in the order in which the methods first came."""
    found = {}
    for measurement in measurements:
        found.setdefault(measurement.method, []).append(measurement)
    return found


def median(rows):
    return statistics.median(row.milliseconds for row in rows)


def typical(rows):
    """The measurement that the picture shows: the one in the middle, the shorter of two."""
    return sorted(rows, key=lambda row: row.milliseconds)[(len(rows) - 1) // 2]


def duration(milliseconds):
    return "%.0f ms" % milliseconds if milliseconds < 1000 else "%.1f s" % (milliseconds / 1000)


def table(measurements, ours, what):
    """The rows of the table, each a list of texts, the first one its head. ``ours`` is the method that the others are compared with."""
    methods = by_method(measurements)
    base = median(methods[ours]) if ours in methods else None
    rows = [["method", what + ", median", "shortest to longest", "rounds", "errors of clients", "acknowledged rows lost", "times ours"]]
    for method, found in methods.items():
        times = [row.milliseconds for row in found]
        rows.append([
            method, "%.0f ms" % median(found), "%.0f to %.0f ms" % (min(times), max(times)), str(len(found)),
            str(sum(row.errors for row in found)), str(sum(row.lost for row in found)),
            "%.2f" % (median(found) / base) if base else "",
        ])  # fmt: skip
    return rows


def percentile(values, percent):
    """The smallest value that at least so many percent of the values do not exceed: one that was measured, never one in between."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def percentiles(measured):
    """The rows of a table of percentiles, in milliseconds. ``measured`` has the values of each line by its name."""
    rows = [["milliseconds", "shortest", "median", "90 %", "99 %", "longest"]]
    for name, values in measured.items():
        rows.append([name, *("%.0f" % percentile(values, percent) for percent in (0, 50, 90, 99, 100))])
    return rows


def as_text(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) if column == 0 else text.rjust(width) for column, (text, width) in enumerate(zip(row, widths))) for row in rows
    )


def as_markdown(rows):
    head, *body = rows
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| %s |" % " | ".join(row) for row in [head, marks, *body])


def replace_block(text, name, block):
    """The text with what stands between the marks of a name replaced. Raises ValueError where the marks are not there once."""
    begin, end = "<!-- %s: written by the program -->" % name, "<!-- end of %s -->" % name
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise ValueError("there is not one pair of the marks %s and %s" % (begin, end))
    return "%s%s\n\n%s\n\n%s" % (text.partition(begin)[0], begin, block, end + text.partition(end)[2])
