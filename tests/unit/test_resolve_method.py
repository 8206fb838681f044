# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which task file or module a method of one's own is, and what is said about one that is neither."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.pgfleet.ops.plugins.filter.resolve_method import FilterModule

resolve = FilterModule().filters()["resolve_method"]


@pytest.fixture
def directories(tmp_path):
    for name in ("inventory", "playbooks"):
        (tmp_path / name / "methods").mkdir(parents=True)
    (tmp_path / "inventory" / "methods" / "clone.yml").touch()
    (tmp_path / "playbooks" / "methods" / "clone.yml").touch()
    (tmp_path / "playbooks" / "methods" / "only.yaml").touch()
    return [str(tmp_path / "inventory"), str(tmp_path / "playbooks")]


def test_a_path_counts_from_the_inventory_then_from_the_playbook(directories):
    assert resolve("methods/clone.yml", "clone_method", [], directories) == {"kind": "file", "name": directories[0] + "/methods/clone.yml"}
    assert resolve("methods/only.yaml", "clone_method", [], directories) == {"kind": "file", "name": directories[1] + "/methods/only.yaml"}
    absolute = directories[1] + "/methods/clone.yml"
    assert resolve(absolute, "clone_method", [], directories) == {"kind": "file", "name": absolute}
    # An inventory that is no file has no directory.
    assert resolve("methods/only.yaml", "clone_method", [], ["", directories[1]])["name"] == directories[1] + "/methods/only.yaml"


def test_a_file_that_is_missing_is_named_with_the_places(directories):
    with pytest.raises(AnsibleFilterError, match=r'clone_method is "methods/none.yml", a task file that is not there') as error:
        resolve("methods/none.yml", "clone_method", [], directories)
    assert all(directory + "/methods/none.yml" in str(error.value) for directory in directories)


def test_a_module_has_its_full_name():
    assert resolve("my_ns.my_col.my_module", "restart_method") == {"kind": "module", "name": "my_ns.my_col.my_module"}
    assert resolve("my_ns.my_col.sub.my_module", "restart_method")["kind"] == "module"


@pytest.mark.parametrize("name", ["clone", "my_module", "ns.module", "a..b", "a.b.c d", "a.b.c;d", "/bin/sh", "methods/clone"])
def test_anything_else_is_an_error_that_says_what_is_expected(name):
    with pytest.raises(AnsibleFilterError) as error:
        resolve(name, "clone_method", ["basebackup", "rewind"])
    text = str(error.value)
    assert 'clone_method is "%s", which is neither a built-in method (basebackup, rewind) nor' % name in text
    assert "task file" in text and "NAMESPACE.COLLECTION.NAME" in text and "HandyRep" not in text


@pytest.mark.parametrize("name", ["", None, 5, ["clone.yml"], {"kind": "file"}])
def test_what_is_no_name_is_an_error(name):
    with pytest.raises(AnsibleFilterError, match=r"clone_method is (empty|a ).*expected the name"):
        resolve(name, "clone_method")


def test_plugins_of_handyrep_are_answered_with_what_to_use_instead():
    with pytest.raises(AnsibleFilterError, match=r'"clone_rsync" is a plugin of HandyRep; use pgfleet\.ops\.pg_clone'):
        resolve("clone_rsync", "clone_method", ["basebackup"])
