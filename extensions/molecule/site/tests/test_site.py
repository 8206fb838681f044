# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What deploy_site leaves on hosts with systemd, and that it is all there again after every host has lost its power."""

from __future__ import annotations

import pytest
from conftest import (
    MONITOR,
    NODES,
    POOLERS,
    address,
    ask,
    cluster_is_whole,
    data_directory,
    logged,
    machine,
    power_off,
    power_on,
    primaries,
    secret,
    secrets,
    shown_by_powa_web,
    unit,
    version,
    wait_for,
)

HOSTS = (*NODES, *POOLERS, MONITOR)
FIRST, *OTHERS = NODES
POWA_SNAPSHOTS = """
SELECT s.alias, max(m.snapts) FROM public.powa_servers AS s JOIN public.powa_snapshot_metas AS m ON m.srvid = s.id
WHERE s.id > 0 AND coalesce(array_length(m.errors, 1), 0) = 0 AND m.snapts > '-infinity' GROUP BY s.alias ORDER BY s.alias
"""


def services(name):
    if name in POOLERS:
        return ["pgbouncer"]
    return [unit(name)] + (["powa-collector", "powa-web"] if name == MONITOR else [])


def expected_listeners(name):
    own = {"tcp://0.0.0.0:22", "tcp://:::22"}
    port = 6432 if name in POOLERS else 5432
    own |= {"tcp://127.0.0.1:%d" % port, "tcp://%s:%d" % (address(name), port)}
    return own | ({"tcp://127.0.0.1:8888"} if name == MONITOR else set())


def files(name):
    """Path, owner, group and mode of what the roles write."""
    if name in POOLERS:
        return [
            ("/etc/pgbouncer", "postgres", "postgres", 0o755),
            ("/etc/pgbouncer/pgbouncer.ini", "postgres", "postgres", 0o640),
            ("/etc/pgbouncer/databases.ini", "postgres", "postgres", 0o640),
            ("/etc/pgbouncer/userlist.txt", "postgres", "postgres", 0o600),
        ]
    found = [
        (data_directory(name), "postgres", "postgres", 0o700),
        ("/var/lib/postgresql/%s-%s.pgpass" % (version(name), name), "postgres", "postgres", 0o600),
        ("/etc/postgresql/%s/%s/postgresql.conf" % (version(name), name), "postgres", "postgres", 0o644),
        ("/etc/postgresql/%s/%s/pg_hba.conf" % (version(name), name), "postgres", "postgres", 0o640),
        ("/etc/postgresql/%s/%s/start_guard.json" % (version(name), name), "root", "root", 0o644),
        ("/etc/systemd/system/%s.service.d/pgfleet.conf" % unit(name), "root", "root", 0o644),
    ]
    if name == MONITOR:
        found += [
            ("/etc/systemd/system/powa-collector.service.d/pgfleet.conf", "root", "root", 0o600),
            ("/var/lib/powa-collector/passfile", "powa", "powa", 0o600),
            ("/opt/powa-web/powa-web.conf", "root", "powa-web", 0o640),
            ("/opt/powa-web/cookie-secret", "root", "root", 0o600),
        ]
    else:
        found.append(("/var/lib/postgresql/powa-sources.pgpass", "postgres", "postgres", 0o600))
    return found


@pytest.mark.parametrize("name", HOSTS)
def test_nothing_failed_and_services_run(name):
    host = machine(name)
    assert host.check_output("systemctl --failed --plain --no-legend") == ""
    for service in services(name):
        assert host.service(service).is_running, service
        # Debian's generator enables instances of PostgreSQL at each boot anew.
        assert host.run("systemctl is-enabled %s", service).stdout.strip() in ("enabled", "enabled-runtime"), service


@pytest.mark.parametrize("name", HOSTS)
def test_it_listens_where_it_was_told_to_and_nowhere_else(name):
    found = {socket for socket in machine(name).socket.get_listening_sockets() if socket.startswith("tcp://")}
    assert found == expected_listeners(name)


