# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The poolers of a cluster while its primary moves: looked at, held back, led to the new primary, let go. Planned or not, it is the same."""

from __future__ import annotations

import contextlib
import dataclasses
import select
import time
import typing as t

from .._cluster.aliases import is_read_only
from .._cluster.model import Cluster, Node
from .._cluster.switchover import PoolerView, read_only_target
from .._errors import InvalidInput, NotConfirmed, OperationError, Refused, WaitTimeout
from .._host.guardian import Guardian
from .._module import ArgumentSpec
from .._parallel import ask_all
from .._pgbouncer.console import Console
from .._pgbouncer.ini import DATABASES, DEFAULT_PORT, Change, Ini, endpoint, retarget
from .._plan import Plan
from .._sql.connection import Target, connect
from .._wait import Deadline
from .members import Run

# With PgBouncer's default of 15 s, one login that meets a PAUSE keeps a pool closed for that long.
LOGIN_RETRY_SECONDS = "0.005"
# A pool that has as many server connections opens no further one, so that none is in login. Those that it has go on.
NO_GROWTH = "1"
# A connection to a server that had no work for as long, in seconds, is one too many.
IDLE_SECONDS = 0.2
# PgBouncer looks for such connections three times a second (full_maint_period in its janitor.c).
MAINTENANCE_SECONDS = 0.35
BORROWED = ("server_login_retry", "default_pool_size", "server_idle_timeout", "min_pool_size")
"""What an operation sets for its own time."""
# The poolers log in to the new primary right after a RESUME. Where what comes next shares processors with them, they would have to wait.
CLIENTS_FIRST_SECONDS = 0.03
# So many entries are paused, and resumed, at once at most; the others after these.
LANES = 8

POOLERS = ArgumentSpec(
    {
        "poolers": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "name": {"type": "str", "required": True},
                "host": {"type": "str", "required": True},
                "port": {"type": "int", "default": 6432},
                "user": {"type": "str"},
                "password": {"type": "str", "no_log": True},
                "config_file": {"type": "path", "required": True},
                "shell": {"type": "list", "elements": "str", "default": []},
            },
        },
        "pooler_user": {"type": "str"},
        "pooler_password": {"type": "str", "no_log": True},
        "readonly_suffix": {"type": "str", "default": "_ro"},
        "readonly_databases": {"type": "list", "elements": "str", "default": []},
        "pause_timeout": {"type": "float", "default": 2},
        "timeout": {"type": "float", "default": 30},
    }
)
"""In step with the doc fragment ``poolers``."""


@dataclasses.dataclass(eq=False)
class Pooler:
    """One pooler with all that an operation needs of it."""

    name: str
    options: t.Mapping[str, t.Any]
    target: Target
    guardian: Guardian | None = None
    console: Console | None = None
    lanes: list[Console] = dataclasses.field(default_factory=list)
    """Further consoles: each sends its PAUSE and its RESUME without waiting for others."""
    text: str = ""
    new_text: str = ""
    changes: t.Sequence[Change] = ()
    everything: bool = False
    """It is paused as a whole, because its entry "*" is affected."""
    settings: t.Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    """What SHOW CONFIG says."""
    sizes: t.Mapping[str, int] = dataclasses.field(default_factory=dict)
    """How many server connections each entry may have, by SHOW DATABASES."""
    view: PoolerView = dataclasses.field(default_factory=lambda: PoolerView(""))

    ends: t.Sequence[str] = ()
    """Entries whose sessions are ended instead of waited for: they pool by session, and no PAUSE of them would end."""

    @property
    def paused(self) -> list[str | None]:
        """What the PAUSE and RESUME commands name; None is everything."""
        return [None] if self.everything else [change.name for change in self.changes]

    @property
    def entries(self) -> dict[str, dict[str, str]]:
        """The entries of its file, as it is on disk."""
        return Ini.parse(self.text, section=DATABASES).databases() if self.text else {}

    def describe(self) -> dict[str, dict[str, str]]:
        """For the result: where each entry of its file leads."""
        return {name: _shown(entry) for name, entry in self.entries.items()}

    def diff(self) -> dict[str, str]:
        """Keywords of a step of the plan."""
        return {
            "subject": "pooler %s, %s" % (self.name, self.options["config_file"]),
            "before": _targets(self.changes, "before"),
            "after": _targets(self.changes, "after"),
        }


