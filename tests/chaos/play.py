# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One case from a sound site to a judgement: the operation with its fault, the way back, one more run without a fault, and the rules."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import threading
import time

from cases import Case
from chaos_site import BORROWED, SETTINGS, end
from faults import Faults
from history import ACKNOWLEDGED, DataLoss, lost, paused_too_long, phantoms, too_little, two_writers
from lab import REPOSITORY, collections_path, lives, wait_until
from losses import LOSSES
from observers import Observers

DRIVER = REPOSITORY / "tests" / "integration" / "operation_driver.py"

TIMEOUT = 5.0
"""The option timeout of the run with the fault, in seconds."""
HOLD = TIMEOUT + 1
"""How long a fault lasts that ends by itself, in seconds."""
MARGIN = 8.0
"""What a machine that has other things to do, and questions to servers that do not answer, may add to a pause (seconds)."""
OPERATION_SECONDS = 150
"""No run takes longer, whatever happens to it."""
GUARDIAN_SECONDS = 60
"""When the controller is gone and everything is well again, guardians end within this time."""

MAX_LOSS = 262144
"""Bytes of WAL that a failover may lose here."""

OPTIONS = {
    "switchover": {"prepare_timeout": 20},
    "failover": {"tries": 2, "delay": 0.2, "answer_timeout": 2, "promote_timeout": 20, "max_data_loss_bytes": MAX_LOSS},
}


@dataclasses.dataclass
class Played:
    case: str
    violations: list[str]
    outcome: str = ""
    """What the operation and its guardians made of it, before the next run."""
    seconds: float = 0.0
    details: list[str] = dataclasses.field(default_factory=list)

    def story(self) -> str:
        lines = [line for text in self.details for line in text.split("\n")]
        return "\n  ".join(["%s: %s" % (self.case, self.outcome), *("VIOLATION %s" % text for text in self.violations), *lines])


class MomentMissed(AssertionError):
    """The run ended, or hung, before the fault was there: nothing can be said of the case."""


