# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""An editor for pgbouncer.ini that touches what it is told to touch and nothing else, to the byte.

It reads the way PgBouncer's own parser reads, which is not quite what its documentation says: a database name holds
only letters, digits and ``_ . - *``, or (since 1.25) anything in single quotes but a single quote; double quotes are a
syntax error in every version. A value ends at a space and not at a tab. Nothing may stand behind a value, not even a
comment. A section goes on through included files, and several headers and an entry may share a line.

Only in one thing this is stricter: the parameters of an entry ``*`` are read with the others. PgBouncer reads them when the
first client comes, and has no database for it where they are faulty.
"""

from __future__ import annotations

import dataclasses
import os
import re
import typing as t

from .._errors import InvalidInput

DATABASES = "databases"
MAIN = "pgbouncer"
DEFAULT_PORT = 5432
MAX_NAME_BYTES = 63
MAX_INCLUDE_DEPTH = 10

QUOTED_NAMES_SINCE = (1, 25)

# Which key of an entry exists since which version. PgBouncer refuses a whole file because of one unknown key.
KEYS_SINCE: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        (
            "dbname", "host", "port", "user", "password", "auth_user", "client_encoding", "datestyle", "timezone", "pool_size",
            "min_pool_size", "reserve_pool", "max_db_connections", "pool_mode", "connect_query", "application_name",
        ),
        (1, 18),
    ),
    "auth_dbname": (1, 19),
    "auth_query": (1, 22),
    "server_lifetime": (1, 23),
    "load_balance_hosts": (1, 24),
    "max_db_client_connections": (1, 24),
    "reserve_pool_size": (1, 24),
}  # fmt: skip
NEWEST_KNOWN = (1, 25)

_SPACE = " \t\n\v\f\r"  # what isspace() takes in the C locale; Python's own idea is wider
_NAME = re.compile(r"[A-Za-z0-9_.*-]+")
_BARE_VALUE = re.compile(r"[A-Za-z0-9_./:,@%+*~-]+")
_SECRET = "password"
_HIDDEN = "********"

Endpoint = tuple[str, int]
"""Host and port of an entry. A host "" is the local socket directory."""


class _SyntaxError(InvalidInput):
    """PgBouncer would not load this file."""


class Change(t.NamedTuple):
    """An entry whose target was changed; the parameters carry no password."""

    name: str
    before: dict[str, str]
    after: dict[str, str]


@dataclasses.dataclass(frozen=True)
class _Token:
    """A header, an include or an entry. Positions count characters of the text; ``section`` is the one it stands in."""

    kind: str
    section: str | None
    name: str
    start: int
    end: int
    value_start: int = 0


@dataclasses.dataclass(frozen=True)
class _Pair:
    """``key=value`` within an entry; ``start`` to ``end`` is all of it, the value from ``value_start`` with its quotes."""

    key: str
    value: str
    start: int
    value_start: int
    end: int
    quoted: bool


AfterInclude = t.Callable[[str, t.Optional[str]], t.Optional[str]]


class Ini:
    """One file. Use ``parse``."""

    def __init__(self, text: str, section: str | None = None, after_include: AfterInclude | None = None) -> None:
        self._section = section
        self._after_include = after_include
        self._take(text)

    @classmethod
    def parse(cls, text: str, section: str | None = None, after_include: AfterInclude | None = None) -> Ini:
        """Read a file's text.

        ``section`` is the section in force at its beginning: None for a main file, for an included one whatever the
        including file was in. ``after_include`` is asked, with the file's name and the section, which section is in force
        behind an include; without it the section is taken to go on.

        Raises InvalidInput, with the number of the line, where PgBouncer would refuse the file.
        """
        return cls(text, section, after_include)

    def copy(self) -> Ini:
        return Ini(self._text, self._section, self._after_include)

    def text(self) -> str:
        return self._text

    @property
    def last_section(self) -> str | None:
        """The section in force at the end of the file."""
        return self._last_section

    @property
    def sections(self) -> set[str]:
        """Every section that this file opens or continues an entry of."""
        found = {token.name if token.kind == "section" else token.section for token in self._tokens}
        return {name for name in found if name is not None}

    def includes(self) -> list[str]:
        """The included files' names, as they are written."""
        return [token.name for token in self._tokens if token.kind == "include"]

    def databases(self) -> dict[str, dict[str, str]]:
        """The entries of [databases] with their parameters. Of two entries with one name the last counts."""
        found = {}
        for token in self._entries():
            found[token.name] = {pair.key: pair.value for pair in self._pairs(token)}
        return found

    def setting(self, name: str, section: str = MAIN) -> str | None:
        """A setting's text, or None. The last one counts."""
        values = [self._value(token) for token in self._tokens if token.kind == "entry" and token.section == section and token.name == name]
        return values[-1] if values else None

    def set_database(self, name: str, params: t.Mapping[str, t.Any], exact: bool = False, quoted_names: bool = False) -> bool:
        """Add an entry, or change keys of it; tell whether that changed anything.

        A value None removes its key. Keys that ``params`` does not name stay, unless ``exact``. ``quoted_names`` allows
        names that only PgBouncer 1.25 and later can read.

        Raises InvalidInput for a name or a value that PgBouncer has no way to write.
        """
        wanted = {key: _text(name, key, value) for key, value in params.items() if value is not None}
        entries = self._entries(name)
        if not entries:
            self._add("%s = %s" % (_written_name(name, quoted_names), " ".join("%s=%s" % (key, _quoted(value)) for key, value in wanted.items())))
            return True
        token = entries[-1]
        present = {pair.key for pair in self._pairs(token)}
        gone = present - set(wanted) if exact else {key for key, value in params.items() if value is None} & present
        value = _without(self._value(token), gone)
        for key, new in wanted.items():
            value = _with(value, key, new)
        return self._put(token, value)

    def remove_database(self, name: str) -> bool:
        """Remove every entry of that name; tell whether there was one."""
        found = False
        while True:
            entries = self._entries(name)
            if not entries:
                return found
            found = True
            self._cut(entries[-1])

    # -- reading

    def _take(self, text: str) -> None:
        self._text = text
        self._tokens, self._last_section = _scan(text, self._section, self._after_include)
        for token in self._entries():
            self._pairs(token)

    def _entries(self, name: str | None = None) -> list[_Token]:
        return [token for token in self._tokens if token.kind == "entry" and token.section == DATABASES and name in (None, token.name)]

    def _value(self, token: _Token) -> str:
        return self._text[token.value_start : token.end]

    def _pairs(self, token: _Token) -> list[_Pair]:
        try:
            pairs = _parse_pairs(self._value(token))
            for pair in pairs:
                if pair.key == "port" and not re.fullmatch(r"[0-9]+", pair.value):
                    raise ValueError("the port is not a number")
        except ValueError as error:
            raise _syntax(self._text, token.start, 'database "%s": %s' % (token.name, error)) from error
        return pairs

    # -- writing

    @property
    def _newline(self) -> str:
        first = self._text.find("\n")
        return "\r\n" if first > 0 and self._text[first - 1] == "\r" else "\n"

    def _put(self, token: _Token, value: str) -> bool:
        if value == self._value(token):
            return False
        before = self._text[: token.value_start]
        if before.endswith("=") and value and token.value_start == token.end:
            before += " "
        self._take(before + value + self._text[token.end :])
        return True

    def _cut(self, token: _Token) -> None:
        start = self._text.rfind("\n", 0, token.start) + 1
        end = self._line_end(token.end)
        if self._text[start : token.start].strip(_SPACE):
            # The entry shares its line with a section header, which stays.
            end = token.end
            start = len(self._text[: token.start].rstrip(_SPACE))
        self._take(self._text[:start] + self._text[end:])

    def _line_end(self, position: int) -> int:
        found = self._text.find("\n", position)
        return len(self._text) if found < 0 else found + 1

    def _add(self, line: str) -> None:
        newline = self._newline
        position, indent, header = self._place()
        before, after = self._text[:position], self._text[position:]
        line = indent + line + newline
        if header:
            line = "[%s]" % DATABASES + newline + line
            if before.strip(_SPACE):
                before += newline if before.endswith("\n") else 2 * newline
        elif before and not before.endswith("\n"):
            before += newline
        self._take(before + line + after)

    def _place(self) -> tuple[int, str, bool]:
        """Where a new entry goes: position, indentation, and whether it needs a header first."""
        entries = self._entries()
        if entries:
            last = entries[-1]
            start = self._text.rfind("\n", 0, last.start) + 1
            lead = self._text[start : last.start]
            return self._line_end(last.end), "" if lead.strip(_SPACE) else lead, False
        headers = [token for token in self._tokens if token.kind == "section" and token.name == DATABASES]
        if headers:
            end = headers[-1].end
            line_end = self._line_end(end)
            crowded = any(end <= token.start < line_end for token in self._tokens)
            return end if crowded else line_end, "", False
        if self._section == DATABASES:
            return (len(self._text) if self._last_section == DATABASES else 0), "", False
        return len(self._text), "", True


