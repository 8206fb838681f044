# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which archive commands are taken: none that can say success without having archived."""

from __future__ import annotations

import itertools
import os
import subprocess

import pytest
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.archive_command import check_archive_command, hide_secrets, unproved
from ansible_collections.pgfleet.ops.plugins.module_utils._errors import InvalidInput
from hypothesis import given, settings
from hypothesis import strategies as st

GOOD = [
    "cp %p /archive/%f",
    "test ! -f /archive/%f && cp %p /archive/%f",
    "[ ! -e '/arch ive/%f' ] && cp \"%p\" '/arch ive/%f'",
    "pgbackrest --stanza=main archive-push %p",
    "envdir /etc/wal-g wal-g wal-push %p",
    "/usr/bin/rsync -a %p archive@backup:/srv/wal/%f",
    "gzip < %p > /archive/%f.gz 2>>/var/log/archive",
    "gzip -c %p | ssh backup 'cat > /archive/%f'",
    "cp %p /archive/%f.tmp && sync /archive/%f.tmp && mv /archive/%f.tmp /archive/%f",
    "cmp -s %p /archive/%f || cp %p /archive/%f",
    "cmp -s %p /archive/%f && exit 0; cp %p /archive/%f",
    "cp %p /archive/%f || (logger archiving failed; exit 1)",
    "cp %p /archive/%f || { logger archiving failed; false; }",
    "if test -d /archive; then cp %p /archive/%f; else exit 1; fi",
    "if test -d /archive; then cp %p /archive/%f; else false; fi",
    "mkdir -p /archive && cp %p /archive/%f && chmod 640 /archive/%f",
    "test -d /archive || mkdir /archive && cp %p /archive/%f",
    "test -d /archive || exit 1; cp %p /archive/%f",
    "sh -c 'test ! -f /archive/%f && cp %p /archive/%f'",
    "LC_ALL=C exec cp %p /archive/$(date +%%Y)/%f",
    "cp %p /archive/%f # || true",
    "rsync %p one:/archive/%f || rsync %p two:/archive/%f",
    "cp %p /archive/%f; exit $?",
    "exit 1; echo %p",
]
BAD = [
    "",
    "  ",
    "true",
    "/bin/true",
    "/bin/true %p",
    ":",
    "exit 0",
    "exit 0 # %p",
    "cp /archive/%f /tmp",
    "cp %%p /archive/%f",
    "echo %p",
    "test -f %p",
    "cp %p /archive/%f || true",
    "cp %p /archive/%f||true",
    "cp %p /archive/%f || :",
    "cp %p /archive/%f || /bin/true",
    "cp %p /archive/%f; true",
    "cp %p /archive/%f ; :",
    "cp %p /archive/%f; exit 0",
    "cp %p /archive/%f || exit 0",
    "cp %p /archive/%f || echo failed",
    "cp %p /archive/%f || (logger failed; true)",
    "cp %p /archive/%f &",
    "cp %p /archive/%f & wait",
    "cp %p /archive/%f | tee -a /var/log/archive",
    "cp %p /archive/%f; chmod 640 /archive/%f",
    "test -f /stop && exit 0; cp %p /archive/%f",
    "[ -e /stop ] && exit 0 || cp %p /archive/%f",
    "test -f /stop || cp %p /archive/%f",
    "test -f /archive/%f || cp %p /archive/%f",
    "if [ -f /stop ]; then exit 0; fi; cp %p /archive/%f",
    "if [ -f /stop ]; then :; else cp %p /archive/%f; fi",
    "if [ ! -f /stop ]; then cp %p /archive/%f; fi",
    "if test -f a; then cp %p x; elif test -f b; then true; else cp %p y; fi",
    "! cp %p /archive/%f",
    "sh -c 'cp %p /archive/%f || true'",
    "bash -c \"test -f  && exit 0; rsync %p a:/b/%f\"",
    "while ! cp %p /archive/%f; do test -f /stop && exit 0; done",
    "cp %p /archive/%f\ntrue",
    "cp %p /archive/%x",
    "rsync %p a:/b/%f; rsync /etc/passwd b:/b",
]  # fmt: skip


