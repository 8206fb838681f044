# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import difflib

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import InvalidInput
from ansible_collections.pgfleet.ops.plugins.module_utils._pgbouncer.ini import Change, Ini, Tree, retarget, without_secret
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ini_texts import KEYS, NAMES, PARAMS, ini_texts

MAIN = """\
; main file
%include /etc/x/databases.ini

[pgbouncer]
listen_port = 6432
# a comment
logfile=/var/log/it = strange.log
listen_port = 6433

[databases]
  app = host=10.0.0.1 port=5433 dbname=app
  quoted = host='10.0.0.1' dbname='my ''own'' db' password='p w' connect_query='select 1; -- x=y'
local =
bare=port=6000
* = host=10.0.0.9

[users]
app = pool_mode=session
"""


def changed_lines(before, after):
    removed, added = [], []
    for line in difflib.ndiff(before.splitlines(True), after.splitlines(True)):
        (removed if line.startswith("- ") else added if line.startswith("+ ") else []).append(line[2:])
    return removed, added


def test_reads_what_pgbouncer_reads():
    ini = Ini.parse(MAIN)
    assert ini.text() == MAIN
    assert ini.includes() == ["/etc/x/databases.ini"]
    assert ini.setting("listen_port") == "6433"
    assert ini.setting("logfile") == "/var/log/it = strange.log"
    assert ini.setting("app", "users") == "pool_mode=session"
    assert ini.setting("nothing") is None
    assert ini.sections == {"pgbouncer", "databases", "users"}
    assert ini.last_section == "users"
    assert ini.databases() == {
        "app": {"host": "10.0.0.1", "port": "5433", "dbname": "app"},
        "quoted": {"host": "10.0.0.1", "dbname": "my 'own' db", "password": "p w", "connect_query": "select 1; -- x=y"},
        "local": {},
        "bare": {"port": "6000"},
        "*": {"host": "10.0.0.9"},
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("host = a  port = 1", {"host": "a", "port": "1"}),
        ("host=a\tdbname=x", {"host": "a\tdbname=x"}),
        ("dbname='x'\tport=7", {"dbname": "x", "port": "7"}),
        ("dbname=a'b", {"dbname": "a'b"}),
        ("dbname=''''", {"dbname": "'"}),
        ("host= port=5", {"host": "port=5"}),
        ("host=a host=b", {"host": "b"}),
    ],
)
def test_reads_odd_entries_as_pgbouncer_does(value, expected):
    assert Ini.parse("[databases]\nx = %s\n" % value).databases() == {"x": expected}


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("[databases\nx = host=a", 1, 'no "]"'),
        ("\n\nx = host=a", 3, "before the first section"),
        ('[databases]\n"a b" = host=a', 2, "no section"),
        ("[databases]\nä = host=a", 2, "no section"),
        ("[databases]\n= host=a", 2, "no section"),
        ("[databases]\nx", 2, "no section"),
        ("[databases]\n'a = host=a", 2, "quoted name"),
        ("[databases]\nx = host='a", 2, "quotes of host are not closed"),
        ("[databases]\nx = host=''", 2, "host is empty"),
        ("[databases]\nx = host", 2, "no value for host"),
        ("[databases]\nx = host=a ; comment", 2, "no value for ;"),
        ("[databases]\nx = port=abc", 2, "not a number"),
        ("[databases]\n%include \n", 2, "names no file"),
        ("[databases]\n\0", 2, "NUL"),
    ],
)
def test_refuses_what_pgbouncer_refuses(text, line, problem):
    with pytest.raises(InvalidInput) as caught:
        Ini.parse(text)
    assert problem in caught.value.message
    assert caught.value.message.startswith("line %d: " % line)
    assert caught.value.facts["line"] == line


def test_changing_keys_changes_only_them():
    ini = Ini.parse(MAIN)
    assert ini.set_database("quoted", {"host": "10.0.0.2", "pool_size": 5, "password": None}) is True
    assert changed_lines(MAIN, ini.text()) == (
        ["  quoted = host='10.0.0.1' dbname='my ''own'' db' password='p w' connect_query='select 1; -- x=y'\n"],
        ["  quoted = host='10.0.0.2' dbname='my ''own'' db' connect_query='select 1; -- x=y' pool_size=5\n"],
    )
    assert ini.set_database("quoted", {"host": "10.0.0.2", "port": None}) is False
    assert ini.set_database("app", {"host": "b"}, exact=True) is True
    assert "\n  app = host=b\n" in ini.text()
    assert ini.set_database("local", {"host": "b c"}) and ini.set_database("bare", {"port": None, "user": "u"})
    assert "\nlocal = host='b c'\nbare=user=u\n" in ini.text()