def check_poolers(params: t.Mapping[str, t.Any]) -> None:
    """The options of the poolers make sense together. Raises InvalidInput."""
    names = [entry["name"] for entry in params["poolers"]]
    if len(set(names)) != len(names):
        raise InvalidInput("two entries of the option poolers have the same name: %s" % ", ".join(sorted(names)))
    if params["pause_timeout"] * 2 > params["timeout"]:
        raise InvalidInput("the option timeout (%g s) must be at least twice the option pause_timeout (%g s)" % (params["timeout"], params["pause_timeout"]))


def look_at_poolers(run: Run, cluster: Cluster, candidate: Node, lost: t.Collection[Node] = (), astray: t.Collection[Node] = ()) -> list[Pooler]:
    """Ask every pooler, and find out what its file will say when ``candidate`` is the primary. One that cannot be asked has a problem in its view.

    ``lost``: nodes that cannot be read from either. ``astray``: standbys that do not follow the primary; one that a pooler takes for it was the primary.
    """
    params = run.params
    deadline = Deadline(10)
    poolers = []
    for entry in params["poolers"]:
        poolers.append(Pooler(entry["name"], entry, _console_of(params, entry)))
    for pooler, answer in zip(poolers, ask_all(poolers, lambda pooler: _look(run, pooler, cluster, candidate, lost, astray, deadline), deadline)):
        pooler.view = PoolerView(pooler.name, problem=str(answer)) if isinstance(answer, OperationError) else answer
    return poolers


def _console_of(params: t.Mapping[str, t.Any], entry: t.Mapping[str, t.Any]) -> Target:
    return Target.from_params(
        params, host=entry["host"], port=entry["port"], user=entry["user"] or params["pooler_user"], dbname="pgbouncer",
        password=entry["password"] or params["pooler_password"],
    )  # fmt: skip


def find_taken_for_primary(run: Run, cluster: Cluster) -> list[Node]:
    """Standbys to which a pooler that an interrupted failover has left leads its clients still, and lets nobody in. Asks the consoles only.

    Who leads clients there and lets them in may mean it: that is a warning. A pooler that does not answer is passed over.
    """
    params, deadline = run.params, Deadline(5)
    found: list[Node] = []

    def ask(entry: t.Mapping[str, t.Any]) -> dict[str, dict[str, t.Any]]:
        console = Console.open(_console_of(params, entry), timeout=deadline.left)
        try:
            return console.databases(deadline)
        finally:
            console.close()

    for entry, answer in zip(params["poolers"], ask_all(params["poolers"], ask, deadline)):
        for name, row in ({} if isinstance(answer, OperationError) else answer).items():
            led = next((node for node in cluster.standbys if node.listens_at(row["host"] or "", int(row["port"] or DEFAULT_PORT))), None)
            if led is None or is_read_only(name, params["readonly_suffix"], params["readonly_databases"]):
                continue
            if row["disabled"]:
                found.append(led)
            else:
                run.warn("pooler %s: the entry %s leads to %s, which is a standby (see the option readonly_databases)" % (entry["name"], name, led.name))
    return found


def start_guardian(run: Run, pooler: Pooler) -> Guardian:
    return run.guardian(pooler.name, pooler.options["shell"], {"part": "pooler", "config_file": pooler.options["config_file"]})