class Driver:
    """A run of the operation as a process of its own, which asks at one moment how to go on."""

    def __init__(self, site, operation, options, moment=None):
        path = site.run_directory / "options.json"
        path.write_text(json.dumps(options))
        self.moment = moment
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), operation, str(path), *(["ask", moment] if moment else ["none"])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(collections_path()), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        self.pid = self.process.pid
        self.lines = []
        self.asked = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            if line.strip() == "AT":
                self.asked.set()
            else:
                self.lines.append(line.rstrip("\n"))

    def wait_for_the_moment(self, seconds=60):
        deadline = time.monotonic() + seconds
        while not self.asked.wait(0.005):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise MomentMissed("the moment %s did not come: %s" % (self.moment, self.result() or self.lines[-3:]))

    def answer(self, word):
        with contextlib.suppress(OSError):
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()

    def finish(self, seconds):
        """Whether it ended by itself."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            end([self.pid])
            self.process.wait(10)
            return False
        finally:
            with contextlib.suppress(OSError):  # what it has not read
                self.process.stdin.close()
        self._reader.join(10)
        return True

    def result(self):
        """What it printed; None where it was killed."""
        for line in reversed(self.lines):
            if line.startswith('{"'):
                return json.loads(line)
        return None


def play(site, case: Case, run: str) -> Played:
    """On a sound site. Raises AssertionError where the case itself did not work; the site is of no more use then, nor after a violation."""
    began = time.monotonic()
    played = Played(case.id, [])
    site.forget_guardians()
    old = site.primary
    candidate, other = [node for node in site.nodes if node is not old]
    roles = {"old": old, "candidate": candidate, "other": other, "pooler": site.poolers[0]}
    if case.victim == "wal-candidate":
        site.give_wal_a_disk(candidate)
        old.wait_for_standbys(len(site.nodes) - 1)
    faults = Faults(site, roles, HOLD)
    loss = LOSSES[case.operation](site, roles) if case.engine == "failover" else None
    with Observers(site, run) as observers:
        wait_until(lambda: all(observers.acknowledged(name) for name in [*observers.names, "probe-" + old.name]), 20)
        lost_at = 0.0
        try:
            options = site.options(candidate.name, timeout=TIMEOUT, pause_timeout=1, **OPTIONS[case.engine])
            if loss:
                loss.begin()
                lost_at = time.monotonic()
                faults.loss = loss
                loss.change(options)
                loss.change_first(options)
            driver = faults.controller = Driver(site, case.engine, options, case.moment)
            driver.wait_for_the_moment()
            hit = time.monotonic()
            if case.delay is not None:
                driver.answer("go")
                time.sleep(case.delay / 1000)
            if case.fault == "raise":
                driver.answer("error")
            else:
                faults.inject(case.fault, case.victim)
                driver.answer("go")
            if not driver.finish(OPERATION_SECONDS):
                played.violations.append("the operation had not ended after %d s" % OPERATION_SECONDS)
            result = driver.result()
            played.details.append("the operation ended %.1f s after the moment" % (time.monotonic() - hit))
            settle(site, faults, hit, old)
            played.violations += honest(site, case, result, old.name, candidate.name)
            played.outcome = outcome(site, result, old.name, candidate.name)
            played.details.append("result: %s" % tell(result))
            played.violations += ["%s has %s paused, and nothing works on it any more" % pair for pair in site.paused()]
            quiet = time.monotonic()
            played.details.append("its guardians and init systems were done %.1f s after the moment" % (quiet - hit))
            final, outside = repair(site, case, loss, old, candidate, played)
            # Where this does not come, too_little() and others say why.
            with contextlib.suppress(AssertionError):
                wait_until(lambda: all(observers.acknowledged(name, quiet) for name in [*observers.names, "probe-" + final.name]), 15)
        finally:
            faults.heal()
            if loss:
                loss.take_back()
            if faults.controller:
                end([faults.controller.pid] if lives(faults.controller.pid) else [])
    names = observers.names
    commits, samples = observers.commits, observers.samples
    held = set(final.sql("SELECT client, sequence FROM public.chaos WHERE run = %s", [run], dbname="app"))
    allowed = None
    if loss and final is not old:
        before = max((commit.timeline for commit in commits if commit.node == old.name), default=0)
        allowed = DataLoss(old.name, loss.end_of_commits(lost_at), site.fork(final, before), MAX_LOSS)
    pause_limit = TIMEOUT + MARGIN + (HOLD if case.fault in ("freeze", "partition") else 0)
    played.violations += (
        lost(commits, held, allowed)
        + phantoms(commits, held)
        + two_writers(commits)
        + paused_too_long(samples, pause_limit)
        + too_little(commits, samples, names, [pooler.name for pooler in site.poolers], hit)
    )
    played.seconds = time.monotonic() - began
    acks = sum(commit.outcome == ACKNOWLEDGED for commit in commits)
    played.details.append("history: %d attempts, %d acknowledged, %d samples of pauses" % (len(commits), acks, len(samples)))
    if not played.violations:
        for pooler in site.poolers:
            # What a run could not set back is not the next case's.
            pooler.console().execute("RELOAD")
        if case.victim == "wal-candidate":
            site.take_wal_back(candidate)
        for node in outside:
            site.clone_again(node)
    if played.violations:
        played.details.append(site.last_words())
        played.details.append("replay: tests/chaos/run.py --only '%s'" % case.id)
    return played


def settle(site, faults, hit, old):
    """Until the controller's guardians have done what they do on their own; then everything is well again, and init systems start what is down."""
    # Those that find no primary go on looking for one, for minutes.
    deadline = max(time.monotonic() + TIMEOUT + 1, hit + HOLD + TIMEOUT)
    while site.guardians() and time.monotonic() < deadline:
        time.sleep(0.05)
    faults.heal()
    if faults.loss:
        faults.loss.take_back()
    back = [node for node in site.nodes if node is not old or not faults.loss or faults.loss.comes_back]
    site.start_again(back)
    wait_until(lambda: all(site.answers(node.name) for node in back), 60)


