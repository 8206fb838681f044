# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory plugin handyrep: what HandyRep's files say, as groups and variables, and what they must never say."""

from __future__ import annotations

import json

import pytest
import yaml
from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import VaultLib, VaultSecret
from ansible.utils.display import Display
from ansible_collections.pgfleet.ops.plugins.inventory import handyrep
from ansible_collections.pgfleet.ops.plugins.plugin_utils.handyrep_names import PLUGINS, instead_of
from ansible_collections.pgfleet.ops.plugins.plugin_utils.handyrep_site import BadSetting, Section, Translation, group_name
from hypothesis import given
from hypothesis import strategies as st

CONF = """
# A site of two database servers, two poolers and an archive.
[handyrep]
    cluster_name = Orders EU-1
    server_file = servers.save
    master_check_method = one_hr_master
    handyrep_db = monitor
    postgres_superuser = postgres
    replication_user = "streamer"
    log_verbose = yes

[passwords]
    superuser_pass = "topsecret, %(really)s"
    handyrep_db_pass = topsecret
    replication_pass = topsecret
    bind_password = topsecret

[failover]
    auto_failover = off
    poll_method = poll_isready
    selection_method = select_replica_furthest_ahead
    connection_failover_method = multi_pgbouncer
    remaster = None

[archive]
    archiving = False
    archive_script_method = archive_two_servers
    archive_delete_method =

[server_defaults]
    port = 5440
    pgdata = /var/lib/postgresql/15/main
    pgconf = /etc/postgresql/15/main
    ssh_user = deploy
    ssh_key = .ssh/id_orders
    restart_method = restart_service
    lag_limit = 64
    failover_priority = 50

[servers]
    [[john]]
        hostname = 10.1.0.11
        role = master
        failover_priority = 1
    [[paul]]
        hostname = 10.1.0.12
        role = replica
        port = "5441"
        enabled = "True"
    [[bouncer1]]
        hostname = 10.1.0.21
        role = pgbouncer
        port = 6432
    [[vault]]
        hostname = 10.1.0.31
        role = archive
    [[stuart]]
        hostname = 10.1.0.13
        role = replica
        enabled = no

[plugins]
    [[restart_service]]
        service_name = postgresql
    [[multi_pgbouncer]]
        owner = pgbouncer
        config_location = "/etc/pgbouncer/pgbouncer.ini"
        database_list = orders, billing
        readonly_suffix = _read
        all_replicas = True
        extra_connect_param = "pool_size=7 connect_timeout=3"
    [[archive_delete_find]]
        archive_directory = /srv/wal
        archive_delete_hours = 48
    [[push_email_alert_simple]]
        smtp_pass = topsecret
"""


@pytest.fixture
def files(tmp_path):
    """A directory with an inventory file of the plugin and a handyrep.conf; returns what writes and parses them."""
    class Files:
        path = tmp_path

        def write(self, conf=CONF, saved=None, name="handyrep.yml", **options):
            (tmp_path / "handyrep.conf").write_text(conf)
            if saved is not None:
                (tmp_path / "servers.save").write_text(saved if isinstance(saved, str) else json.dumps({"servers": saved, "status": {"pid": 4711}}))
            source = tmp_path / name
            source.write_text(json.dumps({"plugin": "pgfleet.ops.handyrep", "handyrep_conf": "handyrep.conf", **options}))
            return source

        def parse(self, *sources, vault=None):
            """As Ansible does, but a source that cannot be parsed is an error. Returns the inventory and the warnings."""
            loader = DataLoader()
            if vault:
                loader.set_vault_secrets([("default", VaultSecret(vault))])
            manager = InventoryManager(loader=loader, parse=False)
            for source in sources:
                plugin = handyrep.InventoryModule()
                # What Ansible's loader does with a plugin of a collection.
                plugin._load_name = plugin.NAME
                plugin._redirected_names = [plugin.NAME]
                C.config.initialize_plugin_configuration_definitions("inventory", plugin.NAME, yaml.safe_load(handyrep.DOCUMENTATION)["options"])
                assert plugin.verify_file(str(source))
                plugin.parse(manager._inventory, loader, str(source))
            manager.reconcile_inventory()
            return manager

        def variables(self, manager, host):
            """What a host gets, its groups' variables included."""
            found = {}
            for group in sorted(manager.get_host(host).get_groups(), key=lambda group: group.depth):
                found.update(group.get_vars())
            return {**found, **manager.get_host(host).vars}

    return Files()


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(Display, "warning", lambda self, msg, formatted=False, **_more: found.append(msg))
    return found


