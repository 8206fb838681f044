# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commits of clients around a switchover as a picture, one line for each method: an SVG made of text alone."""

from __future__ import annotations

import dataclasses
from xml.sax.saxutils import escape

WIDTH = 1000
LEFT = 250
"""Where the time axis begins; the labels of the methods are before it."""
RIGHT = 110
"""What is left for the labels of the outages."""
ROW = 26
BAR = 14
PLOT = WIDTH - LEFT - RIGHT
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #0b0b0b; }
  .weak { fill: #52514e; font-size: 12px; }
  .title { font-size: 17px; font-weight: 600; }
  .ours { font-weight: 700; }
  .surface { fill: #fcfcfb; }
  .grid { stroke: #e1e0d9; }
  .commits { fill: #2a78d6; }
  .outage { fill: #e34948; opacity: 0.3; }
  .errors { fill: #8a5a00; }
  @media (prefers-color-scheme: dark) {
    text { fill: #ffffff; }
    .weak { fill: #c3c2b7; }
    .surface { fill: #1a1a19; }
    .grid { stroke: #383835; }
    .commits { fill: #3987e5; }
    .outage { fill: #e66767; opacity: 0.4; }
    .errors { fill: #fab219; }
  }
"""


@dataclasses.dataclass(frozen=True)
class Line:
    """One method. Times are seconds; 0 is where its outage begins."""

    label: str
    outage: float
    commits: list[float]
    failures: list[float]
    figure: str
    """The outage as it stands beside the line."""
    ours: bool = False


@dataclasses.dataclass(frozen=True)
class Panel:
    """All lines from ``before`` seconds before the outage to ``span`` after its beginning."""

    title: str
    before: float
    span: float

    def x(self, second):
        return LEFT + (second + self.before) / (self.before + self.span) * PLOT


def runs(positions):
    """Neighbouring whole numbers as (first, count): many commits that would share or touch a pixel become one rectangle."""
    found = []
    for position in sorted(set(positions)):
        if found and found[-1][0] + found[-1][1] == position:
            found[-1][1] += 1
        else:
            found.append([position, 1])
    return [tuple(run) for run in found]


def step(span):
    """Seconds between two marks of an axis that has about six of them."""
    size = 0.001
    while True:
        for factor in (1, 2, 5):
            if span / (size * factor) <= 8:
                return size * factor
        size *= 10


def seconds(value, size):
    return "%.*f s" % (0 if size >= 1 else 1 if size >= 0.1 else 2 if size >= 0.01 else 3, value)


def ticks(kind, panel, moments, top, height):
    """Moments as one path of rectangles a pixel wide or more."""
    places = [int(panel.x(moment)) for moment in moments if -panel.before <= moment < panel.span]
    path = "".join("M%d %dh%dv%dh-%dz" % (first, top, count, height, count) for first, count in runs(places))
    return ['<path class="%s" d="%s"/>' % (kind, path)] if path else []


def draw_panel(panel, lines, top):
    """The panel's elements and where it ends."""
    bottom = top + 26 + len(lines) * ROW
    out = ['<text x="%d" y="%d" class="weak">%s</text>' % (LEFT, top + 12, escape(panel.title))]
    size = step(panel.span)
    for number in range(int(panel.span / size + 1e-6) + 1):
        x = panel.x(number * size)
        out.append('<line class="grid" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>' % (x, x, top + 20, bottom))
        out.append('<text class="weak" text-anchor="middle" x="%.1f" y="%d">%s</text>' % (x, bottom + 15, seconds(number * size, size)))
    for number, line in enumerate(lines):
        y = top + 26 + number * ROW
        end = panel.x(min(line.outage, panel.span))
        emphasis = ' class="ours"' if line.ours else ""
        out.append('<text%s text-anchor="end" x="%d" y="%d">%s</text>' % (emphasis, LEFT - 12, y + 12, escape(line.label)))
        out.append('<rect class="outage" x="%.1f" y="%d" width="%.1f" height="%d"/>' % (panel.x(0), y, max(1.0, end - panel.x(0)), BAR))
        out += ticks("commits", panel, line.commits, y, BAR)
        out += ticks("errors", panel, line.failures, y + BAR, 4)
        out.append('<text%s x="%d" y="%d">%s</text>' % (emphasis, LEFT + PLOT + 12, y + 12, escape(line.figure)))
    return out, bottom + 24


def svg(title, notes, lines, zoom=0.5):
    """The picture: the whole of all outages, and their first ``zoom`` seconds."""
    longest = max(line.outage for line in lines)
    panels = [
        Panel("all of it", longest * 0.08, longest * 1.15),
        Panel("the same, the first %s" % seconds(zoom, 0.1), zoom * 0.15, zoom),
    ]  # fmt: skip
    out = ['<text class="title" x="16" y="30">%s</text>' % escape(title)]
    top = 50
    for note in notes:
        out.append('<text class="weak" x="16" y="%d">%s</text>' % (top, escape(note)))
        top += 17
    x = 16
    for kind, label in (("commits", "a commit"), ("outage", "no commit of any client"), ("errors", "a client's error")):
        out.append('<rect class="%s" x="%d" y="%d" width="12" height="10"/>' % (kind, x, top - 2))
        out.append('<text class="weak" x="%d" y="%d">%s</text>' % (x + 18, top + 7, label))
        x += 36 + 7 * len(label)
    top += 26
    for panel in panels:
        elements, top = draw_panel(panel, lines, top)
        out += elements
        top += 12
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">\n<title>%s</title>\n<style>%s</style>\n'
        '<rect class="surface" width="%d" height="%d"/>\n%s\n</svg>\n'
        % (WIDTH, top, WIDTH, top, escape(title), STYLE, WIDTH, top, "\n".join(out))
    )  # fmt: skip