def _look(
    run: Run, pooler: Pooler, cluster: Cluster, candidate: Node, lost: t.Collection[Node], astray: t.Collection[Node], deadline: Deadline
) -> PoolerView:  # fmt: skip
    # Also where its console does not answer: it sees nodes.
    pooler.guardian = start_guardian(run, pooler)
    pooler.console = run.console(pooler.name, pooler.target, timeout=5)
    pooler.text = pooler.new_text = pooler.guardian.call("look", deadline)["text"]
    _retarget(run.params, pooler, cluster, candidate, lost, astray)
    entries = pooler.entries
    running = pooler.console.databases(deadline)
    config = pooler.console.config(deadline)
    pooler.settings = config
    pooler.sizes = {name: row["pool_size"] for name, row in running.items()}
    affected = [change.name for change in pooler.changes]
    # "*" has no name of its own at run time: it can only be paused with everything else.
    pooler.everything = "*" in affected
    return PoolerView(
        name=pooler.name,
        affected=affected,
        session_pools=[name for name in affected if (running.get(name, {}).get("pool_mode") or config["pool_mode"]) == "session"],
        stale=[name for name in affected if name != "*" and not same_target(entries[name], running.get(name))],
        disabled=[name for name in affected if running.get(name, {}).get("disabled")],
        paused=["everything"] if pooler.console.is_paused(deadline) else [name for name in affected if running.get(name, {}).get("paused")],
        ahead=[
            name
            for name, entry in entries.items()
            if leads_to(candidate, entry) and not is_read_only(name, run.params["readonly_suffix"], run.params["readonly_databases"])
        ],
    )


def _retarget(
    params: t.Mapping[str, t.Any], pooler: Pooler, cluster: Cluster, candidate: Node, lost: t.Collection[Node], astray: t.Collection[Node]
) -> None:  # fmt: skip
    """The pooler's file as it will be: read-write entries go to the candidate, read-only ones leave it and what is lost."""
    primary = cluster.primary
    if not candidate.reachable or (primary is candidate and not lost and not astray):
        return
    entries = pooler.entries
    target = read_only_target(cluster, candidate) or candidate
    read_only = [name for name in entries if is_read_only(name, params["readonly_suffix"], params["readonly_databases"])]
    read_write = [name for name in entries if name not in read_only]
    if primary is candidate:
        # A pooler that was not led when the primary moved: its entries tell from where.
        led = [entries[name] for name in read_write]
        former = [node for node in [*lost, *astray] if any(leads_to(node, entry) for entry in led)]
        sources, no_readers = former, [*lost, *(node for node in former if node not in lost), *([candidate] if former else [])]
    else:
        # Without a primary something was interrupted or lost: then all that leads elsewhere is led to the candidate.
        sources = [primary] if primary else [node for node in cluster.nodes if node is not candidate]
        no_readers = [candidate, *lost]
    text, changes = pooler.text, []
    for source, destination, names in (
        *((source, candidate, read_write) for source in sources),
        *((source, target, read_only) for source in no_readers),
    ):
        mapping = {
            (host, port): (destination.peer_address, destination.port)
            for host, port in {endpoint(entry) for entry in entries.values()}
            if source.listens_at(host, port)
        }
        text, changed = retarget(text, mapping, names=names, section=DATABASES)
        changes += changed
    pooler.new_text, pooler.changes = text, changes


