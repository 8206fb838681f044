# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""Judging an archive_command: can it say success without having archived? Such a command loses WAL for ever. Without I/O.

The command is read as a POSIX shell reads it, and every way through it is followed, each command in it once with success and once without.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._errors import InvalidInput

# What these do with the segment keeps no copy of it.
_KEEP_NOTHING = frozenset(
    ("true", ":", "false", "exit", "test", "[", "[[", "echo", "printf", "logger", "ls", "stat", "wc", "sleep", "touch", "md5sum", "sha256sum", "basename")
)
# At the end of a pipe they hide how the commands before them ended.
_HIDE_FAILURE = frozenset(("true", ":", "echo", "printf", "logger", "tee"))
_SHELLS = frozenset(("sh", "bash", "dash", "ksh", "zsh"))
_UNREAD = frozenset(("for", "while", "until", "case", "select", "function", "do", "done", "esac", "in"))
_CLOSING = frozenset((")", "}", "then", "elif", "else", "fi"))

_SUBSTITUTION = r"\$\((?:[^()']|'[^']*'|\([^()]*\))*\)"
_TOKEN = re.compile(
    r"(?P<space>(?:[ \t\r]|\\\n)+)"
    r"|(?P<comment>\#[^\n]*)"
    r"|(?P<redirect>\d*(?:>>|>&|<&|>\||<>|[<>])|&>>?)"
    r"|(?P<operator>&&|\|\||[;|&()\n])"
    r"|(?P<word>(?:'[^']*'|\"(?:[^\"\\]|\\.)*\"|" + _SUBSTITUTION + r"|`[^`]*`|\\.|[^\s;|&()<>'\"\\`])+)",
    re.S,
)
_QUOTES = re.compile(r"'([^']*)'|\"((?:[^\"\\]|\\.)*)\"|\\(.)", re.S)
_PLACEHOLDER = re.compile(r"%(.?)", re.S)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")

_SECRETS = (
    re.compile(r"(?P<head>\b\w*(?:PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|SECRET_ACCESS_KEY)\w*\s*[=:]\s*)(?P<secret>'[^']*'|\"[^\"]*\"|[^\s'\";&|]+)", re.I),
    re.compile(r"(?P<head>://[^\s/:@]*:)(?P<secret>[^\s/@]+)(?=@)"),
)


class _NotRead(Exception):
    """A part of the shell's language that is not followed here."""


@dataclasses.dataclass(frozen=True)
class Way:
    """One way through a command: how it ended so far, whether a copy was made, whether the shell has left, and what happened."""

    succeeded: bool
    archived: bool
    left: bool = False
    trace: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[bool, bool, bool]:
        return self.succeeded, self.archived, self.left


_Ways = list[Way]
_Node = t.Callable[[_Ways], _Ways]


def hide_secrets(command: str | None) -> str | None:
    """The command with what looks like a password in it taken out."""
    for pattern in _SECRETS if command else ():
        command = pattern.sub(lambda match: match["head"] + "********", command or "")
    return command


def unproved(command: str) -> str | None:
    """Why a command cannot be followed, or None if it can."""
    try:
        _ways(command)
    except _NotRead as error:
        return str(error)
    return None


def check_archive_command(command: str) -> None:
    """Raises InvalidInput for a command that can say success without having archived the segment."""
    if not command.strip():
        raise InvalidInput("the archive command is empty", expected="a command that copies %p to the archive under the name %f")
    if "\n" in command or "\0" in command:
        raise InvalidInput("the archive command has more than one line", action="Put it into a script")
    placeholders = _PLACEHOLDER.findall(command)
    strange = sorted({one for one in placeholders if one not in ("p", "f", "%")})
    if strange:
        raise InvalidInput(
            'the archive command has "%%%s"' % strange[0], expected="%p, %f, or %% for a percent sign; PostgreSQL 16 and later take nothing else"
        )
    if "p" not in placeholders:
        raise InvalidInput("the archive command has no %p, so it never reads the WAL file", expected="a command that copies %p to the archive")
    try:
        ways = _ways(command)
    except _NotRead:
        # What is written out in it is seen all the same.
        if re.search(r"\bexit\s+0\b|(\|\||;)\s*(true|:)\s*$", command):
            raise InvalidInput(
                "the archive command says success itself: %s" % hide_secrets(command), expected="a command that fails when it has archived nothing"
            )
        return
    for way in ways:
        if way.succeeded and not way.archived:
            raise InvalidInput(
                "the archive command can say success without having archived: %s" % hide_secrets("; ".join(way.trace)),
                expected="a command that fails when it has archived nothing, as PostgreSQL then removes the segment for good",
                action="To stop archiving for a while use state paused, which keeps the WAL",
            )


