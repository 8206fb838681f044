# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What leaves a module is plain JSON, and connection strings follow libpq's own rules."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import ipaddress
import json
import math
import uuid

import psycopg
import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._sql.values import (
    build_conninfo,
    conninfo_value,
    int_to_lsn,
    lsn_to_int,
    parse_conninfo,
    to_jsonable,
)
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg.adapt import Transformer
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Label(str, enum.Enum):
    PRIMARY = "primary"


@dataclasses.dataclass
class Point:
    x: object
    y: object


Row = collections.namedtuple("Row", "a b")
UTC = datetime.timezone.utc


def is_encodable(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_plain(value):
    """Only what JSON has, exactly these classes, and text that every encoder takes."""
    if isinstance(value, dict):
        return value.__class__ is dict and all(key.__class__ is str and is_plain(key) and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return value.__class__ is list and all(map(is_plain, value))
    if isinstance(value, float):
        return value.__class__ is float and math.isfinite(value)
    if isinstance(value, str):
        return value.__class__ is str and is_encodable(value)
    return value is None or value.__class__ in (bool, int)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (1.5, 1.5),
        ("text", "text"),
        ("broken \udcff", "broken \\udcff"),
        (b"bytes \xff", "bytes \\xff"),
        (bytearray(b"a"), "a"),
        (memoryview(b"b"), "b"),
        (decimal.Decimal("12.0"), 12),
        (decimal.Decimal("12.5"), 12.5),
        (decimal.Decimal("1E+3"), 1000),
        (decimal.Decimal("1E+400"), 10**400),
        (decimal.Decimal("NaN"), "NaN"),
        (decimal.Decimal("Infinity"), "Infinity"),
        (decimal.Decimal("-Infinity"), "-Infinity"),
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        (datetime.timedelta(minutes=1, milliseconds=500), 60.5),
        (datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05+00:00"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.time(3, 4), "03:04:00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (ipaddress.ip_address("10.0.0.1"), "10.0.0.1"),
        (ipaddress.ip_interface("::1/128"), "::1/128"),
        (ipaddress.ip_network("10.0.0.0/8"), "10.0.0.0/8"),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Label.PRIMARY, "primary"),
        (Point(1, {decimal.Decimal("2")}), {"x": 1, "y": [2]}),
        (Row(1, decimal.Decimal("0.5")), [1, 0.5]),
        ({1: (b"x",)}, {"1": ["x"]}),
        ({"broken \udcff": 1}, {"broken \\udcff": 1}),
        ({"b", "a"}, ["a", "b"]),
        (frozenset({2, 1}), [1, 2]),
        (Range(1, 5), "[1, 5)"),
        (Multirange([Range(1, 5)]), "{[1, 5)}"),
    ],
)
def test_each_kind_of_value(value, expected):
    found = to_jsonable(value)
    assert found == expected and type(found) is type(expected)
    assert is_plain(found)


@pytest.mark.parametrize(
    ("type_name", "text", "expected"),
    [
        ("numeric", b"10", 10),
        ("numeric", b"-Infinity", "-Infinity"),
        ("float8", b"NaN", "NaN"),
        ("int8", b"9223372036854775807", 9223372036854775807),
        ("bool", b"t", True),
        ("interval", b"1 day 00:00:01", 86401.0),
        ("uuid", b"00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000001"),
        ("inet", b"127.0.0.1", "127.0.0.1"),
        ("cidr", b"10.0.0.0/8", "10.0.0.0/8"),
        ("pg_lsn", b"1/AB", "1/AB"),
        ("bytea", b"\\xff61", "\\xffa"),
        ("jsonb", b'{"a": [1.5, null]}', {"a": [1.5, None]}),
        ("date", b"2026-01-02", "2026-01-02"),
        ("time", b"03:04:05", "03:04:05"),
        ("timestamp", b"2026-01-02 03:04:05", "2026-01-02T03:04:05"),
        ("int4range", b"[1,5)", "[1, 5)"),
        ("name", b"app", "app"),
    ],
)
def test_what_psycopg_itself_makes_of_a_type(type_name, text, expected):
    loader = Transformer().get_loader(psycopg.adapters.types[type_name].oid, psycopg.pq.Format.TEXT)
    found = to_jsonable(loader.load(text))
    assert found == expected and is_plain(found)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters()), st.binary(), st.decimals(), st.timedeltas(), st.datetimes(), st.dates(),
    st.times(), st.uuids(), st.ip_addresses(), st.sampled_from([Colour.RED, Level.HIGH, Label.PRIMARY]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(st.one_of(st.text(st.characters()), st.integers()), inner),
        st.builds(Point, inner, inner),
    ),
    max_leaves=8,
)