def endpoint(entry: t.Mapping[str, str]) -> Endpoint:
    """Where an entry leads; without a port to 5432."""
    return entry.get("host", ""), int(entry.get("port", DEFAULT_PORT))


def retarget(
    text: str,
    mapping: t.Mapping[Endpoint, Endpoint],
    names: t.Collection[str] | None = None,
    section: str | None = None,
) -> tuple[str, list[Change]]:
    """Send entries to other servers: every entry whose host and port are a key of ``mapping`` goes to its value.

    All entries are judged as they were, so two servers can be swapped. An entry without a host counts as host "", one
    without a port as 5432; a list of hosts matches only as a whole. ``names`` limits it to these entries, ``section`` is
    as of ``Ini.parse``. Returns the new text and what was changed, in the order of the file.
    """
    ini = Ini.parse(text, section)
    changes: list[Change] = []
    # From the end, so that the positions of the entries before stay right.
    for token in reversed(ini._entries()):
        before = {pair.key: pair.value for pair in _parse_pairs(text[token.value_start : token.end])}
        target = endpoint(before)
        wanted = mapping.get(target, target)
        if wanted == target or (names is not None and token.name not in names):
            continue
        host, port = wanted
        value = text[token.value_start : token.end]
        if host != target[0]:
            value = _with(value, "host", _text(token.name, "host", host)) if host else _without(value, {"host"})
        if port != target[1]:
            value = _with(value, "port", _text(token.name, "port", port))
        lead = text[: token.value_start]
        text = (lead + " " if lead.endswith("=") and token.value_start == token.end else lead) + value + text[token.end :]
        after = {pair.key: pair.value for pair in _parse_pairs(value)}
        changes.append(Change(token.name, without_secret(before), without_secret(after)))
    return text, changes[::-1]