def test_new_entries_go_behind_the_last_one_with_its_indentation_and_line_ends():
    ini = Ini.parse("[databases]\r\n  a = host=x\r\n\r\n; end\r\n[pgbouncer]\r\n")
    assert ini.set_database("b", {"host": "y", "port": 5433})
    assert ini.text() == "[databases]\r\n  a = host=x\r\n  b = host=y port=5433\r\n\r\n; end\r\n[pgbouncer]\r\n"


@pytest.mark.parametrize(
    ("text", "section", "expected"),
    [
        ("", None, "[databases]\nb = host=y\n"),
        ("", "databases", "b = host=y\n"),
        ("; just this", None, "; just this\n\n[databases]\nb = host=y\n"),
        ("; c\n", "databases", "; c\nb = host=y\n"),
        ("[pgbouncer]\na=1\n", "databases", "b = host=y\n[pgbouncer]\na=1\n"),
        ("[pgbouncer]\na = 1", None, "[pgbouncer]\na = 1\n\n[databases]\nb = host=y\n"),
        ("[databases] ; none\n\n[users]", None, "[databases] ; none\nb = host=y\n\n[users]"),
        ("[databases] [users] x = pool_mode=session\n", None, "[databases]\nb = host=y\n [users] x = pool_mode=session\n"),
        ("[databases]", None, "[databases]\nb = host=y\n"),
        ("[databases] a = host=x", None, "[databases] a = host=x\nb = host=y\n"),
    ],
)
def test_where_a_new_entry_goes(text, section, expected):
    ini = Ini.parse(text, section)
    assert ini.set_database("b", {"host": "y"})
    assert ini.text() == expected
    assert ini.databases()["b"] == {"host": "y"}


def test_removal_takes_the_line_and_every_entry_of_the_name():
    ini = Ini.parse("[databases] a = host=x\n\ta = host=y\n; a = host=z\nb = host=1\na=\n")
    assert ini.remove_database("a") is True
    assert ini.text() == "[databases]\n; a = host=z\nb = host=1\n"
    assert ini.remove_database("a") is False
    last = Ini.parse("[databases]\nx=\ny = host=1")
    assert last.remove_database("y")
    assert last.text() == "[databases]\nx=\n"


def test_a_copy_is_independent():
    ini = Ini.parse(MAIN)
    ini.copy().remove_database("app")
    assert ini.text() == MAIN


@pytest.mark.parametrize("name", ["a b", "ä", 'with"quote', "a/b", ""])
def test_names_that_only_new_versions_can_read(name):
    ini = Ini.parse("[databases]\n")
    with pytest.raises(InvalidInput):
        ini.set_database(name, {"host": "x"})
    assert ini.text() == "[databases]\n"
    if name:
        assert ini.set_database(name, {"host": "x"}, quoted_names=True)
        assert ini.databases() == {name: {"host": "x"}}
        assert "'%s' = host=x\n" % name in ini.text()


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("x" * 64, {}),
        ("pgbouncer", {}),
        ("it's", {}),
        ("x", {"host": ""}),
        ("x", {"host": "a\nb"}),
        ("x", {"password": "secret\0"}),
        ("x", {"a b": "1"}),
        ("x", {"": "1"}),
        ("x", {"port": 0}),
        ("x", {"port": 65536}),
        ("x", {"port": "abc"}),
    ],
)
def test_what_pgbouncer_cannot_hold_is_refused_before_anything_changes(name, params):
    ini = Ini.parse(MAIN)
    with pytest.raises(InvalidInput) as caught:
        ini.set_database(name, params, quoted_names=True)
    assert ini.text() == MAIN
    assert "secret" not in str(caught.value)