def _ways(command: str) -> _Ways:
    tokens = list(_tokens(command))
    node, rest = _list(tokens, 0)
    if rest != len(tokens):
        raise _NotRead('"%s" closes nothing' % tokens[rest][1])
    return node([Way(True, False)])


def _tokens(command: str) -> t.Iterator[tuple[str, str]]:
    position = 0
    while position < len(command):
        found = _TOKEN.match(command, position)
        if found is None:
            raise _NotRead("a quote or a bracket is not closed")
        position = found.end()
        kind = str(found.lastgroup)
        if kind not in ("space", "comment"):
            yield (kind, ";" if found[0] == "\n" else found[0])


# The grammar: each function takes tokens and a position, and gives what to follow and the position behind it.


def _is_end(tokens: t.Sequence[tuple[str, str]], at: int) -> bool:
    return at >= len(tokens) or tokens[at][1] in _CLOSING


def _is_operator(tokens: t.Sequence[tuple[str, str]], at: int, *texts: str) -> bool:
    return at < len(tokens) and tokens[at][0] == "operator" and tokens[at][1] in texts


def _list(tokens: t.Sequence[tuple[str, str]], at: int) -> tuple[_Node, int]:
    nodes: list[_Node] = []
    while not _is_end(tokens, at):
        node, at = _and_or(tokens, at)
        if _is_operator(tokens, at, "&"):
            node = _in_background(node)
        nodes.append(node)
        if not _is_operator(tokens, at, ";", "&"):
            break
        at += 1
    if not nodes:
        raise _NotRead("a part of it is empty")

    def follow(ways: _Ways) -> _Ways:
        for one in nodes:
            ways = _go_on(ways, one)
        return ways

    return follow, at


def _and_or(tokens: t.Sequence[tuple[str, str]], at: int) -> tuple[_Node, int]:
    first, at = _pipeline(tokens, at)
    others: list[tuple[bool, _Node]] = []
    while _is_operator(tokens, at, "&&", "||"):
        after_success = tokens[at][1] == "&&"
        node, at = _pipeline(tokens, at + 1)
        others.append((after_success, node))

    def follow(ways: _Ways) -> _Ways:
        ways = _go_on(ways, first)
        for after_success, node in others:
            waiting = [way for way in ways if way.succeeded is after_success]
            ways = _distinct([way for way in ways if way.succeeded is not after_success or way.left] + _go_on(waiting, node))
        return ways

    return follow, at


def _pipeline(tokens: t.Sequence[tuple[str, str]], at: int) -> tuple[_Node, int]:
    negated = at < len(tokens) and tokens[at][1] == "!"
    start = at = at + negated
    node, at = _command(tokens, at)
    if _is_operator(tokens, at, "|"):
        while _is_operator(tokens, at, "|"):
            last = at + 1
            _part, at = _command(tokens, last)
        text = _text(tokens[start:at])
        # A pipe ends as its last command does. A failure before it goes unseen, which only the commands after a pipe that print are blamed for here.
        hidden = tokens[last][1] in _HIDE_FAILURE
        node = _leaf(text, copies=_has_path(text) and not hidden, succeeds=hidden)
    if not negated:
        return node, at

    def follow(ways: _Ways) -> _Ways:
        return [way if way.left else dataclasses.replace(way, succeeded=not way.succeeded) for way in node(ways)]

    return follow, at


def _command(tokens: t.Sequence[tuple[str, str]], at: int) -> tuple[_Node, int]:
    if _is_end(tokens, at):
        raise _NotRead("a command is missing")
    kind, text = tokens[at]
    if text == "(" and kind == "operator":
        inner, at = _list(tokens, at + 1)
        at = _expect(tokens, at, ")")
        return _in_subshell(inner), _skip_redirects(tokens, at)
    if text == "{":
        inner, at = _list(tokens, at + 1)
        at = _expect(tokens, at, "}")
        return inner, _skip_redirects(tokens, at)
    if text == "if":
        return _if(tokens, at + 1)
    return _simple(tokens, at)