class Redirection:
    """The way of all poolers whose entries change from one primary to the next.

    Its methods come in this order: prepare, warm_up, arm, prove_files, close_idle, quicken_logins, hold_back, write_files, let_go, let_go_of_the_rest.

    From ``arm`` on the guardian of each pooler leads it to whichever node accepts writes when the process that holds this is gone, or late.
    """

    def __init__(self, run: Run, poolers: t.Iterable[Pooler], old: Node | None, new: Node, tolerant: bool = False) -> None:
        self._run = run
        self._tolerant = tolerant
        self.left: dict[str, str] = {}
        """Poolers that did not do as they were told, and why; without ``tolerant`` the first one is an error."""
        self._left_poolers: list[Pooler] = []
        self._old = old
        self._new = new
        self.poolers = [pooler for pooler in poolers if pooler.changes and not pooler.view.problem]
        self.armed = False
        self._borrowed: dict[tuple[Pooler, str], str] = {}
        """Settings of poolers that are others for as long as this lasts, and what they were."""
        self._began = 0.0

    @property
    def guardians(self) -> list[Guardian]:
        return [t.cast(Guardian, pooler.guardian) for pooler in self.poolers]

    def prepare(self, deadline: Deadline, old_is_lost: bool = False) -> None:
        """Tell the guardians all that they need to go either way. ``old_is_lost``: it need not answer now."""

        def connect(pooler: Pooler) -> None:
            while len(pooler.lanes) < min(len(pooler.paused), LANES):
                pooler.lanes.append(self._run.keep(Console.open(pooler.target, timeout=5)))

        def finish(pooler: Pooler) -> None:
            t.cast(Guardian, pooler.guardian).finish(deadline)

        self._each(lambda pooler: self._prepare(pooler, [self._old] if old_is_lost else []), connect, finish)

    def _each(self, *parts: t.Callable[[Pooler], t.Any], among: t.Callable[[Pooler], t.Any] = bool) -> None:
        """Each part for all poolers, or those ``among`` them that it is true for, before the next one."""
        for part in parts:
            for pooler in list(filter(among, self.poolers)):
                try:
                    part(pooler)
                except OperationError as error:
                    self._give_up(pooler, error)

    def _give_up(self, pooler: Pooler, error: OperationError) -> None:
        if not self._tolerant:
            raise error
        self.left[pooler.name] = error.message
        self._left_poolers.append(pooler)
        self.poolers.remove(pooler)

    def _prepare(self, pooler: Pooler, may_be_down: t.Sequence[Node | None]) -> None:
        directions = []
        for node, text, side in ((self._old, pooler.text, "before"), (self._new, pooler.new_text, "after")):
            if node is None:
                # No way back; the file as it is has to be known all the same.
                directions.append({"name": "", "node": None, "text": text, "targets": {}, "system_identifier": self._new.system_identifier})
                continue
            targets = {change.name: list(endpoint(getattr(change, side))) for change in pooler.changes if change.name != "*"}
            directions.append(
                {
                    "name": node.name,
                    "node": self._run.target(node).keywords(),
                    "text": text,
                    "targets": targets,
                    "system_identifier": self._new.system_identifier,
                    "may_be_down": node in may_be_down,
                    "will_stop": node is self._old,
                }
            )
        t.cast(Guardian, pooler.guardian).start(
            "prepare", console=pooler.target.keywords(), databases=None if pooler.everything else pooler.paused, directions=directions,
            following=self._text_meanwhile(pooler), texts=list(self._proof(pooler).values()),
            settings={key: pooler.settings[key] or "" for key in BORROWED},
        )  # fmt: skip

    def recover_with_another(self, lost: Guardian, deadline: Deadline) -> str:
        """A guardian is gone, or out of reach: another one puts its pooler back. Returns what it did; errors are those of Guardian."""
        pooler = next(pooler for pooler in [*self.poolers, *self._left_poolers] if pooler.guardian is lost)
        pooler.guardian = start_guardian(self._run, pooler)
        self._prepare(pooler, [self._old, self._new])
        pooler.guardian.finish(deadline)
        return str(pooler.guardian.call("recover", deadline))

    def warm_up(self, deadline: Deadline) -> None:
        """Log in once to each database of the new primary that entries will lead to.

        A start of a server removes what it had at hand of the catalogs of each database (RelationCacheInitFileRemove in PostgreSQL's relcache.c), and a login
        collects it anew. After a RESUME all logins would, at once. Where this user may not log in, nothing is gained and nothing is lost.
        """
        names = {change.after.get("dbname") or change.name for pooler in self.poolers for change in pooler.changes if leads_to(self._new, change.after)}
        target = self._run.target(self._new)
        ask_all(sorted(names - {"*"}), lambda name: connect(target.to(dbname=name), timeout=deadline.left).close(), deadline, at_most=LANES)

    def arm(self, limit: float, deadline: Deadline) -> None:
        """From here on the guardians act when we do not, after ``limit`` seconds at the latest."""
        self.armed = True
        self._each(
            lambda pooler: t.cast(Guardian, pooler.guardian).start("arm", limit=limit), lambda pooler: t.cast(Guardian, pooler.guardian).finish(deadline)
        )

    def prove_files(self, limit: Deadline) -> None:
        """The poolers read the files that will lead them: each is given a change that nobody notices, and shows it. Raises Refused.

        RELOAD answers success whatever it makes of a file, and later, right before the RESUME, it is too late to find out. Needs guardians that are armed.
        """
        proofs = {pooler: self._proof(pooler) for pooler in self.poolers}

        def write(pooler: Pooler) -> None:
            for text in proofs[pooler].values():
                t.cast(Guardian, pooler.guardian).call("switch", limit, text=text)

        def check(pooler: Pooler) -> None:
            if not proofs[pooler]:
                return
            console = t.cast(Console, pooler.console)
            console.reload(limit)
            running = console.databases(limit)
            unread = [name for name, size in proofs[pooler] if running.get(name, {}).get("pool_size") != size]
            t.cast(Guardian, pooler.guardian).call("switch", limit, text=pooler.text)
            console.reload(limit)
            # What a run that was killed has left set is gone.
            pooler.settings = console.config(limit)
            if unread:
                raise Refused(
                    "pooler %s does not take what %s says of %s: after a RELOAD a change of it is not seen"
                    % (pooler.name, pooler.options["config_file"], unread[0]),
                    action="See the log of that PgBouncer for faults of its configuration, and whether it reads this file (SHOW CONFIG, conffile)",
                )

        self._each(write, check)

    @staticmethod
    def _proof(pooler: Pooler) -> dict[tuple[str, int], str]:
        """By entry and its size of the pool then: the file with a pool that may have one connection more. Empty where no entry can show that."""
        for change in pooler.changes:
            size = pooler.sizes.get(change.name)
            if size is not None:
                ini = Ini.parse(pooler.text, section=DATABASES)
                ini.set_database(change.name, {"pool_size": size + 1})
                return {(change.name, size + 1): ini.text()}
        return {}

    def _text_meanwhile(self, pooler: Pooler) -> str:
        """The file while the old primary is no standby yet: what will lead there leads where it did."""
        deferred = self._deferred(pooler)
        if not deferred:
            return pooler.new_text
        ini = Ini.parse(pooler.new_text, section=DATABASES)
        for change in pooler.changes:
            if change.name in deferred:
                ini.set_database(change.name, {key: change.before.get(key) for key in ("host", "port")})
        return ini.text()

    def disarm(self) -> None:
        # While the guardians would still do it. What fails here is tried again at the end, and told then.
        with contextlib.suppress(OperationError):
            self.restore_settings()
        self._each(lambda pooler: t.cast(Guardian, pooler.guardian).call("disarm", Deadline(5)))
        self.armed = False

    def close_idle(self, limit: Deadline) -> None:
        """Have the poolers close connections that the load of this moment does not need; what a peak has left in a pool is often most of it.

        A PAUSE closes all that are left, and the old primary cannot stop before each of their backends has ended, which takes a processor milliseconds.
        """
        bloated = []

        def shorten(pooler: Pooler) -> None:
            idle = sum(row["sv_idle"] + row["sv_used"] for row in t.cast(Console, pooler.console).pools(limit) if row["database"] in pooler.view.affected)
            usual = float(pooler.settings["server_idle_timeout"] or 0)
            if idle and not 0 < usual <= IDLE_SECONDS:
                bloated.append(pooler)
                # An empty pool would open a connection for the next client, and may be about to when the PAUSE comes.
                if pooler.settings["min_pool_size"] == "0":
                    self._borrow(pooler, "min_pool_size", "1", limit)
                self._borrow(pooler, "server_idle_timeout", str(IDLE_SECONDS), limit)

        def give_back(pooler: Pooler) -> None:
            for key in ("server_idle_timeout", "min_pool_size"):
                if (pooler, key) in self._borrowed:
                    self._give_back(pooler, key, t.cast(Console, pooler.console), limit)

        self._each(shorten)
        if bloated:
            time.sleep(min(IDLE_SECONDS + MAINTENANCE_SECONDS, limit.left / 8))
            self._each(give_back, among=bloated.__contains__)

    def quicken_logins(self, bound: Deadline) -> None:
        """A PAUSE that meets a server connection in login makes PgBouncer take the pool for failed: let that last no longer than a moment, and avoid it.

        Until a login has succeeded after the RESUME, PgBouncer refuses each client that comes newly, whatever server_login_retry is. To look for logins is not
        enough: one may begin between the look and the PAUSE. An entry with a pool_size of its own cannot be kept from it.
        """

        def quicken(pooler: Pooler) -> None:
            if float(pooler.settings["server_login_retry"] or 0) > float(LOGIN_RETRY_SECONDS):
                self._borrow(pooler, "server_login_retry", LOGIN_RETRY_SECONDS, bound)
            self._borrow(pooler, "default_pool_size", NO_GROWTH, bound)

        self._each(quicken, lambda pooler: self._wait_for_logins(t.cast(Console, pooler.console), bound))

    def _borrow(self, pooler: Pooler, key: str, value: str, bound: Deadline) -> None:
        self._borrowed[pooler, key] = pooler.settings[key] or ""
        t.cast(Console, pooler.console).set(key, value, bound)

    def _give_back(self, pooler: Pooler, key: str, console: Console, bound: Deadline | None = None) -> None:
        console.set(key, self._borrowed[pooler, key], bound)
        del self._borrowed[pooler, key]

    @staticmethod
    def _wait_for_logins(console: Console, bound: Deadline) -> None:
        """At most half of the time that there is."""
        while any(row["sv_login"] for row in console.pools(bound)) and bound.left > bound.seconds / 2:
            time.sleep(0.001)

    def hold_back(self, bound: Deadline, where: str, complete: bool = True) -> list[str]:
        """PAUSE everything that changes, on all poolers at once. Returns the names of those whose transactions have not ended; an error if ``complete``."""
        self._began = time.monotonic()
        busy: dict[Console, tuple[Pooler, list[str | None]]] = {}
        """Consoles with a PAUSE under way, and what they will pause next."""

        def start(pooler: Pooler) -> None:
            names = [name for name in pooler.paused if name not in pooler.ends]
            for number, console in enumerate(pooler.lanes):
                following = names[number :: len(pooler.lanes)]
                if following:
                    console.start_pause(following.pop(0))
                    busy[console] = (pooler, following)

        def go_on(console: Console, following: list[str | None]) -> None:
            if console.pause_finished():
                console.finish_pause(bound)
                if following:
                    console.start_pause(following.pop(0))
                else:
                    del busy[console]

        self._each(start)
        while busy:
            sockets = {console.session.fileno: console for console in busy}
            ready, _w, _x = select.select(list(sockets), [], [], bound.left)
            if not ready and bound.passed:
                if complete:
                    raise WaitTimeout(
                        "PAUSE did not end within %g s on %s: clients hold transactions open"
                        % (bound.seconds, ", ".join(sorted({pooler.name for pooler, _following in busy.values()}))),
                        action="See pg_stat_activity on %s for the transactions, or raise pause_timeout" % where,
                    )
                break
            for console in [sockets[descriptor] for descriptor in ready if sockets[descriptor] in busy]:
                pooler, following = busy[console]
                try:
                    go_on(console, following)
                except OperationError as error:
                    for other in [one for one, lane in busy.items() if lane[0] is pooler]:
                        del busy[other]
                    self._give_up(pooler, error)

        def leave_it_waiting(pooler: Pooler) -> None:
            # The PAUSE goes on, and its console with it.
            for console, (_pooler, following) in [lane for lane in busy.items() if lane[1][0] is pooler]:
                pooler.lanes[pooler.lanes.index(console)] = self._run.keep(Console.open(pooler.target, timeout=5))
                for name in following:
                    self._run.keep(Console.open(pooler.target, timeout=5)).start_pause(name)

        self._each(leave_it_waiting)
        return sorted({pooler.name for pooler, _following in busy.values()})

    def end_sessions(self, limit: Deadline) -> dict[str, dict[str, int]]:
        """End the sessions of the entries that pool by session. Returns how many each had, by pooler and entry.

        KILL leaves the entry paused, so that a client that comes back waits for RESUME and sees no other error.
        """
        ended: dict[str, dict[str, int]] = {}
        for pooler in self.poolers:
            console = t.cast(Console, pooler.console)
            if pooler.ends:
                self._wait_for_logins(console, limit.within(1))
                pools = console.pools(limit)
                for name in pooler.ends:
                    console.kill(name, limit)
                    ended.setdefault(pooler.name, {})[name] = sum(row["cl_active"] + row["cl_waiting"] for row in pools if row["database"] == name)
        return ended

    def write_files(self, limit: Deadline) -> None:
        """Lead the files to the new primary, and have no pooler read them yet."""
        self._each(
            lambda pooler: t.cast(Guardian, pooler.guardian).start("switch", text=self._text_meanwhile(pooler)),
            lambda pooler: t.cast(Guardian, pooler.guardian).finish(limit),
        )

    def let_go(self, limit: Deadline) -> float:
        """Lead everything to the new primary and RESUME it, but for what will lead to the old one. Returns the milliseconds since the first PAUSE.

        Raises NotConfirmed where a pooler does not do what its file says.
        """
        self._reload_and_resume(limit, lambda pooler: [name for name in pooler.paused if name not in self._deferred(pooler)])
        paused_ms = self.paused_ms
        self._run.mark("resume")
        time.sleep(CLIENTS_FIRST_SECONDS)
        self._run.mark(None)
        self._each(lambda pooler: self._check(pooler, limit, besides=self._deferred(pooler)))
        return paused_ms

    def let_go_of_the_rest(self, limit: Deadline) -> None:
        """Lead the rest to the old primary, which is a standby by now, and RESUME it."""
        self._each(
            lambda pooler: t.cast(Guardian, pooler.guardian).start("switch", text=pooler.new_text),
            lambda pooler: t.cast(Guardian, pooler.guardian).finish(limit),
            among=self._deferred,
        )
        self._reload_and_resume(limit, lambda pooler: [] if pooler.everything else list(self._deferred(pooler)), among=self._deferred)
        self._each(lambda pooler: self._check(pooler, limit), among=self._deferred)

    def _reload_and_resume(self, limit: Deadline, names: t.Callable[[Pooler], list[str | None]], among: t.Callable[[Pooler], t.Any] = bool) -> None:
        """Without waiting in between: PgBouncer finds the RESUMEs right behind the RELOAD.

        For the first client that logs in between the two it opens a connection to the new server, closes that one because of the PAUSE, takes the pool for
        failed, and refuses clients after the RESUME.
        """

        def begin(pooler: Pooler) -> None:
            t.cast(Console, pooler.console).start_reload()
            for console, name in zip(pooler.lanes, names(pooler)):
                console.start_resume(name)

        def finish(pooler: Pooler) -> None:
            for number, name in enumerate(names(pooler)):
                console = pooler.lanes[number % LANES]
                if number >= LANES:
                    console.start_resume(name)
                console.finish_resume(limit, missing_ok=True)

        def restore(pooler: Pooler) -> None:
            # All settings are those of the file again.
            self._borrowed.pop((pooler, "default_pool_size"), None)
            if (pooler, "server_login_retry") in self._borrowed:
                t.cast(Console, pooler.console).set("server_login_retry", LOGIN_RETRY_SECONDS, limit)

        self._each(begin, lambda pooler: t.cast(Console, pooler.console).finish(limit), among=among)
        self._run.mark("reload")
        self._each(finish, restore, among=among)

    @staticmethod
    def _check(pooler: Pooler, limit: Deadline, besides: t.Collection[str] = ()) -> None:
        # RELOAD answers success whatever it makes of the file.
        running = t.cast(Console, pooler.console).databases(limit)
        led = [change for change in pooler.changes if change.name != "*" and change.name not in besides]
        wrong = [change.name for change in led if not same_target(change.after, running.get(change.name))]
        if wrong:
            raise NotConfirmed("pooler %s still leads elsewhere for %s, although its file was changed and it was reloaded" % (pooler.name, ", ".join(wrong)))

    def recover(self, patience: Deadline) -> dict[str, str]:
        """Let every guardian lead its pooler to whichever node accepts writes, as it would without us. What each of them did."""
        everyone = [*self.poolers, *self._left_poolers]
        outcomes: dict[str, str] = {}
        for pooler in everyone:
            ask_to_recover(t.cast(Guardian, pooler.guardian))
        for pooler in everyone:
            try:
                outcomes[pooler.name] = told_of_recovery(t.cast(Guardian, pooler.guardian), patience)
            except OperationError as error:
                outcomes[pooler.name] = "recovery failed: %s" % error
                # A pooler whose guardian has died would stay paused.
                with contextlib.suppress(OperationError):
                    outcomes[pooler.name] = self.recover_with_another(t.cast(Guardian, pooler.guardian), patience)
        return outcomes

    def lead_what_is_left(self, patience: Deadline) -> None:
        """Once the new primary accepts writes: the guardians of those that did not do as they were told. What they cannot lead lets nobody in."""
        self.poolers, led = [], self.poolers
        outcomes = self.recover(patience)
        self.poolers = led
        for pooler in list(self._left_poolers):
            outcome = outcomes[pooler.name]
            if outcome.endswith("it leads to %s" % self._new.name):
                del self.left[pooler.name]
                self._left_poolers.remove(pooler)
                continue
            self.left[pooler.name] = "%s; %s" % (self.left[pooler.name].rstrip("."), outcome)
            with contextlib.suppress(OperationError):
                t.cast(Guardian, pooler.guardian).call("let_nobody_in", Deadline(5), names=[change.name for change in pooler.changes if change.name != "*"])

    @property
    def paused_ms(self) -> float:
        return round((time.monotonic() - self._began) * 1000, 1) if self._began else 0.0

    def _deferred(self, pooler: Pooler) -> list[str]:
        """Read-only entries that now lead to the old primary: they wait until it is a standby that answers."""
        return [change.name for change in pooler.changes if self._old and leads_to(self._old, change.after)]

    def restore_settings(self) -> None:
        """What close_idle and quicken_logins have set. On a console of its own: the other one may be busy with a PAUSE that has not ended.

        Tries every pooler, and those that fail again the next time.
        """
        failed: list[OperationError] = []
        for pooler, key in list(self._borrowed):
            try:
                console = Console.open(pooler.target, timeout=5)
                try:
                    self._give_back(pooler, key, console)
                finally:
                    console.close()
            except OperationError as error:
                failed.append(error)
        if failed:
            raise failed[0]


