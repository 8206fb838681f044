# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook register_powa_servers, and that every node stays visible when another one becomes the primary."""

from __future__ import annotations

import pytest
from lab import free_port, wait_until
from test_powa_roles import PLAY, Site

REGISTER = "- import_playbook: pgfleet.ops.register_powa_servers\n"


class RegisterSite(Site):
    """The site of the roles, where the inventory says what hosts do and nothing is registered at first."""

    def __init__(self, lab):
        super().__init__(lab)
        self.servers = []
        self.addresses = {one.name: one.port for one in (*self.remotes, self.standby)}

    def inventory(self):
        made = super().inventory()
        groups = made["all"]["children"]
        for name, variables in groups["db"]["hosts"].items():
            variables.update(pgfleet_roles=["powa_remote"], powa_remote_sources=["pg_qualstats"], powa_server_frequency=5,
                             powa_server_host="127.0.0.1", powa_server_port=self.addresses[name])  # fmt: skip
            variables["powa_remote_monitor_roles"] = ["mon"]
        groups["monitoring"]["hosts"]["monitor"]["pgfleet_roles"] = ["powa_repository", "powa_collector"]
        return made

    @property
    def registered(self):
        return self.repository.sql("SELECT alias, port FROM powa_servers WHERE id > 0 ORDER BY alias", dbname="powa")

    def snapshots_since(self, moment):
        """Aliases of servers with a snapshot without errors that is newer."""
        rows = self.repository.sql(
            "SELECT s.alias FROM powa_servers s JOIN powa_snapshot_metas m ON m.srvid = s.id WHERE m.snapts > %s AND m.errors IS NULL", [moment], dbname="powa"
        )
        return {alias for (alias,) in rows}


@pytest.fixture(scope="module")
def site(lab):
    made = RegisterSite(lab)
    made.play(PLAY)
    yield made
    made.close()


def test_from_refused_to_registered_to_a_switchover(site):
    """One story: a fault, check mode, the real run, a run without changes, a list of servers, another primary."""
    assert site.registered == []
    good = site.addresses["prod2"]
    site.addresses["prod2"] = free_port()
    with pytest.raises(AssertionError, match=r"1 of 3 servers that were asked cannot be collected\s+from. prod2: 127.0.0.1:\d+ does not\s+answer"):
        site.play(REGISTER)
    assert site.registered == []
    site.addresses["prod2"] = good

    pid = site.collector_pid
    _output, changes = site.play(REGISTER, "--check", "--diff")
    assert changes["monitor"] and site.registered == []
    # Only the host of repository and collector is touched; the collector needs no restart for servers that are new.
    _output, changes = site.play(REGISTER)
    assert changes["monitor"] and site.registered == sorted(site.addresses.items()) and site.collector_pid == pid
    assert site.snapshots_since("-infinity") == set(site.addresses)
    assert site.changes_nothing(REGISTER) and site.collector_pid == pid

    # A list of servers that Ansible knows nothing of, and one that is to be quiet: that takes a restart.
    entries = [{"alias": "elsewhere", "host": "localhost", "port": good, "user": "mon", "frequency": 5}, {"alias": "prod2", "state": "inactive"}]
    extra = site.directory.parent / "servers.json"
    extra.write_text('{"powa_servers": %s}' % str(entries).replace("'", '"'))
    site.play(REGISTER, "-e", "@%s" % extra)
    assert ("elsewhere", good) in site.registered and site.collector_pid != pid

    # Each node is registered as itself: after a change of roles the collector goes on with all of them.
    old, new = site.remotes[0], site.standby
    old.stop()
    new.value("SELECT pg_promote(true, 30)")
    old.follow(new, slot=False)
    old.start()
    wait_until(lambda: not new.in_recovery and old.in_recovery, 30)
    new.wait_for_standbys(1)
    moment = site.repository.value("SELECT clock_timestamp()")
    # Collector 1.2 takes a snapshot at each third interval.
    wait_until(lambda: site.snapshots_since(moment) >= {"prod1", "prod1standby", "elsewhere"}, 90, interval=1)
    servers = dict(site.repository.sql("SELECT alias, id FROM powa_servers", dbname="powa"))
    databases = "SELECT count(*) FROM powa_statements_history_current_db WHERE srvid = %s AND (record).ts > %s"
    assert site.repository.value(databases, [servers["prod1"], moment], dbname="powa")
    assert site.repository.value(databases, [servers["prod1standby"], moment], dbname="powa")