def members(manager, group):
    return sorted(host.name for host in manager.groups[group].get_hosts())


# -- from the files to an inventory ----------------------------------------------------------------------------------------


def test_groups_and_variables_are_those_that_the_playbooks_need(files, warnings):
    manager = files.parse(files.write())
    assert members(manager, "Orders_EU_1") == ["bouncer1", "john", "paul", "vault"]
    assert members(manager, "Orders_EU_1_nodes") == ["john", "paul"] and members(manager, "Orders_EU_1_poolers") == ["bouncer1"]
    assert members(manager, "Orders_EU_1_archives") == ["vault"] and members(manager, "Orders_EU_1_disabled") == ["stuart"]
    john, paul = files.variables(manager, "john"), files.variables(manager, "paul")
    for key, value in {
        "pgfleet_roles": ["postgresql_node"], "pgfleet_cluster": "Orders_EU_1", "handyrep_cluster_name": "Orders EU-1", "pgfleet_managed": False,
        "pgfleet_lag_limit_bytes": 64 * 1024 * 1024, "pgfleet_strategy": "lsn", "ansible_host": "10.1.0.11", "ansible_user": "deploy",
        "ansible_ssh_private_key_file": "~/.ssh/id_orders", "handyrep_role": "master", "postgresql_node_port": 5440, "postgresql_node_priority": 1,
        "postgresql_node_data_directory": "/var/lib/postgresql/15/main", "postgresql_node_config_directory": "/etc/postgresql/15/main",
        "postgresql_node_version": "15", "postgresql_node_bin_directory": "/usr/lib/postgresql/15/bin", "postgresql_node_method": "systemd",
        "postgresql_node_unit": "", "postgresql_node_user": "postgres", "postgresql_node_replication_user": "streamer",
    }.items():  # fmt: skip
        assert john[key] == value, key
    assert (paul["postgresql_node_port"], paul["postgresql_node_priority"], paul["handyrep_role"]) == (5441, 50, "replica")
    pooler = files.variables(manager, "bouncer1")
    for key, value in {
        "pgfleet_roles": ["pgbouncer"], "pgbouncer_port": 6432, "pgbouncer_config_file": "/etc/pgbouncer/pgbouncer.ini", "pgbouncer_owner": "pgbouncer",
        "pgbouncer_databases_file": "/etc/pgbouncer/pgbouncer.ini", "pgbouncer_database_list": ["orders", "billing", "monitor"],
        "pgbouncer_readonly_suffix": "_read", "pgbouncer_all_replicas": True, "pgbouncer_extra_connect_param": "pool_size=7 connect_timeout=3",
    }.items():  # fmt: skip
        assert pooler[key] == value, key
    assert not any(key.startswith("postgresql_node") for key in pooler)
    vault = files.variables(manager, "vault")
    assert vault["pgfleet_roles"] == ["wal_archive"] and vault["wal_archive_directory"] == "/srv/wal" and vault["wal_archive_keep_hours"] == 48
    stuart = files.variables(manager, "stuart")
    assert stuart["pgfleet_roles"] == [] and stuart["pgfleet_cluster"] == "Orders_EU_1_disabled" and "pgfleet_managed" not in stuart
    (warning,) = warnings
    assert "- disabled: stuart not enabled" in warning and warning.count("\n- ") == 1


