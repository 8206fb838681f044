# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Values as Ansible can carry them: plain JSON, with units said in the name of the key.

ansible-core 2.19 and later refuse Decimal, timedelta, UUID, addresses and enums in a result, and these are just what
psycopg 3 returns for numeric, interval, uuid and inet.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import re
import typing as t

# libpq's isspace(): the C locale's, not Unicode's.
_SPACE = " \t\n\r\v\f"
_KEYWORD = re.compile("[a-z_]+")


def to_jsonable(value: t.Any) -> t.Any:
    """Convert to str, int, float, bool, None, list and dict. Intervals become seconds, moments ISO 8601 text.

    JSON has no NaN and no infinity: they become the text that PostgreSQL prints.
    """
    if value is None or (isinstance(value, (bool, int)) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, enum.Enum):
        return to_jsonable(value.value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, decimal.Decimal):
        if value.is_finite():
            return int(value) if value == value.to_integral_value() else float(value)
        value = float("nan") if value.is_nan() else float(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, t.Mapping):
        return {str(to_jsonable(str(key))): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((to_jsonable(item) for item in value), key=str)
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    return str(value)


def split_names(setting: str) -> list[str]:
    """The names in a setting that is a list of them, such as search_path or shared_preload_libraries."""
    return [quoted.replace('""', '"') or plain for quoted, plain in re.findall(r'"((?:[^"]|"")*)"|([^\s,"]+)', setting)]


def lsn_to_int(lsn: str) -> int:
    """A log sequence number ``X/Y`` as a position in bytes."""
    high, low = lsn.split("/")
    return (int(high, 16) << 32) | int(low, 16)


def int_to_lsn(position: int) -> str:
    """A position in bytes as a log sequence number ``X/Y``."""
    return "%X/%X" % (position >> 32, position & 0xFFFFFFFF)


def conninfo_value(value: t.Any) -> str:
    """One value of a libpq connection string, quoted as libpq's ``keyword=value`` form wants it."""
    text = str(value)
    if text and not set(text) & set("'\\" + _SPACE):
        return text
    return "'%s'" % text.replace("\\", "\\\\").replace("'", "\\'")


def build_conninfo(keywords: t.Mapping[str, t.Any]) -> str:
    """A libpq connection string of the keywords that have a value."""
    return " ".join("%s=%s" % (key, conninfo_value(value)) for key, value in keywords.items() if value not in (None, ""))


def parse_conninfo(conninfo: str) -> dict[str, str]:
    """The keywords of a libpq ``keyword=value`` connection string. Raises ValueError where libpq would."""
    found: dict[str, str] = {}
    i, size = 0, len(conninfo)
    while True:
        while i < size and conninfo[i] in _SPACE:
            i += 1
        if i == size:
            return found
        start = i
        while i < size and conninfo[i] != "=" and conninfo[i] not in _SPACE:
            i += 1
        key = conninfo[start:i]
        while i < size and conninfo[i] in _SPACE:
            i += 1
        if i == size or conninfo[i] != "=":
            # Without the word: it may be the second half of a password that nobody quoted.
            raise ValueError('missing "=" before character %d of a connection string' % (i + 1))
        if not _KEYWORD.fullmatch(key):
            raise ValueError("character %d of a connection string begins no keyword, and the URI form is not understood" % (start + 1))
        i += 1
        while i < size and conninfo[i] in _SPACE:
            i += 1
        quoted = i < size and conninfo[i] == "'"
        i += quoted
        value: list[str] = []
        while i < size and (conninfo[i] != "'" if quoted else conninfo[i] not in _SPACE):
            if conninfo[i] == "\\":
                i += 1
                if i == size:
                    break
            value.append(conninfo[i])
            i += 1
        if quoted:
            if i == size:
                raise ValueError("unterminated quote in a connection string")
            i += 1
        found[key] = "".join(value)