def add_resume_steps(plan: Plan, redirection: Redirection, resume: t.Callable[[], t.Any]) -> None:
    """One step for each pooler in the plan, which shows its part of the diff; all are done together with the first."""
    for number, pooler in enumerate(redirection.poolers):
        plan.add("resume %s towards %s" % (pooler.name, redirection._new.name), _nothing if number else resume, **pooler.diff())


def ask_to_recover(guardian: Guardian) -> None:
    """Let a guardian put its part back. Requests may be under way whose answers nobody has read."""
    # Where it is gone, whoever waits for its answer finds out.
    with contextlib.suppress(OperationError):
        guardian.start("recover")


def told_of_recovery(guardian: Guardian, deadline: Deadline) -> str:
    """The answer to ask_to_recover(), which comes after all others. Errors are those of Guardian."""
    while guardian.waiting > 1:
        try:
            guardian.finish(deadline)
        except WaitTimeout:
            raise
        except OperationError:
            continue
    return str(guardian.finish(deadline))


def leads_to(node: Node, entry: t.Mapping[str, str]) -> bool:
    """Whether an entry of a pooler's file leads to a node."""
    return node.listens_at(*endpoint(entry))


def same_target(entry: t.Mapping[str, str], running: t.Mapping[str, t.Any] | None) -> bool:
    """Whether an entry of the file is what the pooler does."""
    if running is None:
        return False
    return endpoint(entry) == (running["host"] or "", int(running["port"] or DEFAULT_PORT))


def _shown(entry: t.Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in entry.items() if key in ("host", "port", "dbname")}


def _targets(changes: t.Sequence[Change], side: str) -> str:
    return "".join("%s = %s\n" % (change.name, " ".join("%s=%s" % item for item in _shown(getattr(change, side)).items())) for change in changes)


def _nothing() -> None:
    """A step that shows its own part of the diff and is done together with the step before it."""
