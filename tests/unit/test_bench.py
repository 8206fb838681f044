# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmarks make of the moments of commits: a wrong figure would be published."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import figures
import picture
import pytest

SVG = "{http://www.w3.org/2000/svg}"


def measurement(method, milliseconds, errors=0, lost=0):
    return figures.Measurement(method, milliseconds, errors, lost, zero=0.0)


def report(moments, error_moments=()):
    return {"moments": moments, "errors": len(error_moments), "error_moments": list(error_moments)}


def test_the_longest_gap_is_that_of_the_operation_not_one_before_it():
    moments = [0.0, 5.0, 5.1, 5.2, 6.2, 6.3]
    assert figures.longest_gap(moments, since=5.15) == (5.2, 6.2)
    # One that began before and ended after belongs to it.
    assert figures.longest_gap(moments, since=5.5) == (5.2, 6.2)
    assert figures.longest_gap(moments, since=4.0) == (0.0, 5.0)


def test_an_outage_that_never_ended_is_no_short_outage():
    for moments in ([1.0, 2.0, 3.0], [], [1.0]):
        with pytest.raises(ValueError, match="no commit came after"):
            figures.longest_gap(moments, since=3.0)


def test_the_longest_wait_is_that_of_its_time():
    seen = {"moments": [1.0, 2.0, 3.0, 4.0], "waits": [0.9, 0.1, 0.5, 0.2]}
    assert figures.longest_wait(seen, since=1.0) == 0.5
    assert figures.longest_wait(seen, since=0.0, until=2.0) == 0.9
    with pytest.raises(ValueError):
        figures.longest_wait(seen, since=4.0)


def test_a_switchover_is_measured_from_the_last_commit_before_the_outage():
    found = figures.of_switchover("m", report([1.0, 1.1, 2.1, 2.2], [1.5]), 0, began=1.05)
    assert found.milliseconds == pytest.approx(1000)
    assert (found.zero, found.errors, found.failures) == (1.1, 1, [1.5])


def test_a_failover_is_measured_from_the_kill():
    # An answer that was under way comes just after the kill and is not the end of the outage.
    found = figures.of_failover("m", report([1.0, 1.1, 1.102, 4.0, 4.01]), 2, killed=1.1005)
    assert found.milliseconds == pytest.approx(2899.5)
    assert (found.zero, found.lost) == (1.1005, 2)


def test_the_steady_gap_is_taken_before_the_outage():
    rows = [figures.Measurement("m", 1.0, 0, 0, zero=2.0, commits=[1.0, 1.01, 1.01 + gap, 2.0 - gap, 2.0, 9.0]) for gap in (0.1, 0.2, 0.3)]
    assert figures.steady(rows) == pytest.approx((2.0 - 0.2 - 1.01 - 0.2) * 1000)


def test_table_has_medians_spread_sums_and_ratios():
    rows = figures.table([measurement("ours", 100), measurement("other", 900, errors=3), measurement("ours", 300), measurement("ours", 120, lost=1),
                          measurement("other", 1500, errors=4)], "ours", "outage")  # fmt: skip
    assert rows[1] == ["ours", "120 ms", "100 to 300 ms", "3", "0", "1", "1.00"]
    assert rows[2] == ["other", "1200 ms", "900 to 1500 ms", "2", "7", "0", "10.00"]
    assert figures.as_markdown(rows).splitlines()[3] == "| other | 1200 ms | 900 to 1500 ms | 2 | 7 | 0 | 10.00 |"
    assert len({len(line) for line in figures.as_text(rows).splitlines()}) == 1


def test_table_without_ours_has_no_ratios():
    assert figures.table([measurement("other", 900)], "ours", "outage")[1][-1] == ""