class Tree:
    """A main file and all that it includes, as PgBouncer loads them."""

    def __init__(self, path: str, read: t.Callable[[str], str], directory: str) -> None:
        self.path = path
        self.files: dict[str, Ini] = {}
        self._read = read
        self._directory = directory

    @classmethod
    def load(cls, path: str, read: t.Callable[[str], str], directory: str | None = None) -> Tree:
        """Read a main file. ``directory`` is the pooler's working directory, in which PgBouncer looks up relative includes.

        Raises InvalidInput as ``Ini.parse`` does, with the file's name, and whatever ``read`` raises.
        """
        tree = cls(path, read, directory or os.path.dirname(path))
        tree._load(path, None, 0)
        return tree

    def databases(self) -> dict[str, dict[str, str]]:
        """The entries that count, of all files."""
        return {token.name: {pair.key: pair.value for pair in ini._pairs(token)} for _path, ini, token in self._walk(self.path) if _is_database(token)}

    def setting(self, name: str, section: str = MAIN) -> str | None:
        """A setting's text, or None. The last one counts."""
        found = None
        for _path, ini, token in self._walk(self.path):
            if token.kind == "entry" and token.section == section and token.name == name:
                found = ini._value(token)
        return found

    def file_of(self, name: str) -> str | None:
        """The file with the entry that counts, or None."""
        found = None
        for path, _ini, token in self._walk(self.path):
            if _is_database(token) and token.name == name:
                found = path
        return found

    def _path(self, name: str) -> str:
        return os.path.normpath(os.path.join(self._directory, name))

    def _load(self, path: str, section: str | None, depth: int) -> str | None:
        if depth > MAX_INCLUDE_DEPTH:
            raise InvalidInput("%s is included more than %d levels deep" % (path, MAX_INCLUDE_DEPTH), action="Look for files that include each other")
        text = self._read(path)
        known: dict[tuple[str, str | None], str | None] = {}

        def after_include(name: str, current: str | None) -> str | None:
            if (name, current) not in known:
                known[name, current] = self._load(self._path(name), current, depth + 1)
            return known[name, current]

        try:
            ini = Ini.parse(text, section, after_include)
        except _SyntaxError as error:
            if error.facts.get("file"):
                raise
            raise _SyntaxError("%s, %s" % (path, error.message), error.expected, error.action, file=path, **error.facts) from None
        self.files[path] = ini
        return ini.last_section

    def _walk(self, path: str) -> t.Iterator[tuple[str, Ini, _Token]]:
        ini = self.files[path]
        for token in ini._tokens:
            if token.kind == "include":
                yield from self._walk(self._path(token.name))
            else:
                yield path, ini, token