def test_what_the_defaults_say_is_a_groups_so_that_group_vars_can_override_it(files, warnings):
    manager = files.parse(files.write())
    own = {name: set(manager.get_host(name).vars) - {"inventory_file", "inventory_dir"} for name in ("john", "paul", "bouncer1")}
    assert own["john"] == {"ansible_host", "handyrep_role", "postgresql_node_priority"}
    assert own["paul"] == {"ansible_host", "handyrep_role", "postgresql_node_port"}
    assert own["bouncer1"] == {"ansible_host", "handyrep_role", "pgbouncer_port"}


def test_programs_that_nodes_do_not_share_are_each_nodes_own(files, warnings):
    conf = CONF.replace("        port = \"5441\"", "        pgdata = /srv/paul\n        pgconf = /srv/paul/")
    manager = files.parse(files.write(conf))
    john, paul = files.variables(manager, "john"), files.variables(manager, "paul")
    assert john["postgresql_node_version"] == "15" and "postgresql_node_version" not in paul and "postgresql_node_bin_directory" not in paul
    assert paul["postgresql_node_data_directory"] == paul["postgresql_node_config_directory"] == "/srv/paul"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("restart_method = restart_service", "restart_method = restart_pg_ctl"), {"method": "pg_ctl", "unit": ""}),
        (("service_name = postgresql", "service_name = postgresql@15-orders"), {"method": "systemd", "unit": "postgresql@15-orders"}),
        (("pgconf = /etc/postgresql/15/main", "pgconf = /srv/15/postgresql.conf"), {"config_directory": "/srv/15", "unit": "postgresql"}),
        (("[[restart_service]]", "[[promote_pg_ctl]]\n pg_ctl_path = /opt/pg/bin/pg_ctl\n[[restart_service]]"), {"bin_directory": "/opt/pg/bin"}),
        (("[[restart_service]]", "[[promote_pg_ctl]]\n pg_ctl_path = /usr/bin/pg_ctl\n[[restart_service]]"), {"bin_directory": "/usr/lib/postgresql/15/bin"}),
        (("pgdata = /var/lib/postgresql/15/main", "pgdata = /var/lib/pgsql/16/data"), {"version": "16", "bin_directory": "/usr/pgsql-16/bin"}),
        (("failover_priority = 1\n", "failover_priority = \n"), {"priority": 50}),
    ],
)
def test_how_a_node_is_run(files, warnings, change, expected):
    assert change[0] in CONF
    john = files.variables(files.parse(files.write(CONF.replace(*change))), "john")
    assert {key: john["postgresql_node_" + key] for key in expected} == expected


def test_bigip_poolers_keep_their_databases_in_a_file_of_their_own(files, warnings):
    conf = CONF.replace("connection_failover_method = multi_pgbouncer", "connection_failover_method = multi_pgbouncer_bigip").replace(
        "[[multi_pgbouncer]]", "[[multi_pgbouncer_bigip]]\n dblist_location = /etc/pgbouncer/orders.ini"
    )
    pooler = files.variables(files.parse(files.write(conf)), "bouncer1")
    assert pooler["pgbouncer_databases_file"] == "/etc/pgbouncer/orders.ini" and pooler["pgbouncer_config_file"] == "/etc/pgbouncer/pgbouncer.ini"
    assert "- multi_pgbouncer_bigip: " in warnings[0]


# -- servers.save ----------------------------------------------------------------------------------------------------------

SAVED = {
    "ringo": {"hostname": "10.1.0.14", "role": "master", "enabled": True, "port": 5440, "status": "healthy", "status_no": 1, "lag": 3,
              "status_ts": "2026-01-01 00:00:00", "status_message": None, "failover_priority": "2", "ssh_key": None},
    "john": {"hostname": "10.1.0.11", "role": "replica", "enabled": "False"},
}  # fmt: skip


