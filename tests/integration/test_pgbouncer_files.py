# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Any file: the editor reads it as the real PgBouncer does, and refuses just what that refuses."""

from __future__ import annotations

import contextlib
import re
import shutil

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import InvalidInput
from ansible_collections.pgfleet.ops.plugins.module_utils._pgbouncer.ini import KEYS_SINCE, Ini, retarget
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ini_texts import BLANK, NAMES, VALUES
from lab import GENERATIONS, wait_until

# The same examples in every run: what is found anew belongs to whoever looks for it, not into somebody's change.
MANY = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SOME = settings(MANY, max_examples=40)
KEYS = ("host", "dbname", "connect_query", "application_name", "password")


@pytest.fixture(scope="module", params=GENERATIONS, ids=lambda one: "debian%d" % one.release)
def pooler(lab, request):
    return lab.pgbouncer("pool%d" % request.param.release, {"app": "host=127.0.0.1"}, system=request.param.system).start()


@st.composite
def entries(draw):
    """An entry with keys and values that PgBouncer takes, in all the ways in which it may be written."""
    parts = []
    for key in draw(st.lists(st.sampled_from((*KEYS, "port", "pool_size", "pool_mode")), max_size=5)):
        if key == "port":
            value = str(draw(st.integers(1, 65535)))
        elif key == "pool_size":
            value = str(draw(st.integers(1, 500)))
        elif key == "pool_mode":
            value = draw(st.sampled_from(["session", "transaction", "statement"]))
        else:
            value = draw(VALUES)
        # Only a space ends a bare value; a tab belongs to it.
        bare = draw(st.booleans()) and " " not in value and not value.startswith("'") and value == value.strip()
        gap = draw(st.sampled_from(["=", " =", "= ", "  =  "]))
        # Behind a quoted value any one character separates.
        parts.append(key + gap + (value + " " if bare else "'%s'" % value.replace("'", "''") + draw(st.sampled_from([" ", "  ", "\t", ","]))))
    return draw(BLANK) + draw(NAMES) + draw(BLANK) + "=" + draw(BLANK) + "".join(parts)


@st.composite
def database_files(draw):
    lines = [draw(BLANK) + "[databases]" + draw(st.sampled_from(["", " # none", " ; x = y", " first = host=h"]))]
    for _n in range(draw(st.integers(0, 8))):
        other = st.sampled_from(["", "; app = host=comment", "\t# %include /x", "[users]\n[databases]", "[databases]"])
        lines.append(draw(st.one_of(entries(), entries(), other)))
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    return newline.join(lines).replace("\n" if newline == "\n" else "\0", newline) + (newline if draw(st.booleans()) else "")


def loaded(pooler, text):
    """What the pooler makes of a file."""
    pooler.databases_file.write_bytes(text.encode())
    with contextlib.closing(pooler.console()) as console:
        console.execute("RELOAD")
        cursor = console.execute("SHOW DATABASES")
        names = [column.name for column in cursor.description]
        rows = [dict(zip(names, row)) for row in cursor.fetchall()]
    return {row["name"]: (row["host"], row["port"], row["database"], row["pool_size"], row["pool_mode"]) for row in rows if row["name"] != "pgbouncer"}


def read(text):
    """What the editor makes of it, in the words of SHOW DATABASES."""
    found = {}
    for name, params in Ini.parse(text).databases().items():
        if name != "*":
            size = int(params.get("pool_size", 20))
            found[name] = (params.get("host"), int(params.get("port", 5432)), params.get("dbname", name), size, params.get("pool_mode"))
    return found


@MANY
@given(database_files())
def test_the_editor_reads_a_file_as_pgbouncer_does(pooler, text):
    assert loaded(pooler, text) == read(text)


@MANY
@given(database_files(), NAMES, st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), st.integers(0, 2))
def test_pgbouncer_reads_what_the_editor_writes(pooler, text, name, params, what):
    ini = Ini.parse(text)
    before = read(text)
    if what == 0:
        ini.set_database(name, {**params, "port": 6000})
        after = loaded(pooler, ini.text())
        assert name == "*" or (after[name][1] == 6000 and after[name][0] == params.get("host", before.get(name, (None,))[0]))
        changed = {name}
    elif what == 1:
        ini.remove_database(name)
        after = loaded(pooler, ini.text())
        assert name not in after
        changed = {name}
    else:
        target = next(iter(before.values()), (None, 1))
        new, changes = retarget(text, {(target[0] or "", target[1]): ("moved.example.com", 7000)})
        after = loaded(pooler, new)
        changed = {change.name for change in changes}
        assert {key for key, row in after.items() if row[:2] == ("moved.example.com", 7000)} == changed - {"*"}
        assert {key for key, row in before.items() if row[:2] == target[:2]} == changed - {"*"}
    assert {key: row for key, row in after.items() if key not in changed} == {key: row for key, row in before.items() if key not in changed}


@SOME
@given(database_files(), st.data())
def test_the_editor_refuses_just_what_pgbouncer_refuses(pooler, text, data):
    for _n in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 2))
        text = text[:position] + data.draw(st.sampled_from(["", *"[]'=;#% \t\r\n\"x\\\v\f-*,", "''", "ä"])) + text[position + cut :]
    text += "\n[pgbouncer]\n"  # without which it takes no main file
    try:
        ini = Ini.parse(text)
    except InvalidInput as error:
        # PgBouncer looks into that one only when a client comes, of a port it reads the digits that it begins with, and it takes an entry without a name.
        assume('database "*"' not in error.message and "the port is not a number" not in error.message)
        assume(not re.search(r"(^|\])\s*=", text, re.MULTILINE))
        refused = True
    else:
        refused = False
        # Of names and values PgBouncer knows more than how a file is written, also of an entry that a later one of its name replaces.
        pairs = [(key, value) for params in ini.databases().values() for key, value in params.items()]
        pairs += [(pair.key, pair.value) for token in ini._entries() for pair in ini._pairs(token)]
        assume({key for key, _value in pairs} <= set(KEYS_SINCE) and ini.sections <= {"databases", "users", "pgbouncer"})
        assume(not ini.includes() and "pgbouncer" not in ini.databases() and all(len(token.name.encode()) < 64 for token in ini._entries()))
        assume({value for key, value in pairs if key == "pool_mode"} <= {"session", "transaction", "statement"})
        assume(all(value.isascii() and value.isdigit() for key, value in pairs if key == "pool_size"))
        assume(not any("[users]" in part and "=" in re.split(r"\[(?:databases|pgbouncer)\]", part)[0] for part in text.split("[users]")[1:]))
    path = pooler.base / "tried.ini"
    path.write_bytes(text.encode())
    shutil.chown(path, "postgres", "postgres")
    # Without a pidfile it ends as soon as the file is read.
    said = pooler.system.run(["/usr/sbin/pgbouncer", "-d", path], check=False)
    assert ("cannot load config file" in said) is refused, said
    assert refused or "pidfile" in said, said


def test_the_pooler_is_still_the_same(pooler):
    """After all these files it starts from a plain one."""
    assert loaded(pooler, "[databases]\napp = host=127.0.0.1\n") == {"app": ("127.0.0.1", 5432, "app", 20, None)}
    wait_until(lambda: pooler.pid, 10)