def parse_params(text: str) -> dict[str, str]:
    """The parameters of an entry's text, ``key=value key='another value'``. Raises InvalidInput where PgBouncer would refuse them."""
    try:
        return {pair.key: pair.value for pair in _parse_pairs(text)}
    except ValueError as error:
        # The text itself stays out of the message: it may hold a password.
        raise InvalidInput(
            "a list of parameters cannot be read: %s" % error, expected="key=value, separated by spaces, values with spaces in single quotes"
        ) from error


def without_secret(params: t.Mapping[str, str]) -> dict[str, str]:
    """An entry's parameters as they may be shown."""
    return {key: _HIDDEN if key == _SECRET else value for key, value in params.items()}


def _syntax(text: str, position: int, problem: str) -> _SyntaxError:
    line = text.count("\n", 0, position) + 1
    return _SyntaxError("line %d: %s" % (line, problem), action="PgBouncer does not load such a file; correct it first", line=line)


def _is_database(token: _Token) -> bool:
    return token.kind == "entry" and token.section == DATABASES


def _scan(text: str, section: str | None, after_include: AfterInclude | None) -> tuple[list[_Token], str | None]:
    """The file's tokens in order and the section in force at its end."""
    tokens: list[_Token] = []
    size = len(text)
    nul = text.find("\0")
    if nul >= 0:
        raise _syntax(text, nul, "there is a NUL character")
    i = 0
    while True:
        i = _skip(text, i, _SPACE)
        if i == size:
            return tokens, section
        start = i
        if text.startswith("%include", i) and i + 8 < size and text[i + 8] in " \t":
            begin = _skip(text, i + 8, " \t")
            i = _until(text, begin, "\n")
            name = text[begin:i].rstrip(_SPACE)
            if not name:
                raise _syntax(text, start, "%include names no file")
            tokens.append(_Token("include", section, name, start, begin + len(name)))
            if after_include is not None:
                section = after_include(name, section)
        elif text[i] in "#;":
            i = _until(text, i, "\n")
        elif text[i] == "[":
            i = _until(text, i + 1, "]\n")
            if i == size or text[i] != "]":
                raise _syntax(text, start, 'a section\'s header has no "]"')
            section = text[start + 1 : i]
            i += 1
            tokens.append(_Token("section", section, section, start, i))
        else:
            if text[i] == "'":
                i = _until(text, i + 1, "'")
                name = text[start + 1 : i]
                if i == size or not name:
                    raise _syntax(text, start, "a quoted name does not end or is empty")
                i += 1
            else:
                match = _NAME.match(text, i)
                name = match.group() if match else ""
                i += len(name)
            i = _skip(text, i, " \t")
            if i == size or text[i] != "=" or not name:
                raise _syntax(text, start, "this is no section, no comment and no name = value")
            if section is None:
                raise _syntax(text, start, '"%s" stands before the first section' % name)
            begin = _skip(text, i + 1, " \t")
            i = _until(text, begin, "\n")
            tokens.append(_Token("entry", section, name, start, begin + len(text[begin:i].rstrip(_SPACE)), begin))


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _until(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] not in characters:
        position += 1
    return position