def test_saved_servers_win_as_in_handyrep(files, warnings):
    manager = files.parse(files.write(saved=SAVED))
    assert members(manager, "Orders_EU_1") == ["ringo"] and members(manager, "Orders_EU_1_disabled") == ["john"]
    ringo = files.variables(manager, "ringo")
    assert ringo["postgresql_node_priority"] == 2 and ringo["ansible_user"] == "deploy" and ringo["ansible_ssh_private_key_file"] == "~/.ssh/id_orders"
    assert not {key for key in ringo if "status" in key or key == "lag"}


@pytest.mark.parametrize("where", ["conf", "option"])
def test_the_files_servers_win_when_told_so(files, warnings, where):
    conf = CONF.replace("[passwords]", "override_server_file = True\n[passwords]") if where == "conf" else CONF
    manager = files.parse(files.write(conf, saved="not even JSON", **({"override_server_file": True} if where == "option" else {})))
    assert members(manager, "Orders_EU_1_nodes") == ["john", "paul"]


def test_a_named_file_of_servers_must_be_there(files):
    with pytest.raises(AnsibleError, match=r"elsewhere\.save"):
        files.parse(files.write(servers_save="elsewhere.save"))


@pytest.mark.parametrize("saved", ["{", "[]", '{"servers": []}', '{"status": {}}'])
def test_a_broken_file_of_servers_is_no_reason_to_take_the_others(files, saved):
    """HandyRep took those of the file then, which are as old as its first start."""
    with pytest.raises(AnsibleError, match=r"servers\.save cannot be read: it"):
        files.parse(files.write(saved=saved))


# -- secrets and foreign text ------------------------------------------------------------------------------------------------


def everything(manager, warnings=()):
    groups = {name: group.get_vars() for name, group in manager.groups.items()}
    return repr(([host.vars for host in manager.hosts.values()], groups, list(warnings)))


def test_no_password_leaves_the_file(files, warnings):
    conf = CONF.replace("pool_size=7", "password=topsecret pool_size=7").replace(
        "    [[john]]", "    [[george]]\n        hostname = g\n        ldap_pass = topsecret\n    [[john]]"
    )
    manager = files.parse(files.write(conf))
    assert "topsecret" not in everything(manager, warnings)
    assert "- extra_connect_param: " in warnings[0] and "- george.ldap_pass: " in warnings[0]
    assert files.variables(manager, "bouncer1")["pgbouncer_extra_connect_param"] == ""


@pytest.mark.parametrize("line", ['superuser_pass = "topsecret', "topsecret without a key", "superuser_pass = '''topsecret", "[[[[topsecret]"])
def test_no_password_is_in_an_error_about_the_files_form(files, line):
    with pytest.raises(AnsibleError, match=r"handyrep\.conf cannot be read: line \d+") as caught:
        files.parse(files.write(CONF.replace("    superuser_pass", "    %s\n    superuser_pass" % line)))
    error = caught.value
    while error is not None:
        assert "topsecret" not in str(error)
        error = error.__cause__
    assert caught.value.__suppress_context__


def test_an_encrypted_file_is_read(files, warnings):
    source = files.write()
    encrypted = VaultLib([("default", VaultSecret(b"key"))]).encrypt(CONF.encode())
    (files.path / "handyrep.conf").write_bytes(encrypted)
    assert members(files.parse(source, vault=b"key"), "Orders_EU_1_nodes") == ["john", "paul"]


