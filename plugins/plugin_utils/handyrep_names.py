# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""What stands here for the names of a handyrep.conf: its plugins and its settings.

The one place for it: the inventory plugin handyrep, the playbooks' methods and the table in docs/handyrep.md agree with this file.
"""

from __future__ import annotations

import typing as t


class Replacement(t.NamedTuple):
    """What to use instead of a plugin or a setting of HandyRep.

    ``needs_work`` says that something is to be done, or that its users will miss something: such a name is worth a warning where it is in use.
    """

    instead: str
    needs_work: bool = False


_NO_API = Replacement("nothing: there is no HTTP API to log in to, who may do what is decided by SSH, Ansible Vault and AWX")
_LOCK = Replacement("pgfleet.ops.pg_operation_lock, which the playbooks take by themselves on the cluster's hosts")
_STOP_FILE = "its script says success while a stop file exists, so that WAL is lost without a word; "

# Every plugin that was ever in HandyRep's repository or its documentation, and those that its own defaults name although they do not exist.
PLUGINS: dict[str, Replacement] = {
    "handyrepplugin": Replacement("a task file or module of your own as method, see docs/methods.md of this collection"),
    "failplugin": Replacement("nothing: an unknown name is an error here, never a plugin that fails later"),
    "successplugin": Replacement("a method of your own that does nothing; what it should have done is proved afterwards", True),
    "zero_auth": _NO_API,
    "simple_password_auth": _NO_API,
    "ldap_auth": _NO_API,
    "one_hr_master": _LOCK,
    "handyrep_oneserver": _LOCK,
    "check_last_ip_db": _LOCK,
    "poll_connect": Replacement("pgfleet.ops.pg_ping"),
    "poll_isready": Replacement("pgfleet.ops.pg_ping"),
    "replication_mb_lag_93": Replacement("pgfleet.ops.pg_cluster_info, which measures lag against the primary's current position"),
    "select_replica_priority": Replacement("pgfleet.ops.pg_cluster_info with strategy priority"),
    "select_by_priority": Replacement("pgfleet.ops.pg_cluster_info with strategy priority"),
    "select_replica_furthest_ahead": Replacement("pgfleet.ops.pg_cluster_info with strategy lsn"),
    "promote_pg_ctl": Replacement("pgfleet.ops.pg_promote, with proof that no other primary writes"),
    "restart_pg_ctl": Replacement("pgfleet.ops.pg_instance with method pg_ctl"),
    "restart_service": Replacement("pgfleet.ops.pg_instance with method systemd"),
    "restart_daemontools": Replacement(
        "pgfleet.ops.pg_instance with method command, start_command [svc, -u, /service/NAME] and stop_command [svc, -d, /service/NAME]", True
    ),
    "clone_basebackup": Replacement("pgfleet.ops.pg_clone, which copies beside the old directory and swaps when the copy is verified"),
    "clone_rsync": Replacement(
        "pgfleet.ops.pg_clone: PostgreSQL 15 removed the exclusive backup that it used; pg_rewind saves the copy where that is possible", True
    ),
    "multi_pgbouncer": Replacement("pgfleet.ops.pgbouncer_databases and pgfleet.ops.redirect_pgbouncer"),
    "multi_pgbouncer_pacemaker": Replacement("pgfleet.ops.pgbouncer_databases with unreachable skip for poolers that Pacemaker has stopped", True),
    "multi_pgbouncer_bigip": Replacement(
        "pgfleet.ops.redirect_pgbouncer; nothing here talks to a BIG-IP, do that in a method of your own or let its health check ask the pooler", True
    ),
    "pgbouncer_failover": Replacement("pgfleet.ops.pgbouncer_databases and pgfleet.ops.redirect_pgbouncer"),
    "haproxy_update": Replacement("HAProxy's own check of the role of each server, or a task after the playbook; nothing here writes its configuration", True),
    "archive_local_dir": Replacement(_STOP_FILE + "use the role pgfleet.ops.wal_archive and pgfleet.ops.pg_archiving", True),
    "archive_two_servers": Replacement(_STOP_FILE + "use the role pgfleet.ops.wal_archive and pgfleet.ops.pg_archiving", True),
    "archive_barman_staging": Replacement(_STOP_FILE + "archive to Barman itself (barman-wal-archive) by pgfleet.ops.pg_archiving", True),
    "archive_delete_find": Replacement("pgfleet.ops.pg_archive_cleanup, which keeps what a backup, slot or standby needs, whatever its age"),
    "push_email_alert_simple": Replacement("a notification of AWX or of the monitoring that runs pgfleet.ops.pg_cluster_info", True),
    "push_alert_email_simple": Replacement("a notification of AWX or of the monitoring that runs pgfleet.ops.pg_cluster_info", True),
}

_USED = Replacement("read by the inventory plugin pgfleet.ops.handyrep")
_NO_DAEMON = Replacement("the schedule of whatever runs pgfleet.ops.check_failover: no daemon runs here")
_NO_STATE = Replacement("nothing: no state is kept; drop the table, it holds the passwords of handyrep.conf in clear")
_NO_COPY = Replacement("nothing: no password is taken over; put it into Ansible Vault as postgresql_node_superuser_password")
_OWN_API = Replacement("nothing: there is no HTTP API; delete it")

# By section and key. A key of a server counts for [server_defaults], for [servers] and for servers.save.
SETTINGS: dict[str, dict[str, Replacement]] = {
    "handyrep": {
        "cluster_name": _USED,
        "last_updated": Replacement("nothing: it was informational"),
        "override_server_file": _USED,
        "server_file": _USED,
        "authentication_method": _NO_API,
        "master_check_method": _LOCK,
        "master_check_parameters": _LOCK,
        "log_verbose": Replacement("ansible-playbook -v, and what the modules return"),
        "log_file": Replacement("log_path in ansible.cfg, or AWX's job output"),
        "postgresql_version": Replacement("postgresql_node_version; HandyRep never read it, the inventory plugin does where no path names a version"),
        "handyrep_db": Replacement("read by the inventory plugin pgfleet.ops.handyrep, which adds it to the databases of the poolers as HandyRep did"),
        "handyrep_schema": _NO_STATE,
        "handyrep_table": _NO_STATE,
        "handyrep_user": Replacement("nothing: the modules log in as postgres; drop the role, it is a superuser"),
        "postgres_superuser": Replacement("postgresql_node_user for the operating system; in the database the playbooks log in as postgres"),
        "replication_user": Replacement("postgresql_node_replication_user"),
        "templates_dir": Replacement("nothing: no template replaces a whole file, see replica_conf and multi_pgbouncer"),
        "test_ssh_command": Replacement("Ansible's own connection"),
        "push_alert_method": Replacement("a notification of AWX or of your monitoring"),
        "push_alert_parameters": Replacement("a notification of AWX or of your monitoring"),
    },
    "passwords": {
        "superuser_pass": _NO_COPY,
        "handyrep_db_pass": _NO_COPY,
        "replication_pass": Replacement("nothing: no password is taken over; the servers read it from the passfile postgresql_node_passfile"),
        "admin_password": _OWN_API,
        "read_password": _OWN_API,
        "bind_password": _OWN_API,
        "bigip_password": Replacement("nothing: nothing here talks to a BIG-IP"),
    },
    "failover": {
        "auto_failover": Replacement("pgfleet.ops.check_failover on a schedule, or pgfleet.ops.fail_over by a person", True),
        "poll_method": Replacement("pgfleet.ops.pg_ping"),
        "poll_interval": _NO_DAEMON,
        "verify_frequency": _NO_DAEMON,
        "fail_retries": Replacement("the option retries of pgfleet.ops.pg_ping"),
        "fail_retry_interval": Replacement("the option delay of pgfleet.ops.pg_ping"),
        "recovery_retries": Replacement("the option timeout of each module, in seconds"),
        "selection_method": Replacement("the option strategy of pgfleet.ops.pg_cluster_info"),
        "remaster": Replacement("nothing: after a switchover every standby follows the new primary, always"),
        "restart_master": Replacement("pgfleet.ops.restart_cluster; a lost primary is not restarted without being asked", True),
        "connection_failover_method": Replacement("pgfleet.ops.redirect_pgbouncer, or a method of your own"),
        "poll_connection_proxy": Replacement("pgfleet.ops.pgbouncer_info"),
        "replication_status_method": Replacement("pgfleet.ops.pg_cluster_info"),
    },
    "extra_failover_commands": {
        "command": Replacement("tasks after the playbook, or a job after it in an AWX workflow, which gets what set_stats leaves", True),
        "parameters": Replacement("variables of those tasks"),
    },
    "archive": {
        "archiving": Replacement("the role pgfleet.ops.wal_archive and pgfleet.ops.pg_archiving", True),
        "archive_script_method": Replacement("the role pgfleet.ops.wal_archive and pgfleet.ops.pg_archiving"),
        "archive_delete_method": Replacement("pgfleet.ops.clean_archive, or a method of your own"),
    },
    "server": {
        "hostname": Replacement("ansible_host"),
        "role": Replacement("handyrep_role, a note only: who is the primary is asked, never told"),
        "enabled": Replacement("membership of the cluster's group; a server that is not enabled is in the group CLUSTER_disabled"),
        "failover_priority": Replacement("postgresql_node_priority"),
        "port": Replacement("postgresql_node_port or pgbouncer_port"),
        "pgdata": Replacement("postgresql_node_data_directory"),
        "pgconf": Replacement("postgresql_node_config_directory"),
        "replica_conf": Replacement("nothing: PostgreSQL 12 replaced recovery.conf by standby.signal and settings, which the modules write"),
        "recovery_template": Replacement("nothing: PostgreSQL 12 replaced recovery.conf by standby.signal and settings, which the modules write"),
        "ssh_user": Replacement("ansible_user"),
        "ssh_key": Replacement("ansible_ssh_private_key_file"),
        "restart_method": Replacement("postgresql_node_method, and restart_method for a method of your own"),
        "promotion_method": Replacement("pgfleet.ops.promote_node"),
        "clone_method": Replacement("clone_method of pgfleet.ops.clone_standby"),
        "lag_limit": Replacement("pgfleet_lag_limit_bytes, in bytes"),
        "lag": Replacement("pgfleet.ops.pg_cluster_info, asked when you ask"),
        "status": Replacement("pgfleet.ops.pg_cluster_info, asked when you ask"),
        "status_no": Replacement("pgfleet.ops.pg_cluster_info, asked when you ask"),
        "status_ts": Replacement("pgfleet.ops.pg_cluster_info, asked when you ask"),
        "status_message": Replacement("pgfleet.ops.pg_cluster_info, asked when you ask"),
        "wal_location": Replacement("the option wal_directory of pgfleet.ops.pg_clone, which keeps the link of an old directory by itself"),
        "ip_address": Replacement("nothing: nothing here talks to a BIG-IP"),
    },
}


def instead_of(plugin: str) -> str | None:
    """A sentence about a plugin of HandyRep, None for any other name: for errors about a method that is none."""
    found = PLUGINS.get(plugin)
    return '"%s" is a plugin of HandyRep; use %s' % (plugin, found.instead) if found else None