def _parse_pairs(value: str) -> list[_Pair]:
    """The parameters of an entry. Raises ValueError where PgBouncer would refuse them."""
    pairs: list[_Pair] = []
    size = len(value)
    i = 0
    while True:
        i = _skip(value, i, " ")
        if i >= size:
            return pairs
        start = i
        i = _until(value, i, "= ")
        key = value[start:i]
        i = _skip(value, i, " ")
        if i == size or value[i] != "=" or not key:
            raise ValueError("not a list of key=value: there is no value for %s" % (key or "an empty key"))
        begin = i = _skip(value, i + 1, " ")
        quoted = i < size and value[i] == "'"
        found = []
        if quoted:
            i += 1
            while i < size and (value[i] != "'" or value.startswith("''", i)):
                i += 1 + (value[i] == "'")
                found.append(value[i - 1])
            if i == size:
                raise ValueError("the quotes of %s are not closed" % key)
            i += 1
        else:
            i = _until(value, i, " ")
            found.append(value[begin:i])
        text = "".join(found)
        if not text:
            raise ValueError("%s is empty" % key)
        pairs.append(_Pair(key, text, start, begin, i, quoted))
        # PgBouncer drops the byte behind a value, whatever it is; the rest of a longer character would be left.
        if i < size and not value[i].isascii():
            raise ValueError("behind the quotes of %s comes %s instead of a space" % (key, value[i]))
        i += 1


def _with(value: str, key: str, new: str) -> str:
    """An entry's text with ``key`` set; untouched if it has that value already."""
    found = [pair for pair in _parse_pairs(value) if pair.key == key]
    if not found:
        return "%s%s%s=%s" % (value, " " if value else "", key, _quoted(new))
    last = found[-1]
    if last.value == new:
        return value
    # Quotes stay where they are: behind them a character other than a space may separate, behind a bare value not.
    return value[: last.value_start] + _quoted(new, always=last.quoted) + value[last.end :]


def _without(value: str, keys: t.Collection[str]) -> str:
    """An entry's text without these keys."""
    while True:
        pairs = _parse_pairs(value)
        position = next((number for number, pair in enumerate(pairs) if pair.key in keys), None)
        if position is None:
            return value
        if position + 1 < len(pairs):
            value = value[: pairs[position].start] + value[pairs[position + 1].start :]
        else:
            value = value[: pairs[position - 1].end] if position else ""


def _quoted(value: str, always: bool = False) -> str:
    if not always and _BARE_VALUE.fullmatch(value):
        return value
    return "'%s'" % value.replace("'", "''")


def _text(name: str, key: str, value: t.Any) -> str:
    text = ("1" if value else "0") if isinstance(value, bool) else str(value)
    if not text:
        raise InvalidInput('database "%s": PgBouncer cannot hold an empty value for %s' % (name, key), action="Leave the key out, or give null to remove it")
    if "\n" in text or "\0" in text:
        # The value itself stays out of the message: it may be a password.
        raise InvalidInput('database "%s": the value of %s has a line break or a NUL character, which PgBouncer cannot hold' % (name, key))
    if not re.fullmatch(r"[^= '\n\0]+", key):
        raise InvalidInput('database "%s": "%s" is no name of a parameter' % (name, key))
    if key == "port" and not (re.fullmatch(r"[0-9]{1,5}", text) and 0 < int(text) < 65536):
        raise InvalidInput('database "%s": the port %s is not between 1 and 65535' % (name, text))
    return text


def _written_name(name: str, quoted_names: bool) -> str:
    if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
        raise InvalidInput('the database name "%s" has more than %d bytes' % (name, MAX_NAME_BYTES))
    if name == MAIN:
        raise InvalidInput('the database name "%s" is reserved for the admin console' % name)
    if _NAME.fullmatch(name):
        return name
    if not name or set(name) & set("'\n\0"):
        raise InvalidInput(
            '"%s" cannot be a database name in PgBouncer\'s configuration' % name, expected="at least one character, no single quote, no line break"
        )
    if not quoted_names:
        raise InvalidInput(
            'the database name "%s" cannot be written for this PgBouncer' % name,
            expected="letters a to z, digits and the characters _ . - only; PgBouncer 1.25 and later take others in single quotes",
            action="Choose a plain alias as the name and put the real name into dbname",
        )
    return "'%s'" % name
