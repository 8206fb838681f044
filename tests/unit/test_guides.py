# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guides name nothing that is not in this collection: tests, modules, playbooks, roles, other guides."""

from __future__ import annotations

import re

import pytest
from test_contract import MODULES, PLAYBOOKS, ROLES, ROOT

DOCS = ROOT / "docs"
INVARIANTS = (DOCS / "invariants.md").read_text()
OPERATIONS = (DOCS / "operations.md").read_text()
TESTS = {name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}


def rows(text):
    return [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| |")]


def test_each_invariant_has_tests_that_exist():
    found = rows(INVARIANTS)
    assert [int(line.split("|")[1]) for line in found] == list(range(1, 14))
    for line in found:
        named = set(re.findall(r"`(test_\w+)`", line.split("|")[4]))
        assert len(named) >= 2
        assert named <= TESTS, named - TESTS


def test_the_operations_are_there():
    known = set(MODULES) | set(ROLES) | {name[:-4] for name in PLAYBOOKS}
    for line in rows(OPERATIONS)[1:]:
        for cell in line.split("|")[2:]:
            for name in re.findall(r"`([a-z_]+)[^`]*`", cell):
                assert name in known or name == "fail_on", name


@pytest.mark.parametrize("path", [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links_lead_to_files(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


# They change no node and no pooler: they look, they configure PoWA or foreign data, they are steps of others, or they are there to end a lock.
LOCKLESS = {"show_cluster", "name_cluster", "demo", "deploy_datasource", "register_powa_servers", "move_powa", "release_lock", "deploy_foreign_data"}


@pytest.mark.parametrize("name", [name for name in PLAYBOOKS if name[:-4] not in LOCKLESS])
def test_a_playbook_that_changes_a_cluster_takes_its_lock_and_gives_it_back(name):
    text = (ROOT / "playbooks" / name).read_text()
    block, always = text.split("      always:\n")
    assert "ansible.builtin.include_tasks: tasks/lock.yml" in block
    assert "ansible.builtin.include_tasks: tasks/unlock.yml" in always