# -- what is told ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "name", "instead"),
    [
        ("auto_failover = off", "auto_failover = True", "auto_failover", "check_failover"),
        ("archiving = False", "archiving = True", "archive_two_servers", "pgfleet.ops.pg_archiving"),
        ("remaster = None", "restart_master = 1", "restart_master", "pgfleet.ops.restart_cluster"),
        ("restart_method = restart_service", "restart_method = restart_daemontools", "restart_daemontools", "start_command"),
        ("remaster = None", "poll_intervall = 3", "failover.poll_intervall", "nothing that HandyRep's core knows"),
        ("[failover]", "[failovr]\n[failover]", "failovr", "no section"),
        ("port = 5440", "clone_method = clone_zfs", "clone_zfs", "docs/methods.md"),
        ("port = 5440", "clone_method = clone_rsync", "clone_rsync", "pgfleet.ops.pg_clone"),
        ("[archive]", "[extra_failover_commands]\n[[lb]]\ncommand = haproxy_update\n[archive]", "haproxy_update", "HAProxy"),
        ("[archive]", "[extra_failover_commands]\n[[lb]]\ncommand = own\n[archive]", "extra_failover_commands", "AWX"),
        ("role = archive", "role = bigip", "others", "vault (bigip)"),
        ("postgres_superuser = postgres", "postgres_superuser = dba", "postgres_superuser", "dba"),
        ("/15/main\n    pgconf = /etc/postgresql/15", "/9.3/main\n    pgconf = /etc/postgresql/9.3", "version", "13 and later"),
        ("failover_priority = 1\n", "failover_priority = 1\n        lag_limit = 3\n", "lag_limit", "john"),
        ("port = 5440", "recovery_template = own.template", "recovery_template", "restore_command"),
        ("archive_directory = /srv/wal", "archive_directory =", "archive_directory", "set wal_archive_directory"),
        ("log_verbose = yes", "push_alert_method = push_email_alert_simple", "push_email_alert_simple", "AWX"),
    ],
)
def test_what_has_no_effect_or_needs_work_is_named_with_what_to_use(files, warnings, old, new, name, instead):
    assert old in CONF
    conf = CONF.replace(old, new)
    files.parse(files.write(conf))
    lines = [line for line in warnings.pop().splitlines() if line.startswith("- %s: " % name)]
    assert len(lines) == 1 and instead in lines[0] and not warnings
    with pytest.raises(AnsibleError, match="- %s: " % name.replace(".", r"\.")):
        files.parse(files.write(conf, strict=True))
    # Known and done with.
    files.parse(files.write(conf, accepted=[name, "disabled", "archiving", "extra_failover_commands"], strict=True))
    assert warnings == []


def test_what_is_merely_configured_is_not_warned_about(files, warnings):
    """HandyRep's sample has a section for each of its plugins, most of which nobody uses."""
    sections = "".join("    [[%s]]\n        key = value\n" % name for name in sorted(PLUGINS) if "[[%s]]" % name not in CONF)
    files.parse(files.write(CONF + sections, accepted=["disabled"]))
    assert warnings == []


def test_an_old_plugins_name_is_answered_with_what_to_use():
    assert "pgfleet.ops.pg_clone" in instead_of("clone_rsync") and instead_of("clone_zfs") is None


# -- what is refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("port = 5440", "port = abc", r"port of .* is 'abc', expected a whole number"),
        ("lag_limit = 64", "lag_limit = 64.5", r"lag_limit of .* expected a whole number"),
        ("enabled = no", "enabled = maybe", r"enabled of the server stuart is 'maybe', expected True or False"),
        ("hostname = 10.1.0.12", "hostname =", r"the server paul has no hostname"),
        ("hostname = 10.1.0.12", "hostname = a, b", r"hostname of the server paul is \['a', 'b'\], expected one value"),
        ("pgdata = /var/lib/postgresql/15/main", "pgdata = /", r"pgdata of .* expected an absolute path"),
        ("pgdata = /var/lib/postgresql/15/main", "pgdata = data", r"pgdata of .* expected an absolute path"),
        ("cluster_name = Orders EU-1", "cluster_name = all", r"set the option cluster"),
        ("cluster_name = Orders EU-1", "cluster_name = %(nothing)s", r"handyrep: cluster_name has a %\(name\)s"),
        ("[handyrep]", "plugins = 1\n[handyrep]", r"line \d+"),
    ],
)
def test_what_cannot_be_right_is_refused_with_its_name(files, warnings, old, new, message):
    assert old in CONF
    with pytest.raises(AnsibleError, match=message):
        files.parse(files.write(CONF.replace(old, new)))