@given(values)
def test_whatever_goes_in_plain_json_comes_out(value):
    found = to_jsonable(value)
    assert is_plain(found)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert to_jsonable(found) == found


@given(st.integers(0, 2**64 - 1))
def test_a_position_and_its_text(position):
    assert lsn_to_int(int_to_lsn(position)) == position


@pytest.mark.parametrize(("text", "position"), [("0/0", 0), ("0/1A", 26), ("1/0", 2**32), ("a/b", 0xA0000000B)])
def test_positions_that_are_known(text, position):
    assert lsn_to_int(text) == position
    assert int_to_lsn(position) == text.upper()


# -- connection strings ------------------------------------------------------------------------------------------------

KEYWORDS = ["host", "port", "user", "password", "dbname", "application_name", "options", "passfile", "sslmode"]
WHITESPACE = " \t\n\r\v\f"
# libpq sees bytes up to a NUL; whitespace that only Unicode knows, quotes and backslashes are what a parser gets wrong.
characters = st.one_of(st.sampled_from(WHITESPACE + "'\\=\x1c\x85\xa0\u2003"), st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
texts = st.text(characters, min_size=1)


@given(st.dictionaries(st.sampled_from(KEYWORDS), texts))
@example({"password": "a\vb"})
@example({"password": "it's \\ here"})
def test_what_is_built_is_read_back_by_libpq_and_by_us(keywords):
    text = build_conninfo(keywords)
    assert parse_conninfo(text) == keywords
    assert {key: str(value) for key, value in conninfo_to_dict(text).items()} == keywords


def test_keywords_without_a_value_are_left_out():
    assert build_conninfo({"host": "db1", "port": 5432, "user": None, "password": ""}) == "host=db1 port=5432"
    assert conninfo_value("") == "''"


pieces = st.one_of(st.sampled_from([*KEYWORDS, "=", "=", " = ", "'", "\\", " ", "\v", "\\'", "no_such_keyword", "\xa0"]), st.text(characters, max_size=3))


@given(st.lists(pieces, max_size=9).map("".join))
@example("host=a\\")
@example("host='a\\")
@example("host='a'port=1")
@example("host=a\xa0b")
@example("=x")
@example("host")
@example("host = ")
@example("")
def test_any_text_means_what_it_means_to_libpq(text):
    try:
        expected = {key: str(value) for key, value in conninfo_to_dict(text).items()}
    except psycopg.Error as error:
        # libpq also knows which keywords exist.
        if "invalid connection option" not in str(error):
            with pytest.raises(ValueError):
                parse_conninfo(text)
    else:
        assert parse_conninfo(text) == expected


@pytest.mark.parametrize("text", ["host", "host=a b", "=x", "host='a", "postgresql://db1/app?sslmode=require", "postgres://db1"])
def test_what_is_no_keyword_value_string_is_refused(text):
    with pytest.raises(ValueError):
        parse_conninfo(text)


def test_an_error_does_not_show_the_password():
    with pytest.raises(ValueError) as caught:
        parse_conninfo("host=db1 password='geheim")
    assert "geheim" not in str(caught.value)
    with pytest.raises(ValueError) as caught:
        parse_conninfo("host=db1 password=my geheim")
    assert "geheim" not in str(caught.value)
