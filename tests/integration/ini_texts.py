# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that PgBouncer can read, of every kind that its parser allows, as strategies of hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

# Few enough that names meet, and one as long as PgBouncer takes it.
NAMES = st.one_of(
    st.sampled_from(["app", "app_ro", "*", "-", "x" * 63]),
    st.from_regex(r"[A-Za-z0-9_.*-]{1,20}", fullmatch=True).filter(lambda name: name != "pgbouncer"),
)
QUOTED_NAMES = st.text(st.characters(blacklist_characters="'\n\0", blacklist_categories=["Cs"]), min_size=1, max_size=15)
VALUES = st.one_of(
    st.sampled_from(["host", "it's", "''", "a b", " lead", "trail ", "\t", "x\ty", "=", "a=b", ";", "#x", "[s]", "%include /x", "ä ß", "\r", '"']),
    st.text(st.characters(blacklist_characters="\n\0", blacklist_categories=["Cs"]), min_size=1, max_size=12),
)
KEYS = st.sampled_from(["host", "dbname", "user", "password", "connect_query", "application_name", "pool_mode"])
PARAMS = st.dictionaries(KEYS, VALUES, max_size=5)
BLANK = st.text(" \t", max_size=3)


@st.composite
def entries(draw, section):
    quote = draw(st.booleans())
    name = draw(QUOTED_NAMES if quote else NAMES)
    lead, before, after = draw(BLANK), draw(BLANK), draw(BLANK)
    if section == "databases":
        parts = []
        for key, value in draw(st.lists(st.tuples(KEYS, VALUES), max_size=4)):
            bare = draw(st.booleans()) and not set(value) & set(" \t\r\v\f'")
            gap = draw(st.sampled_from(["=", " =", "= ", "  =  "]))
            parts.append(key + gap + (value if bare else "'%s'" % value.replace("'", "''")))
        value = draw(st.sampled_from([" ", "  "])).join(parts)
    else:
        value = draw(st.text(st.characters(blacklist_characters="\n\0", blacklist_categories=["Cs"]), max_size=10))
    return lead + ("'%s'" % name if quote else name) + before + "=" + after + value


@st.composite
def ini_texts(draw):
    lines = []
    for section in draw(st.lists(st.sampled_from(["databases", "pgbouncer", "users", "peers"]), min_size=1, max_size=5)):
        header = draw(BLANK) + "[%s]" % section
        if draw(st.integers(0, 4)) == 0:
            lines.append(header + " " + draw(entries(section)))
        else:
            lines.append(header)
        for _n in range(draw(st.integers(0, 5))):
            kind = draw(st.integers(0, 5))
            if kind <= 2:
                lines.append(draw(entries(section)))
            elif kind == 3:
                lines.append(draw(BLANK))
            elif kind == 4:
                lines.append(
                    draw(BLANK)
                    + draw(st.sampled_from("#;"))
                    + draw(st.text(st.characters(blacklist_characters="\n\0", blacklist_categories=["Cs"]), max_size=8))
                )
            else:
                lines.append("%include " + draw(st.sampled_from(["/a/b.ini", "rel ative.ini"])))
    # Editors of two kinds of systems may have been at work, and the last line may have no end.
    newlines = draw(st.sampled_from([["\n"], ["\r\n"], ["\n", "\r\n"]]))
    ends = [draw(st.sampled_from(newlines)) for _line in lines]
    text = "".join(line + end for line, end in zip(lines, ends))
    return text if draw(st.booleans()) else text.rstrip("\r\n")