@pytest.mark.parametrize("name", HOSTS)
def test_files_have_owner_and_mode(name):
    host = machine(name)
    found = [(path, host.file(path).user, host.file(path).group, host.file(path).mode) for path, *_expected in files(name)]
    assert found == files(name)


@pytest.mark.parametrize("name", HOSTS)
def test_no_secret_is_in_a_log_or_on_a_command_line(name):
    assert logged(name, secrets()) == []


def test_one_primary_and_all_standbys_stream_through_their_slots():
    assert cluster_is_whole(FIRST) == FIRST
    assert ask(FIRST, "SELECT slot_name, active FROM pg_replication_slots ORDER BY 1") == [(name, True) for name in OTHERS]


@pytest.mark.parametrize("pooler", POOLERS)
def test_clients_write_to_the_primary_and_read_on_a_standby(pooler):
    through = {"port": 6432, "user": "app"}
    assert ask(pooler, "SELECT host(inet_server_addr()), pg_is_in_recovery()", dbname="app", **through) == [(address(FIRST), False)]
    where, recovers = ask(pooler, "SELECT host(inet_server_addr()), pg_is_in_recovery()", dbname="app_ro", **through)[0]
    assert where in map(address, OTHERS) and recovers


@pytest.mark.parametrize("pooler", POOLERS)
def test_the_disk_of_a_pooler_holds_what_it_does_now(pooler):
    content = machine(pooler).file("/etc/pgbouncer/databases.ini").content_string
    on_disk = {line.split("=")[0].strip(): line for line in content.splitlines() if line.startswith("app")}
    assert set(on_disk) == {"app", "app_ro"}
    for name, line in on_disk.items():
        serves = ask(pooler, "SELECT host(inet_server_addr())", port=6432, user="app", dbname=name)[0][0]
        assert "host=%s " % serves in line + " "


@pytest.mark.parametrize("pooler", POOLERS)
def test_a_pooler_keeps_what_the_nodes_keep_of_a_password(pooler):
    users = machine(pooler).file("/etc/pgbouncer/userlist.txt").content_string
    assert '"app" "%s"\n' % ask(FIRST, "SELECT rolpassword FROM pg_authid WHERE rolname = 'app'")[0][0] in users
    assert not any(secret(name) in users for name in ("app", "stats"))


@pytest.mark.parametrize("name", NODES)
def test_the_disk_of_a_node_holds_what_it_does_now(name):
    assert machine(name).file(data_directory(name) + "/standby.signal").exists == (name != FIRST)
    differing = ask(name, "SELECT name FROM pg_settings WHERE pending_restart UNION ALL SELECT name FROM pg_file_settings WHERE error IS NOT NULL")
    assert differing == []


def test_powa_collects_from_each_node_and_shows_it():
    def snapshots():
        return dict(ask(MONITOR, POWA_SNAPSHOTS, user="powa", dbname="powa"))

    first = wait_for(lambda: snapshots() if len(snapshots()) == len(NODES) else None, "a snapshot of each node")
    assert set(first) == set(NODES)
    wait_for(lambda: all(snapshots()[node] > first[node] for node in NODES), "a newer snapshot of each node")
    wait_for(lambda: all(shown_by_powa_web(MONITOR).get(node) == (True, "running") for node in NODES), "pages of powa-web that show each node as well")


def test_after_a_power_failure_everything_comes_back_as_it_was():
    for name in HOSTS:
        power_off(name)
    assert primaries() == []
    for name in reversed(HOSTS):
        power_on(name)
    wait_for(lambda: cluster_is_whole(FIRST), "the cluster after the power failure")
    for name in HOSTS:
        wait_for(lambda name=name: all(machine(name).service(service).is_running for service in services(name)), "services of " + name)
    for pooler in POOLERS:
        test_clients_write_to_the_primary_and_read_on_a_standby(pooler)
    test_powa_collects_from_each_node_and_shows_it()
