# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the variables of the playbooks reach the hosts of a cluster beside Ansible."""

import pathlib

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

VARIABLES = pathlib.Path(__file__).parents[2] / "playbooks" / "vars" / "cluster.yml"


def reached(**own):
    """The command that reaches a host with these inventory variables, without what all hosts have."""
    loader = DataLoader()
    hostvars = {"db1": {"inventory_hostname": "db1", "pgfleet_roles": ["postgresql_node"], **own}}
    variables = {
        **loader.load_from_file(str(VARIABLES), trusted_as_template=True),
        "hostvars": hostvars, "groups": {"shop": ["db1"]}, "pgfleet_cluster": "shop", "inventory_hostname": "db1",
    }  # fmt: skip
    templar = Templar(loader, variables=variables)
    argv = templar.template(variables["pgfleet_ssh_to"])["db1"]
    always = templar.template(variables["pgfleet_ssh"])
    assert argv[: len(always)] == always
    return argv[len(always) :]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", []),
        ("-o A=b  -J jump", ["-o", "A=b", "-J", "jump"]),
        ('-o ProxyCommand="ssh -W %h:%p jump"', ["-o", "ProxyCommand=ssh -W %h:%p jump"]),
        ("-o 'ProxyCommand=ssh -o \"A b\" jump'", ["-o", 'ProxyCommand=ssh -o "A b" jump']),
    ],
)
def test_words_for_ssh_are_split_as_a_shell_would(words, expected):
    assert reached(ansible_ssh_common_args=words) == [*expected, "db1"]


def test_a_host_is_reached_as_ansible_reaches_it():
    own = {"ansible_ssh_common_args": "-F a", "ansible_ssh_extra_args": "-v", "ansible_ssh_private_key_file": "k", "ansible_port": 22}
    assert reached(**own, ansible_user="deploy", ansible_host="10.0.0.1") == ["-F", "a", "-v", "-i", "k", "-p", "22", "deploy@10.0.0.1"]
    assert reached() == ["db1"]
