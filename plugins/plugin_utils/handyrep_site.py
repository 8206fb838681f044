# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""What a handyrep.conf and a servers.save describe, as groups, hosts and variables of this collection. Pure: no file is read here.

Only what is named here leaves this file. The section [passwords] is never looked at, and neither are unknown keys of other sections.
"""

from __future__ import annotations

import dataclasses
import os.path
import re
import typing as t

from ansible_collections.pgfleet.ops.plugins.plugin_utils.handyrep_names import PLUGINS, SETTINGS

Variables = dict[str, t.Any]

# HandyRep's own defaults, which count where its file says nothing.
SERVER_DEFAULTS: dict[str, t.Any] = {
    "port": 5432,
    "pgdata": "/var/lib/postgresql/9.3/main",
    "pgconf": "/etc/postgresql/9.3/main",
    "recovery_template": "recovery.conf.template",
    "ssh_user": "handyrep",
    "restart_method": "restart_pg_ctl",
    "promotion_method": "promote_pg_ctl",
    "clone_method": "clone_basebackup",
    "lag_limit": 1000,
    "failover_priority": 999,
    "role": "replica",
    "enabled": True,
}
SECTIONS = {*SETTINGS, "server_defaults", "servers", "plugins"} - {"server"}
NODE_ROLES = ("master", "replica")
STRATEGIES = {"select_replica_priority": "priority", "select_by_priority": "priority", "select_replica_furthest_ahead": "lsn"}
OLDEST = 13
MEGABYTE = 1048576


class BadSetting(ValueError):
    """A setting that cannot be right; the message names it, what was found and what to do."""


@dataclasses.dataclass
class Finding:
    """Something that has no effect here or needs work. ``name`` is what the option ``accepted`` takes."""

    name: str
    text: str


@dataclasses.dataclass
class Site:
    """An inventory. ``hosts`` has the group and the variables of each host; groups that are ``children`` belong to ``group``."""

    group: str
    groups: dict[str, Variables] = dataclasses.field(default_factory=dict)
    children: list[str] = dataclasses.field(default_factory=list)
    hosts: dict[str, tuple[str, Variables]] = dataclasses.field(default_factory=dict)
    findings: list[Finding] = dataclasses.field(default_factory=list)


class Section:
    """A section of the file, or a server of servers.save. Blank and ``None`` mean that a setting is not set, as HandyRep's sample says."""

    def __init__(self, name: str, *layers: t.Mapping[str, t.Any]) -> None:
        self.name = name
        self._layers = layers

    def _value(self, key: str, default: t.Any) -> t.Any:
        for layer in self._layers:
            value = layer.get(key)
            if isinstance(value, str):
                value = value.strip()
            if value is not None and value not in ("", "None", []):
                return value
        return default

    def _bad(self, key: str, value: t.Any, expected: str) -> BadSetting:
        return BadSetting("%s of %s is %r, expected %s" % (key, self.name, value, expected))

    def text(self, key: str, default: str = "") -> str:
        value = self._value(key, default)
        if isinstance(value, (list, dict)):
            raise self._bad(key, value, "one value; put it in quotes if it has a comma")
        return str(value)

    def number(self, key: str, default: int) -> int:
        value = self._value(key, default)
        try:
            if isinstance(value, (bool, float)):
                raise ValueError
            return int(value)
        except (TypeError, ValueError):
            raise self._bad(key, value, "a whole number") from None

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        word = str(value).lower()
        if word in ("true", "yes", "on", "1", "t", "y"):
            return True
        if word in ("false", "no", "off", "0", "f", "n"):
            return False
        raise self._bad(key, value, "True or False")

    def words(self, key: str, default: t.Sequence[str]) -> list[str]:
        value = self._value(key, list(default))
        return [str(word).strip() for word in (value if isinstance(value, list) else [value]) if str(word).strip()]

    def has(self, key: str) -> bool:
        return self._value(key, None) is not None


def group_name(name: str) -> str:
    """A cluster's name as Ansible takes it for a group. Raises BadSetting."""
    found = re.sub(r"[^A-Za-z0-9_]", "_", name)
    found = "_" + found if found[:1].isdigit() else found
    if found.strip("_") == "" or found in ("all", "ungrouped", "localhost"):
        raise BadSetting('the cluster\'s name is "%s", which gives no name of a group; set the option cluster' % name)
    return found