def repair(site, case, loss, old, candidate, played):
    """One more run, without a fault; it has to put everything in order. Returns the node that has to be the primary then, and those left for a rejoin."""
    # A primary that was started again has no standbys for a moment. Where another one is the primary, leading them there is what is left to do.
    if site.primaries == [old]:
        with contextlib.suppress(AssertionError):
            old.wait_for_standbys(len(site.nodes) - 1, 15)
    # A lost primary that is back before anything was promoted is not lost.
    final = old if loss and site.primaries == [old] else candidate
    outside = [old] if loss and final is candidate else []
    options = site.options(candidate.name, timeout=30, **OPTIONS[case.engine])
    if loss:
        loss.change(options)
    began = time.monotonic()
    again = Driver(site, case.engine, options)
    if not again.finish(OPERATION_SECONDS):
        played.violations.append("the next run had not ended after %d s" % OPERATION_SECONDS)
        return final, outside
    result = again.result()
    played.details.append("the next run took %.1f s" % (time.monotonic() - began))
    if result is None or result["failed"]:
        played.violations.append("the next run failed: %s" % tell(result or {"output": again.lines[-5:]}))
        played.details.append("all of its result: %s" % json.dumps(result, sort_keys=True))
        return final, outside
    try:
        wait_until(lambda: not site.guardians(), GUARDIAN_SECONDS)
    except AssertionError:
        played.violations.append("guardians still live %d s after the run that repaired: %s" % (GUARDIAN_SECONDS, site.guardians()))
    if loss and final is candidate:
        lead_by_hand(site, result, final, played)
    # A run that cannot set it back leaves what it has set until the pooler's next RELOAD.
    unset = "pooler" in played.case or played.case.endswith(":console")
    if outside:
        # A standby that got from the lost primary what the new one has not: the run has to say that it is to be rejoined.
        outside += [node for node in site.nodes if node is not old and node.name in result["to_rejoin"] and site.has_left(node, final)]
    fenced = [node.name for node in outside if loss.comes_back]
    left = [node.name for node in outside if not loss.comes_back]
    usual = {name: {value, BORROWED[name] if unset else value} for name, value in SETTINGS.items()}
    played.violations += eventually_sound(site, final.name, fenced, left, usual)
    return final, outside


def lead_by_hand(site, result, primary, played):
    """What a user does with a pooler that has slept through a failover and takes a standby for the primary: the run has to say so."""
    for pooler in site.poolers:
        led = site.pooler_state(pooler).file
        node = next((node for node in site.nodes if node.name == led["app"] and node is not primary), None)
        text = "pooler %s: the entry app leads to %s, which is a standby" % (pooler.name, led["app"])
        if node and node.in_recovery and any(text in warning for warning in result["warnings_found"]):
            played.details.append(text)
            other = next(one for one in site.nodes if one not in (node, primary))
            change = {"app": primary, "app_ro": other}
            lines = pooler.databases_file.read_text().splitlines()
            lines = [line for line in lines if line.partition(" = ")[0] not in change]
            lines += ["%s = host=%s port=%d dbname=app" % (name, to.address, to.port) for name, to in change.items()]
            pooler.databases_file.write_text("\n".join(lines) + "\n")
            pooler.console().execute("RELOAD")


def eventually_sound(site, primary, outside, gone, pooler_settings):
    """What keeps the site from being sound; servers tell some things with a delay."""
    deadline = time.monotonic() + 20
    while True:
        found = site.unsound_parts(primary, outside, gone, pooler_settings)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def honest(site, case, result, old, candidate):
    """What the operation says of itself is so."""
    primaries = [node.name for node in site.primaries]
    if case.operation == "failover-refused" and case.victim not in ("server-old", "host-old") and primaries != [old]:
        return ["everybody else reached the primary, and now it is %s" % (primaries or "nobody")]
    if result is None:
        return []
    # A lost primary that comes back while it is looked for is not replaced.
    wanted = [old] if case.engine == "failover" and result.get("primary") == old and not result["performed"] else [candidate]
    if not result["failed"] and primaries != wanted:
        return ["it reported success, and the primary is %s" % (primaries or "nobody")]
    # The old primary of a failover may have been down before.
    if result.get("error") == "RolledBack" and primaries != [old] and not (case.engine == "failover" and not primaries):
        return ["it reported that it was rolled back, and the primary is %s" % (primaries or "nobody")]
    return []


def outcome(site, result, old, candidate):
    names = [node.name for node in site.primaries]
    if names == [old]:
        return "rolled back"
    if names == [candidate] and result is not None and not result["failed"]:
        return "went on"
    return "left to the next run"


def tell(result):
    if result is None:
        return "none, it was killed"
    shown = {key: result[key] for key in ("failed", "error", "msg", "phase", "recovery", "output") if key in result}
    return " ".join(str(shown).split())[:1500]
