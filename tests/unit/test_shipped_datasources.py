# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The declarations in playbooks/datasources: complete, described, and as docs/datasources.md has them."""

from __future__ import annotations

import pathlib
import re

import pytest
import yaml
from ansible_collections.pgfleet.ops.plugins.module_utils._powa.datasource import check_name, parse_columns

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "playbooks" / "datasources").glob("*.yml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_declaration_is_complete(path):
    declared = yaml.safe_load(path.read_text())
    assert check_name(declared["name"]) == path.stem
    assert set(declared) <= {"name", "description", "columns", "query", "language", "extensions", "security_definer"}
    columns = parse_columns(declared["columns"])
    assert {column.kind for column in columns} == {"label", "gauge", "counter"}
    assert all(entry["description"] for entry in declared["columns"])
    if declared.get("security_definer"):
        # What acts with the rights of its owner takes no statement from anybody.
        assert "pgbouncer_source_user" in declared["query"] and not re.search(r"dblink_exec|password\s*=", declared["query"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_documentation_names_every_column(path):
    text = (ROOT / "docs" / "datasources.md").read_text()
    chapter = text.split("\n## %s\n" % path.stem)[1].split("\n## ")[0]
    assert [entry["name"] for entry in yaml.safe_load(path.read_text())["columns"] if "`%s`" % entry["name"] not in chapter] == []


def test_there_are_two():
    assert [path.stem for path in FILES] == ["pgbouncer", "replication"]