def test_a_percentile_is_a_value_that_was_measured_and_the_worst_one_is_never_left_out():
    values = [float(value) for value in range(100, 0, -1)]
    assert [figures.percentile(values, percent) for percent in (0, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert [figures.percentile([3.0, 1.0, 2.0], percent) for percent in (0, 50, 90, 99, 100)] == [1, 2, 3, 3, 3]
    rows = figures.percentiles({"a": [5.0] * 99 + [1200.0], "b": [7.4]})
    assert rows[1:] == [["a", "5", "5", "5", "5", "1200"], ["b", "7", "7", "7", "7", "7"]] and len(rows[0]) == 6


def test_the_picture_shows_the_round_in_the_middle():
    rows = [measurement("m", value) for value in (500, 100, 300, 200)]
    assert figures.typical(rows).milliseconds == 200
    assert figures.typical(rows[:3]).milliseconds == 300


def test_only_the_marked_block_is_replaced():
    text = "before\n<!-- a: written by the program -->\nold\n<!-- end of a -->\nafter\n"
    new = figures.replace_block(text, "a", "new")
    assert new == "before\n<!-- a: written by the program -->\n\nnew\n\n<!-- end of a -->\nafter\n"
    assert figures.replace_block(new, "a", "new") == new
    for wrong in ("", text + text, "<!-- end of a --><!-- a: written by the program -->"):
        with pytest.raises(ValueError, match="marks"):
            figures.replace_block(wrong, "a", "new")


def test_commits_that_touch_become_one_rectangle():
    assert picture.runs([5, 3, 4, 4, 9]) == [(3, 3), (9, 1)]
    assert picture.runs([]) == []


@pytest.mark.parametrize(("span", "size"), [(0.5, 0.1), (0.02, 0.005), (12.0, 2), (15.0, 2), (40, 5), (8, 1)])
def test_an_axis_has_a_handful_of_round_marks(span, size):
    assert picture.step(span) == pytest.approx(size)
    assert 3 <= span / picture.step(span) <= 8


def line(label, outage, **more):
    steady = [number / 1000 for number in range(-1000, 1)]
    return picture.Line(label, outage, steady + [outage + number / 1000 for number in range(2000)], [outage / 2], figures.duration(outage * 1000), **more)


def parts(root, kind):
    return [element for element in root.iter() if element.get("class") == kind]


def test_the_picture_is_well_formed_and_shows_each_outage_to_scale():
    lines = [line("ours <&>", 0.1, ours=True), line("theirs", 10.0)]
    text = picture.svg("title & more", ["a machine", "a date"], lines)
    root = ET.fromstring(text)
    outages = [float(rect.get("width")) for rect in parts(root, "outage") if rect.get("height") == str(picture.BAR)]
    assert len(outages) == 4
    whole, zoomed = outages[:2], outages[2:]
    assert whole[1] / whole[0] == pytest.approx(100, rel=0.05)
    # In the second panel an outage that is longer than it reaches its end, and no farther.
    assert zoomed[0] == pytest.approx(picture.PLOT * 0.1 / (0.5 * 1.15), abs=0.1)
    assert zoomed[1] == pytest.approx(picture.PLOT * 0.5 / (0.5 * 1.15), abs=0.1)
    texts = [element.text for element in root.iter(SVG + "text")]
    assert texts.count("ours <&>") == 2 and texts.count("100 ms") == 2 and texts.count("10.0 s") == 2 and "a date" in texts


def test_no_commit_is_drawn_within_an_outage():
    panel = picture.Panel("", 0.1, 1.0)
    moments = [-0.05, 0.0, 0.5, 0.501, 5.0]
    (path,) = picture.ticks("commits", panel, moments, 0, picture.BAR)
    places = [int(word.split(" ")[0]) for word in path.split('d="')[1].split("M")[1:]]
    assert places == [int(panel.x(moment)) for moment in (-0.05, 0.0, 0.5)]
    assert picture.ticks("errors", panel, [], 0, 4) == []


def test_the_picture_is_readable_on_dark_and_light_pages():
    text = picture.svg("title", [], [line("ours", 0.1)])
    light, _query, dark = text.partition("@media (prefers-color-scheme: dark)")
    for kind in ("text", ".weak", ".surface", ".grid", ".commits", ".outage", ".errors"):
        assert " %s {" % kind in light and " %s {" % kind in dark