@pytest.mark.parametrize("name", ["handyrep", "failover", "archive", "server_defaults", "servers", "plugins", "extra_failover_commands"])
def test_a_setting_where_a_section_is_expected(name):
    with pytest.raises(BadSetting, match=r"%s is a setting, expected the section \[%s\]" % (name, name)):
        Translation({name: "1"})


def test_a_cluster_without_nodes_is_refused(files):
    with pytest.raises(AnsibleError, match="no server is enabled"):
        files.parse(files.write(CONF.replace("role = master", "role = archive").replace("role = replica", "role = archive")))


def test_two_files_with_the_same_server_are_refused_unless_a_prefix_tells_them_apart(files, warnings):
    first, second = files.write(name="a.handyrep.yml"), files.write(name="b.handyrep.yml", cluster="billing")
    with pytest.raises(AnsibleError, match=r"another handyrep\.conf has a server john already.*Set host_prefix"):
        files.parse(first, second)
    second = files.write(name="b.handyrep.yml", cluster="billing", host_prefix="billing-")
    manager = files.parse(first, second)
    assert members(manager, "billing_nodes") == ["billing-john", "billing-paul"] and members(manager, "Orders_EU_1_nodes") == ["john", "paul"]
    assert files.variables(manager, "billing-john")["postgresql_node_name"] == "john"


def test_without_the_library_the_error_names_it(files, monkeypatch):
    monkeypatch.setattr(handyrep, "configobj", None)
    with pytest.raises(AnsibleError, match="needs the Python library configobj"):
        files.parse(files.write())


@pytest.mark.parametrize(
    ("name", "ours"),
    [("handyrep.yml", True), ("handyrep.yaml", True), ("orders.handyrep.yml", True), ("orders.handyrep.yaml", True),
     ("handyrep.conf", False), ("myhandyrep.yml", False), ("hosts.yml", False), ("handyrep.yml.bak", False)],
)  # fmt: skip
def test_which_files_are_ours(tmp_path, name, ours):
    path = tmp_path / name
    path.write_text("plugin: pgfleet.ops.handyrep\n")
    assert handyrep.InventoryModule().verify_file(str(path)) is ours
    assert handyrep.InventoryModule().verify_file(str(tmp_path / "missing" / name)) is False


# -- values --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "  ", "None", None, []])
def test_blank_and_none_mean_not_set(value):
    section = Section("[x]", {"key": value}, {"key": "5"})
    assert section.number("key", 1) == 5 and section.has("key")
    alone = Section("[x]", {"key": value})
    assert (alone.text("key", "d"), alone.number("key", 1), alone.flag("key", True), alone.words("key", ["w"])) == ("d", 1, True, ["w"])
    assert not alone.has("key")


@pytest.mark.parametrize(("value", "expected"), [("True", True), ("yes", True), ("on", True), ("1", True), (True, True), (1, True),
                                                 ("False", False), ("no", False), ("OFF", False), (0, False), (False, False)])  # fmt: skip
def test_yes_and_no(value, expected):
    assert Section("[x]", {"key": value}).flag("key", not expected) is expected


@given(st.text())
def test_every_cluster_name_gives_a_valid_group_or_a_clear_error(name):
    try:
        found = group_name(name)
    except BadSetting as error:
        assert "set the option cluster" in str(error)
    else:
        assert found.isidentifier() and found.isascii() and found not in ("all", "ungrouped")


FIELDS = ["hostname", "role", "enabled", "port", "pgdata", "failover_priority", "lag_limit", "restart_method", "ssh_key", "unknown"]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.lists(st.text(max_size=3), max_size=2), st.dictionaries(st.text(max_size=3), st.none())
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.one_of(VALUES, st.dictionaries(st.sampled_from(FIELDS), VALUES)), max_size=4))
def test_whatever_servers_are_saved_there_is_an_inventory_or_a_clear_error(saved):
    try:
        site = Translation({}, saved).site()
    except BadSetting:
        return
    assert any(group == "hr1_nodes" for group, _variables in site.hosts.values())
    assert {group for group, _variables in site.hosts.values()} <= set(site.groups)