class Translation:
    """One run over the settings. ``conf`` is handyrep.conf without passwords, ``saved`` the servers of servers.save, None for those of the file."""

    def __init__(self, conf: t.Mapping[str, t.Any], saved: t.Mapping[str, t.Any] | None = None, cluster: str = "", host_prefix: str = "") -> None:
        for name in SECTIONS & set(conf):
            if not isinstance(conf[name], t.Mapping):
                raise BadSetting("%s is a setting, expected the section [%s]" % (name, name))
        self._conf = conf
        self._saved = saved
        self._prefix = host_prefix
        self._handyrep = self._section("handyrep")
        self._failover = self._section("failover")
        self._archive = self._section("archive")
        self._cluster_name = self._handyrep.text("cluster_name", "hr1")
        self._site = Site(cluster or group_name(self._cluster_name))

    def site(self) -> Site:
        """The inventory. Raises BadSetting."""
        self._look_for_unknown_names()
        self._look_at_the_cluster()
        site, servers = self._site, self._servers()
        defaults = self._server("server_defaults", {})
        site.groups[site.group] = self._cluster_variables(defaults)
        self._add_group("nodes", "postgresql_node", self._node_variables(defaults))
        self._add_group("poolers", "pgbouncer", self._pooler_variables(defaults))
        self._add_group("archives", "wal_archive", self._archive_variables())
        disabled, others = [], []
        for name, server in servers.items():
            role = server.text("role", SERVER_DEFAULTS["role"])
            if not server.flag("enabled", SERVER_DEFAULTS["enabled"]):
                disabled.append(name)
                self._add_host(name, server, "disabled", {})
            elif role in NODE_ROLES:
                self._look_at_node(name, server, defaults)
                self._add_host(name, server, "nodes", {**self._node_variables(server), **self._program_variables(server)})
            elif role == "pgbouncer":
                self._add_host(name, server, "poolers", self._pooler_variables(server))
            elif role == "archive":
                archive = self._archive_variables()
                if "wal_archive_directory" not in archive:
                    self._find("archive_directory", "%s is an archive, and no plugin in use says where: set wal_archive_directory for it" % name)
                self._add_host(name, server, "archives", archive)
            else:
                others.append("%s (%s)" % (name, role))
                self._add_host(name, server, "others", {})
        if disabled:
            self._find(
                "disabled",
                "%s not enabled: in the group %s_disabled, outside of the cluster. An old primary that still runs there is seen by nobody;"
                " make it a standby with pgfleet.ops.pg_clone, or see that it cannot start" % (", ".join(disabled), site.group),
            )
        if others:
            self._find("others", "%s: nothing here manages such a server; in the group %s_others" % (", ".join(others), site.group))
        if not any(group == site.group + "_nodes" for group, _variables in site.hosts.values()):
            raise BadSetting("no server is enabled and has the role master or replica")
        self._lift_common_programs()
        used = {group for group, _variables in site.hosts.values()}
        site.groups = {name: variables for name, variables in site.groups.items() if name == site.group or name in used}
        site.children = [name for name in site.groups if name.rpartition("_")[2] in ("nodes", "poolers", "archives") and name != site.group]
        return site

    # -- what is there --------------------------------------------------------------------------------------------------

    def _section(self, name: str) -> Section:
        return Section("[%s]" % name, self._conf.get(name, {}))

    def _plugin(self, name: str) -> Section:
        found = self._conf.get("plugins", {}).get(name, {})
        return Section("[plugins] [[%s]]" % name, found if isinstance(found, t.Mapping) else {})

    def _server(self, name: str, fields: t.Mapping[str, t.Any]) -> Section:
        return Section(name, fields, self._conf.get("server_defaults", {}), SERVER_DEFAULTS)

    def _servers(self) -> dict[str, Section]:
        found = self._conf.get("servers", {}) if self._saved is None else self._saved
        for name, fields in found.items():
            if not isinstance(fields, t.Mapping):
                raise BadSetting("the server %s is %s, expected its settings" % (name, type(fields).__name__))
        return {name: self._server("the server %s" % name, fields) for name, fields in found.items()}

    def _find(self, name: str, text: str) -> None:
        if all(found.name != name for found in self._site.findings):
            self._site.findings.append(Finding(name, text))

    # -- what is worth a word ---------------------------------------------------------------------------------------------

    def _look_for_unknown_names(self) -> None:
        for section, found in self._conf.items():
            if section not in SECTIONS:
                self._find(section, "[%s] is no section that HandyRep knows" % section)
            elif section in ("handyrep", "failover", "archive", "server_defaults"):
                self._look_for_unknown_keys(section, found, SETTINGS.get(section, SETTINGS["server"]))
        servers = self._conf.get("servers", {}) if self._saved is None else self._saved
        for name, fields in servers.items():
            if isinstance(fields, t.Mapping):
                self._look_for_unknown_keys(name, fields, SETTINGS["server"])

    def _look_for_unknown_keys(self, owner: str, found: t.Mapping[str, t.Any], known: t.Collection[str]) -> None:
        for key in found:
            if key not in known:
                self._find("%s.%s" % (owner, key), "%s of %s is nothing that HandyRep's core knows, and is left out" % (key, owner))

    def _look_at_the_cluster(self) -> None:
        for section, key in ((self._failover, "auto_failover"), (self._failover, "restart_master"), (self._archive, "archiving")):
            if section.flag(key, False):
                self._find(key, "%s of %s has no effect: use %s" % (key, section.name, SETTINGS[section.name.strip("[]")][key].instead))
        archiving = self._archive.flag("archiving", False)
        for section, key, counts in (
            (self._handyrep, "push_alert_method", True),
            (self._handyrep, "master_check_method", True),
            (self._failover, "poll_method", True),
            (self._failover, "selection_method", True),
            (self._failover, "connection_failover_method", True),
            (self._failover, "replication_status_method", True),
            (self._archive, "archive_script_method", archiving),
            (self._archive, "archive_delete_method", archiving),
        ):
            if counts and section.has(key):
                self._look_at_plugin(key, section.text(key))
        commands = self._conf.get("extra_failover_commands", {})
        if commands:
            self._find("extra_failover_commands", "[extra_failover_commands] has no effect: use %s" % SETTINGS["extra_failover_commands"]["command"].instead)
        for fields in commands.values():
            if isinstance(fields, t.Mapping):
                command = Section("[extra_failover_commands]", fields).text("command")
                if command in PLUGINS:
                    self._look_at_plugin("command", command)
        superuser = self._handyrep.text("postgres_superuser", "postgres")
        if superuser != "postgres":
            self._find(
                "postgres_superuser",
                "postgres_superuser is %s: the operating system user of the servers; in the database the playbooks log in as postgres" % superuser,
            )

    def _look_at_plugin(self, setting: str, plugin: str) -> None:
        known = PLUGINS.get(plugin)
        if known is None:
            self._find(plugin, "%s names %s, which is no plugin of HandyRep's own: see docs/methods.md for methods of one's own" % (setting, plugin))
        elif known.needs_work:
            self._find(plugin, "%s names %s: use %s" % (setting, plugin, known.instead))

    def _look_at_node(self, name: str, server: Section, defaults: Section) -> None:
        for key in ("restart_method", "promotion_method", "clone_method"):
            self._look_at_plugin(key, server.text(key))
        if server.text("recovery_template") != SERVER_DEFAULTS["recovery_template"]:
            self._find("recovery_template", "recovery_template of %s is not taken over: a restore_command is a setting of the server now" % name)
        if server.number("lag_limit", 0) != defaults.number("lag_limit", 0):
            self._find("lag_limit", "lag_limit of %s is not that of server_defaults: one limit counts for the whole cluster" % name)
        version = self._version(server)
        if version and float(version) < OLDEST:
            self._find(
                "version", "%s has the directories of PostgreSQL %s: this collection works with %d and later, say in the file where the data is now"
                % (name, version, OLDEST),
            )  # fmt: skip

    # -- what it becomes ----------------------------------------------------------------------------------------------------

    def _add_group(self, kind: str, role: str, variables: Variables) -> None:
        self._site.groups["%s_%s" % (self._site.group, kind)] = {"pgfleet_roles": [role], **variables}

    def _add_host(self, name: str, server: Section, kind: str, variables: Variables) -> None:
        group = "%s_%s" % (self._site.group, kind)
        if kind in ("disabled", "others"):
            self._site.groups.setdefault(group, {"pgfleet_roles": [], "pgfleet_cluster": group})
        address = server.text("hostname")
        if not address:
            raise BadSetting("%s has no hostname" % server.name)
        of_group = {**self._site.groups[self._site.group], **self._site.groups[group]}
        own = {"ansible_host": address, "handyrep_role": server.text("role"), **self._login(server), **variables}
        if self._prefix and kind == "nodes":
            # Standbys are known to their primary by the name that HandyRep gave them.
            own["postgresql_node_name"] = name
        self._site.hosts[self._prefix + name] = (group, {key: value for key, value in own.items() if key not in of_group or of_group[key] != value})

    def _login(self, server: Section) -> Variables:
        found: Variables = {"ansible_user": server.text("ssh_user")}
        key = server.text("ssh_key")
        if key:
            # HandyRep was started in the home directory of its user.
            found["ansible_ssh_private_key_file"] = key if key.startswith(("/", "~")) else "~/" + key
        return found

    def _cluster_variables(self, defaults: Section) -> Variables:
        failover = self._failover
        return {
            "pgfleet_cluster": self._site.group,
            # The configuration of these hosts is not ours.
            "pgfleet_managed": False,
            "pgfleet_lag_limit_bytes": defaults.number("lag_limit", 0) * MEGABYTE,
            "pgfleet_strategy": STRATEGIES.get(failover.text("selection_method"), "priority"),
            "handyrep_cluster_name": self._cluster_name,
            **self._login(defaults),
        }

    def _version(self, server: Section) -> str:
        for path in (server.text("pgdata"), server.text("pgconf"), self._pg_ctl()):
            found = re.search(r"/(?:postgresql|pgsql)[/-](\d+(?:\.\d+)?)(?:/|$)", path)
            if found:
                return found.group(1)
        found = re.match(r"\d+", self._handyrep.text("postgresql_version"))
        return found.group() if found and int(found.group()) >= OLDEST else ""

    def _pg_ctl(self) -> str:
        return self._plugin("restart_pg_ctl").text("pg_ctl_path") or self._plugin("promote_pg_ctl").text("pg_ctl_path")

    def _node_variables(self, server: Section) -> Variables:
        data, config = server.text("pgdata").rstrip("/"), server.text("pgconf").rstrip("/")
        for key, path in (("pgdata", data), ("pgconf", config)):
            if not path.startswith("/"):
                raise BadSetting("%s of %s is %r, expected an absolute path that is not /" % (key, server.name, server.text(key)))
        found: Variables = {
            "postgresql_node_port": server.number("port", 0),
            "postgresql_node_data_directory": data,
            "postgresql_node_config_directory": os.path.dirname(config) if config.endswith(".conf") else config,
            "postgresql_node_priority": server.number("failover_priority", 0),
            "postgresql_node_user": self._handyrep.text("postgres_superuser", "postgres"),
            "postgresql_node_replication_user": self._handyrep.text("replication_user", "postgres"),
            # Where the server and its user look by themselves.
            "postgresql_node_log_file": "",
            "postgresql_node_passfile": "",
        }
        restart = server.text("restart_method")
        found["postgresql_node_method"] = "pg_ctl" if restart == "restart_pg_ctl" else "systemd"
        unit = self._plugin("restart_service").text("service_name", "postgresql") if restart == "restart_service" else ""
        # Debian's postgresql.service is only a parent of the instances' own units.
        found["postgresql_node_unit"] = "" if unit == "postgresql" and config.startswith("/etc/postgresql/") else unit
        return found

    def _program_variables(self, server: Section) -> Variables:
        found: Variables = {}
        version, programs = self._version(server), os.path.dirname(self._pg_ctl())
        if version:
            found["postgresql_node_version"] = version
        # Debian has no pg_ctl in /usr/bin, where HandyRep's sample looks for it.
        if programs and programs not in ("/bin", "/usr/bin"):
            found["postgresql_node_bin_directory"] = programs
        elif version:
            red_hat = server.text("pgdata").startswith("/var/lib/pgsql/")
            found["postgresql_node_bin_directory"] = ("/usr/pgsql-%s/bin" if red_hat else "/usr/lib/postgresql/%s/bin") % version
        return found

    def _lift_common_programs(self) -> None:
        """What all nodes agree on goes to their group, where group_vars can override it."""
        group = self._site.group + "_nodes"
        nodes = [variables for of, variables in self._site.hosts.values() if of == group]
        for key in ("postgresql_node_version", "postgresql_node_bin_directory"):
            if len({node.get(key) for node in nodes}) == 1 and key in nodes[0]:
                self._site.groups[group][key] = nodes[0][key]
                for node in nodes:
                    del node[key]

    def _pooler_variables(self, server: Section) -> Variables:
        method = self._failover.text("connection_failover_method")
        name = method if method.startswith("multi_pgbouncer") else "multi_pgbouncer"
        plugin = self._plugin(name)
        file = plugin.text("config_location", "/etc/pgbouncer/pgbouncer.ini")
        extra = plugin.text("extra_connect_param")
        if re.search(r"\bpassword\s*=", extra):
            extra = ""
            self._find("extra_connect_param", "extra_connect_param of %s has a password and is left out: use auth_file or auth_query" % plugin.name)
        databases = plugin.words("database_list", ["postgres"])
        own = self._handyrep.text("handyrep_db", "postgres")
        return {
            "pgbouncer_port": server.number("port", 0),
            "pgbouncer_config_file": file,
            "pgbouncer_databases_file": plugin.text("dblist_location", file),
            "pgbouncer_owner": plugin.text("owner", "pgbouncer"),
            "pgbouncer_database_list": databases + [own] * (own not in databases),
            "pgbouncer_readonly_suffix": plugin.text("readonly_suffix", "_ro"),
            "pgbouncer_all_replicas": plugin.flag("all_replicas", False),
            "pgbouncer_extra_connect_param": extra,
        }

    def _archive_variables(self) -> Variables:
        delete, script = self._plugin("archive_delete_find"), self._plugin(self._archive.text("archive_script_method"))
        directory = delete.text("archive_directory") or script.text("archive_directory")
        found: Variables = {"wal_archive_directory": directory} if directory else {}
        if delete.has("archive_delete_hours"):
            found["wal_archive_keep_hours"] = delete.number("archive_delete_hours", 0)
        return found
