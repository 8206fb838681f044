# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guide from HandyRep has an answer for every name of HandyRep's, and names nothing that is not in this collection."""

from __future__ import annotations

import pathlib
import re

import pytest
import yaml
from ansible_collections.pgfleet.ops.plugins.module_utils._cluster.model import STATUS_NUMBERS
from ansible_collections.pgfleet.ops.plugins.plugin_utils.handyrep_names import PLUGINS, SETTINGS
from test_contract import MODULES, PACKAGE, PLAYBOOKS, ROLES, ROOT, documented_options, role_options
from test_contract import PLUGINS as PLUGIN_FILES

GUIDE = (ROOT / "docs" / "handyrep.md").read_text()
NAMES = yaml.safe_load((pathlib.Path(__file__).parent / "data" / "handyrep_names.yml").read_text())
PLAYBOOK_NAMES = {name[:-4] for name in PLAYBOOKS}
INVENTORY_OPTIONS = {"cluster", "accepted", "strict", "host_prefix", "servers_save", "override_server_file", "handyrep_conf"}
# What belongs to Ansible, PostgreSQL, HandyRep itself or the shell.
ELSEWHERE = {
    "--check", "ansible-inventory --host", "ansible-playbook -v", "ansible.cfg", "log_path", "group_vars", "host_vars", "journalctl -t pgfleet",
    "handyrep.conf", "handyrep", "primary_conninfo", "standby.signal", "archive_cleanup_command", "reclone", "ansible_host", "ansible_user",
    "ansible_ssh_private_key_file",
}  # fmt: skip
# Names of what a module returns.
RETURNED = {"status", "status_number", "primary", "nodes", "role", "candidates"}


def tables():
    """Rows of the guide's tables by their heading, each a list of cells."""
    found, heading = {}, ""
    for line in GUIDE.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|") and not re.match(r"\|[-|]+\|$", line):
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split(" | ")])
    # The first row of each is its head.
    return {heading: rows[1:] for heading, rows in found.items()}


TABLES = tables()
HEADINGS = {
    "handyrep": "[handyrep]", "passwords": "[passwords]", "failover": "[failover]", "extra_failover_commands": "[extra_failover_commands]",
    "archive": "[archive]", "server": "[server_defaults], [servers] and servers.save",
}  # fmt: skip


def named(heading):
    return [name for row in TABLES[heading] for name in re.findall(r"`([^`]+)`", row[0])]


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("Functions", NAMES["functions"]),
        ("Plugins", NAMES["plugins"]),
        ("[plugins]", NAMES["plugin_keys"]),
        ("Statuses", NAMES["statuses"]),
        *((HEADINGS[section], keys) for section, keys in NAMES["settings"].items()),
    ],
)
def test_each_name_of_handyrep_has_one_answer(heading, expected):
    assert sorted(named(heading)) == sorted(expected)
    assert all(len(row) == len(TABLES[heading][0]) and len(row[-1]) >= 3 for row in TABLES[heading])


def test_the_inventory_plugin_and_the_methods_know_the_same_names():
    assert set(PLUGINS) == set(NAMES["plugins"])
    assert {section: set(keys) for section, keys in SETTINGS.items()} == {section: set(keys) for section, keys in NAMES["settings"].items()}


def variables():
    found = {key for role in ROLES for key in role_options(role)}
    texts = [path.read_text() for path in (PLUGIN_FILES / "plugin_utils").glob("*.py")]
    return found | {name for text in texts for name in re.findall(r'"((?:pgfleet|handyrep|pgbouncer|postgresql_node|wal_archive)_\w+)"', text)}


def playbook_text(name):
    """A playbook with the task files that it includes, from wherever they are."""
    text = (ROOT / "playbooks" / (name + ".yml")).read_text()
    for path in re.findall(r"[\w/]+/[\w]+\.yml", text):
        if (ROOT / "playbooks" / path).is_file():
            text += (ROOT / "playbooks" / path).read_text()
    return text