def test_retarget_judges_all_entries_as_they_were():
    text = (
        "[databases]\na = host=h1 port=5433 password=geheim\nb = host=h2\nc = host=h3\n* =\nd = host=h1,h2 port=5433\n"
        "e = port=5433 host='h1'\n[pgbouncer]\nx = host=h1 port=5433\n"
    )
    new, changes = retarget(text, {("h1", 5433): ("h2", 5432), ("h2", 5432): ("h1", 5433), ("", 5432): ("h9", 6000)})
    assert new == (
        "[databases]\na = host=h2 port=5432 password=geheim\nb = host=h1 port=5433\nc = host=h3\n* =host=h9 port=6000\nd = host=h1,h2 port=5433\n"
        "e = port=5432 host='h2'\n[pgbouncer]\nx = host=h1 port=5433\n"
    ).replace("* =host", "* = host")
    assert [change.name for change in changes] == ["a", "b", "*", "e"]
    assert changes[0] == Change("a", {"host": "h1", "port": "5433", "password": "********"}, {"host": "h2", "port": "5432", "password": "********"})
    assert retarget(new, {("h2", 5432): ("h1", 5433)}, names=["e"])[0] == new.replace("e = port=5432 host='h2'", "e = port=5433 host='h1'")
    assert retarget(text, {("nowhere", 1): ("h1", 1)}) == (text, [])
    assert retarget("a = host=h1\n", {("h1", 5432): ("", 5432)}, section="databases") == ("a = \n", [Change("a", {"host": "h1"}, {})])


def test_a_tree_is_read_in_pgbouncers_order():
    files = {
        "/d/main.ini": "%include /d/one.ini\nfrom_main = host=m\n[pgbouncer]\nport_of = 1\n%include two.ini\n",
        "/d/one.ini": "[databases]\na = host=first\n",
        "/d/two.ini": "port_of = 2\n[databases]\na = host=second\n%include three.ini\n",
        "/d/three.ini": "c = host=3\n",
    }
    tree = Tree.load("/d/main.ini", files.__getitem__)
    assert set(tree.files) == set(files)
    assert tree.databases() == {"a": {"host": "second"}, "from_main": {"host": "m"}, "c": {"host": "3"}}
    assert tree.setting("port_of") == "2"
    assert (tree.file_of("a"), tree.file_of("c"), tree.file_of("from_main"), tree.file_of("nope")) == ("/d/two.ini", "/d/three.ini", "/d/main.ini", None)
    assert tree.files["/d/three.ini"].set_database("d", {"host": "4"})
    assert tree.files["/d/three.ini"].text() == "c = host=3\nd = host=4\n"
    assert tree.databases()["d"] == {"host": "4"}


def test_a_tree_names_the_file_of_a_fault_and_ends_a_loop():
    with pytest.raises(InvalidInput, match=r"^/d/b\.ini, line 2: "):
        Tree.load("/d/a.ini", {"/d/a.ini": "%include b.ini\n", "/d/b.ini": "[x]\noops\n"}.__getitem__)
    with pytest.raises(InvalidInput, match="levels deep"):
        Tree.load("/d/a.ini", {"/d/a.ini": "[x]\n%include a.ini\n"}.__getitem__)


def test_passwords_are_hidden():
    assert without_secret({"host": "a", "password": "b"}) == {"host": "a", "password": "********"}


# -- properties: whatever a valid file looks like, only what was asked for changes


@given(ini_texts())
def test_parsing_loses_nothing(text):
    assert Ini.parse(text).text() == text


@given(ini_texts(), st.data(), PARAMS)
def test_setting_an_entry_changes_that_entry_and_nothing_else(text, data, params):
    ini = Ini.parse(text)
    before = ini.databases()
    name = data.draw(st.one_of(st.sampled_from(sorted(before)), NAMES) if before else NAMES)
    removed = data.draw(st.sets(KEYS)) - set(params)
    exact = data.draw(st.booleans())
    assume(name in before or (len(name.encode()) <= 63 and name != "pgbouncer"))
    wanted = {**({} if exact else {key: value for key, value in before.get(name, {}).items() if key not in removed}), **params}
    changed = ini.set_database(name, {**params, **dict.fromkeys(removed)}, exact=exact)
    assert ini.databases() == {**before, name: wanted}
    assert changed is (ini.text() != text)
    if name in before:
        old, new = text.split("\n"), ini.text().split("\n")
        assert len(old) == len(new)
        assert sum(a != b for a, b in zip(old, new)) <= 1
        # Some text stays where it would have read the same in other words: what is equal is not touched.
        assert changed or before[name] == wanted
    else:
        old_lines, new_lines = text.splitlines(), ini.text().splitlines()
        remaining = iter(new_lines)
        assert all(any(line.rstrip() == other.rstrip() or other in line for other in remaining) for line in old_lines)
        assert 1 <= ini.text().count("\n") - text.count("\n") <= 4
    again = Ini.parse(ini.text())
    assert again.set_database(name, params, exact=exact) is False
    assert again.text() == ini.text()