def _if(tokens: t.Sequence[tuple[str, str]], at: int) -> tuple[_Node, int]:
    condition, at = _list(tokens, at)
    then, at = _list(tokens, _expect(tokens, at, "then"))
    otherwise: _Node | None = None
    if at < len(tokens) and tokens[at][1] == "elif":
        otherwise, at = _if(tokens, at + 1)
    else:
        if at < len(tokens) and tokens[at][1] == "else":
            otherwise, at = _list(tokens, at + 1)
        at = _expect(tokens, at, "fi")

    def follow(ways: _Ways) -> _Ways:
        found = condition(ways)
        left = [way for way in found if way.left]
        yes = [way for way in found if way.succeeded and not way.left]
        no = [way for way in found if not way.succeeded and not way.left]
        # Without an else branch the whole succeeds when the condition does not hold.
        skipped = otherwise(no) if otherwise else [dataclasses.replace(way, succeeded=True) for way in no]
        return _distinct(left + then(yes) + skipped)

    return follow, at


def _simple(tokens: t.Sequence[tuple[str, str]], at: int) -> tuple[_Node, int]:
    words: list[str] = []
    start = at
    while at < len(tokens) and tokens[at][0] != "operator":
        kind, text = tokens[at]
        if kind == "redirect":
            at += 1
            if at >= len(tokens) or tokens[at][0] != "word":
                raise _NotRead("the file of a redirection is missing")
        else:
            words.append(_unquoted(text))
        at += 1
    if _is_operator(tokens, at, "("):
        raise _NotRead("it defines a function")
    text = _text(tokens[start:at])
    while words and _ASSIGNMENT.match(words[0]):
        words.pop(0)
    leaves = bool(words) and words[0] == "exec" and len(words) > 1
    if leaves:
        words.pop(0)
    if not words:
        return _leaf(text, succeeds=True), at
    name = words[0].rpartition("/")[2]
    if words[0] in _UNREAD:
        raise _NotRead('"%s" is not followed' % words[0])
    if name == "exit":
        return _exit(text, words[1:]), at
    if name in _SHELLS and "-c" in words[:-1]:
        inner, rest = _list(nested := list(_tokens(words[words.index("-c") + 1])), 0)
        if rest != len(nested):
            raise _NotRead("a part of it is empty")
        node = _in_subshell(inner)
    else:
        node = _leaf(text, copies=name not in _KEEP_NOTHING and _has_path(text), succeeds=name in ("true", ":", "echo", "printf"), fails=name == "false")
    return (_leaving(node) if leaves else node), at


def _expect(tokens: t.Sequence[tuple[str, str]], at: int, text: str) -> int:
    if at >= len(tokens) or tokens[at][1] != text:
        raise _NotRead('"%s" is missing' % text)
    return at + 1


def _skip_redirects(tokens: t.Sequence[tuple[str, str]], at: int) -> int:
    while at + 1 < len(tokens) and tokens[at][0] == "redirect":
        at += 2
    return at


# What there is to follow


def _leaf(text: str, copies: bool = False, succeeds: bool = False, fails: bool = False) -> _Node:
    def follow(ways: _Ways) -> _Ways:
        found = []
        for way in ways:
            if not fails:
                trace = way.trace if copies else (*way.trace, text if succeeds else "%s succeeds" % text)
                found.append(Way(True, way.archived or copies, False, trace))
            if not succeeds:
                found.append(Way(False, way.archived, False, (*way.trace, "%s fails" % text)))
        return _distinct(found)

    return follow


def _exit(text: str, arguments: t.Sequence[str]) -> _Node:
    def follow(ways: _Ways) -> _Ways:
        same = not arguments or arguments[0] == "$?"
        return _distinct([Way(way.succeeded if same else arguments[0] == "0", way.archived, True, (*way.trace, text)) for way in ways])

    return follow


def _in_subshell(node: _Node) -> _Node:
    return lambda ways: [dataclasses.replace(way, left=False) for way in node(ways)]


def _leaving(node: _Node) -> _Node:
    return lambda ways: [dataclasses.replace(way, left=True) for way in node(ways)]


def _in_background(node: _Node) -> _Node:
    # The shell does not wait, so nothing is known about how it ends.
    return lambda ways: _distinct([Way(True, way.archived, False, (*way.trace, "a part runs in the background")) for way in ways])


def _go_on(ways: _Ways, node: _Node) -> _Ways:
    return _distinct([way for way in ways if way.left] + node([way for way in ways if not way.left]))


def _distinct(ways: t.Iterable[Way]) -> _Ways:
    return list({way.key: way for way in reversed(list(ways))}.values())


def _text(tokens: t.Iterable[tuple[str, str]]) -> str:
    return " ".join(text for _kind, text in tokens)


def _unquoted(word: str) -> str:
    return _QUOTES.sub(lambda match: next(part for part in match.groups() if part is not None), word)


def _has_path(text: str) -> bool:
    return "p" in _PLACEHOLDER.findall(text)