def is_option(module, path):
    options = documented_options(module)
    for key in path.split("."):
        if key not in options:
            return False
        options = options[key].get("suboptions") or {}
    return True


def exists(token):
    """Whether what the guide puts between backquotes is there."""
    call = re.fullmatch(r"([a-z_]+)((?: -e [a-z_]+=[\w.]+)+)", token)
    if call:
        text = playbook_text(call.group(1)) if call.group(1) in PLAYBOOK_NAMES else ""
        return all(re.search(r"\b%s\b" % name, text) for name in re.findall(r"-e ([a-z_]+)=", call.group(2)))
    module, _dot, option = token.partition(".")
    if module in MODULES:
        return not option or is_option(module, option)
    if token.startswith("docs/"):
        return (ROOT / token).is_file()
    return token in {*PLAYBOOK_NAMES, *ROLES, *ELSEWHERE, *RETURNED, *INVENTORY_OPTIONS, *variables()}


def answers():
    for heading, rows in TABLES.items():
        for row in rows:
            # Before the answer of a status stands its number, and after a protection its test.
            for token in re.findall(r"`([^`]+)`", row[2] if heading == "Statuses" else row[1]):
                yield heading, token, row


@pytest.mark.parametrize("token", sorted({token for _heading, token, _row in answers()}))
def test_whatever_the_guide_names_exists(token):
    assert exists(token)


@pytest.mark.parametrize("token", ["pg_clon", "pg_clone.recloned", "pg_cluster_info.nodes.prioritys", "switch_over -e kandidate=db2", "postgresql_nod_port",
                                   "docs/missing.md", "fail_ower", "switch_ove -e candidate=x"])  # fmt: skip
def test_what_does_not_exist_is_noticed(token):
    assert not exists(token)


def test_what_the_names_point_at_exists():
    known = {*MODULES, *PLAYBOOK_NAMES, *ROLES, "handyrep"}
    texts = [found.instead for found in PLUGINS.values()] + [found.instead for section in SETTINGS.values() for found in section.values()]
    missing = {name for text in texts for name in re.findall(r"\bpgfleet\.ops\.(\w+)", text)} - known
    assert sorted(missing) == []
    for name in {name for text in texts for name in re.findall(r"\bdocs/\w+\.md", text)}:
        assert (ROOT / name).is_file(), name


def test_the_commands_of_the_guide_are_playbooks_that_take_these_variables():
    commands = re.findall(r"ansible-playbook .*?pgfleet\.ops\.(\w+)(.*)", GUIDE)
    assert len(commands) >= 3
    for name, rest in commands:
        assert name in PLAYBOOK_NAMES, name
        for variable in re.findall(r"-e (\w+)=", rest):
            assert re.search(r"\b%s\b" % variable, playbook_text(name)), (name, variable)


def test_the_options_of_the_inventory_file_are_those_of_the_plugin():
    path = PLUGIN_FILES / "inventory" / "handyrep.py"
    documentation = yaml.safe_load(re.search(r'DOCUMENTATION = r"""(.*?)"""', path.read_text(), re.S).group(1))
    assert set(documentation["options"]) == {"plugin", *INVENTORY_OPTIONS}
    assert PACKAGE.startswith("ansible_collections.%s" % documentation["options"]["plugin"]["choices"][0].rpartition(".")[0])


def test_the_numbers_of_the_statuses_are_those_that_the_modules_return():
    assert {re.sub("`", "", row[0]): int(row[1]) for row in TABLES["Statuses"]} == STATUS_NUMBERS


def test_each_fault_has_a_test_that_tries_to_bring_it_back():
    rows = TABLES["What was wrong, and what protects now"]
    tests = {name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    assert len(rows) >= 15
    for row in rows:
        (name,) = re.findall(r"`(test_\w+)`", row[2])
        assert name in tests, name