@given(ini_texts(), st.data())
def test_removing_an_entry_leaves_the_rest(text, data):
    ini = Ini.parse(text)
    before = ini.databases()
    name = data.draw(st.sampled_from(sorted(before)) if before else NAMES)
    settings = {key: ini.setting(key, section) for section in ("pgbouncer", "users") for key in ("a", "b")}
    assert ini.remove_database(name) is (name in before)
    assert ini.databases() == {key: value for key, value in before.items() if key != name}
    assert {key: ini.setting(key, section) for section in ("pgbouncer", "users") for key in ("a", "b")} == settings
    if name not in before:
        assert ini.text() == text
    for line in ini.text().split("\n"):
        assert line.rstrip(" \t\r") in text


@given(ini_texts(), NAMES, PARAMS)
def test_adding_and_removing_an_entry_gives_back_the_file(text, name, params):
    ini = Ini.parse(text)
    assume(name not in ini.databases())
    had_section = "databases" in ini.sections
    ini.set_database(name, params)
    ini.remove_database(name)
    if had_section:
        assert ini.text().rstrip() == text.rstrip() or ini.text().replace("\n", "").replace("\r", "") == text.replace("\n", "").replace("\r", "")
    assert Ini.parse(text).databases() == ini.databases()


@given(ini_texts(), st.sampled_from(["h1", "it's", "a b", ""]), st.integers(1, 65535))
def test_retargeting_and_back_restores_every_target(text, host, port):
    targets = {}
    for name, params in Ini.parse(text).databases().items():
        targets[name] = (params.get("host", ""), int(params.get("port", 5432)))
    assume(targets and (host, port) not in targets.values())
    chosen = sorted(targets.values())[0]
    new, changes = retarget(text, {chosen: (host, port)})
    assert changes and all(change.before != change.after for change in changes)
    moved = {name: (params.get("host", ""), int(params.get("port", 5432))) for name, params in Ini.parse(new).databases().items()}
    assert moved == {name: (host, port) if target == chosen else target for name, target in targets.items()}
    old_lines, new_lines = text.split("\n"), new.split("\n")
    assert len(old_lines) == len(new_lines)
    assert sum(a != b for a, b in zip(old_lines, new_lines)) <= len(changes)


@settings(max_examples=40)
@given(st.data(), NAMES, PARAMS)
def test_a_file_of_several_is_changed_alone(data, name, params):
    """As PgBouncer reads them: the section goes on behind an include, and of two entries the later one counts."""
    parts = {"/d/%d.ini" % n: data.draw(ini_texts()).replace("%include", ";include") for n in range(3)}
    main = "[databases]\n%include /d/0.ini\nmiddle = host=m\n[users]\n%include 1.ini\n%include 2.ini\n"
    files = {**parts, "/d/main.ini": main}
    tree = Tree.load("/d/main.ini", files.__getitem__)
    before = tree.databases()
    path = data.draw(st.sampled_from(sorted(parts)))
    own = tree.files[path].databases()
    last = tree.file_of(name)
    assume(last is None or last == path)
    assert tree.files[path].set_database(name, params) is (tree.files[path].text() != files[path])
    after = Tree.load("/d/main.ini", {**files, path: tree.files[path].text()}.__getitem__)
    assert after.databases() == tree.databases() == {**before, name: {**own.get(name, {}), **params}}
    assert after.file_of(name) == path
    assert {other: ini.text() for other, ini in after.files.items() if other != path} == {other: text for other, text in files.items() if other != path}