@pytest.mark.parametrize("command", GOOD)
def test_commands_that_fail_when_nothing_was_archived(command):
    check_archive_command(command)
    assert unproved(command) is None


@pytest.mark.parametrize("command", BAD)
def test_commands_that_can_lose_wal(command):
    with pytest.raises(InvalidInput):
        check_archive_command(command)


def test_the_way_to_the_loss_is_told():
    with pytest.raises(InvalidInput, match=r"without having archived: test -f /stop succeeds; exit 0\..*state paused"):
        check_archive_command("test -f /stop && exit 0; cp %p /archive/%f")


@pytest.mark.parametrize("command", ["for x in 1 2; do cp %p /archive/%f && exit; done", "cp %p '/archive/%f", "f() { cp %p x; }; f", "cp %p /a/%f >"])
def test_what_is_not_followed_is_said(command):
    check_archive_command(command)
    assert unproved(command)


# A shell of this machine is the judge: whatever it does with a command made of these, the verdict must not be better than that.
ATOMS = ["cp %p /archive/%f", "test -f /stop", "exit 0", "exit 1", "exit", "true", "false", "logger failed", "cmp -s %p /archive/%f"]
JOINED = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.builds("{0} && {1}".format, inner, inner),
        st.builds("{0} || {1}".format, inner, inner),
        st.builds("{0}; {1}".format, inner, inner),
        st.builds("( {0} )".format, inner),
        st.builds("{{ {0}; }}".format, inner),
        st.builds("if {0}; then {1}; else {2}; fi".format, inner, inner, inner),
        st.builds("if {0}; then {1}; fi".format, inner, inner),
    ),
    max_leaves=5,
)
# cp and cmp count as a copy when they succeed; which of the four succeed is told by a variable.
FAKES = """
ask() { case $CAN in *$1*) return 0;; *) return 1;; esac; }
cp() { ask c && : >copied; }
cmp() { ask m && : >copied; }
test() { ask t; }
logger() { ask l; }
"""


@settings(max_examples=25, deadline=None)
@given(JOINED)
def test_a_real_shell_agrees(command):
    try:
        check_archive_command(command + " # %p")
        accepted = True
    except InvalidInput:
        accepted = False
    loses = False
    # sh runs every case in one process, each in a subshell of its own.
    cases = ["".join(case) for size in range(5) for case in itertools.combinations("cmtl", size)]
    script = FAKES + "".join("rm -f copied; CAN='%s'; ( %s\n) >/dev/null 2>&1; echo $? $(ls copied 2>/dev/null)\n" % (case, command) for case in cases)
    directory = os.environ["HYPOTHESIS_SHELL_DIRECTORY"]
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, cwd=directory, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(cases), done
    loses = any(line == "0" for line in lines)
    # A command that the same test decides twice may be refused without need, never the other way round.
    assert not (accepted and loses), command
    if not loses and all(command.count(name) <= 1 for name in ("cp", "test", "logger", "cmp")):
        assert accepted, command


@pytest.fixture(autouse=True, scope="module")
def directory_of_the_shell(tmp_path_factory):
    os.environ["HYPOTHESIS_SHELL_DIRECTORY"] = str(tmp_path_factory.mktemp("shell"))
    yield
    del os.environ["HYPOTHESIS_SHELL_DIRECTORY"]


def test_secrets_are_hidden():
    hidden = hide_secrets("AWS_SECRET_ACCESS_KEY=abc/def PGPASSWORD='x y' curl --password=hunter2 -T %p ftp://me:geheim@host/%f && cp %p /archive")
    assert not any(word in hidden for word in ("abc", "x y", "hunter2", "geheim"))
    assert "cp %p /archive" in hidden and "ftp://me:********@host/%f" in hidden
    assert hide_secrets("cp %p /a/%f") == "cp %p /a/%f" and hide_secrets(None) is None and hide_secrets("") == ""
