# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The consoles of many PgBouncers as tables, one for each SHOW command, with the columns that the running versions have."""

from __future__ import annotations

import logging
import typing as t

from .asking import ask_all, login, parse_targets
from .deadline import positive_seconds
from .errors import WrapperError, log
from .options import Option
from .quals import Qual, allowed_values
from .tables import Table
from .wrapper import Row, Wrapper

SHOWS = ("clients", "config", "databases", "dns_hosts", "lists", "mem", "pools", "servers", "stats", "stats_averages", "stats_totals", "users")
_STATUS = [
    ("pooler", "text"), ("reachable", "boolean"), ("version", "text"), ("milliseconds", "double precision"), ("error", "text"),
]  # fmt: skip
# The console calls every number one of these and everything else text.
_TYPES = {20: "bigint", 21: "smallint", 23: "integer", 1700: "numeric"}


def _poolers(text: str) -> dict[str, dict[str, t.Any]]:
    return parse_targets(text, 6432)


class PgBouncer(Wrapper):
    """Tables ``status`` and one for each SHOW command, of the poolers that the server's option ``poolers`` names.

    Updating ``paused`` in the table databases sends PAUSE or RESUME. That happens at once, and no rollback takes it back.
    """

    options = {
        "poolers": Option(_poolers, required=True, scope=("server",)),
        "show": Option(choices=(*SHOWS, "status"), required=True, scope=("table",)),
        "timeout": Option(positive_seconds, default=3.0, scope=("server", "table")),
        "if_unreachable": Option(choices=("skip", "fail"), default="skip", scope=("server", "table")),
        "sslmode": Option(default="", scope=("server", "mapping")),
        "user": Option(default="", scope=("server", "mapping")),
        "password": Option(default="", secret=True, scope=("mapping",)),
        "passfile": Option(default="", scope=("server", "mapping")),
    }

    def setup(self) -> None:
        self.rows = len(self.opt["poolers"]) * (1 if self.opt["show"] == "status" else 20)
        self._targets(self.opt)

    @property
    def rowid_column(self) -> str | None:
        return "name" if self.opt["show"] == "databases" else None

    def get_path_keys(self) -> list[tuple[tuple[str, ...], int]]:
        return [(("pooler",), self.rows // len(self.opt["poolers"]))]

    @staticmethod
    def _targets(opt: t.Mapping[str, t.Any], names: t.Collection[str] | None = None) -> dict[str, dict[str, t.Any]]:
        return login({**opt, "dbname": "pgbouncer"}, opt["poolers"], names)

    def _asked(self, quals: t.Sequence[Qual]) -> dict[str, dict[str, t.Any]]:
        return self._targets(self.opt, allowed_values(quals, self.columns, "pooler"))

    def _command(self) -> str:
        return "SHOW VERSION" if self.opt["show"] == "status" else "SHOW %s" % self.opt["show"].upper()

    def explain_scan(self, quals: t.Sequence[Qual], columns: t.Collection[str]) -> t.Iterable[str]:
        return ["%s on %s" % (self._command(), ", ".join(self._asked(quals)) or "nobody")]

    def scan(self, quals: t.Sequence[Qual], columns: t.Collection[str]) -> t.Iterator[Row]:
        for answer in ask_all(self._asked(quals), self._command(), self.opt["timeout"]):
            if self.opt["show"] == "status":
                version = answer.rows[0][0] if answer.rows else None
                reachable = "f" if answer.error else "t"
                yield {"pooler": answer.name, "reachable": reachable, "version": version, "milliseconds": answer.milliseconds, "error": answer.error}
            elif answer.error and self.opt["if_unreachable"] == "fail":
                raise WrapperError("pooler %s: %s" % (answer.name, answer.error))
            elif answer.error:
                log("pooler %s is left out: %s" % (answer.name, answer.error), logging.WARNING)
            for row in answer.dicts() if self.opt["show"] != "status" else ():
                yield {**row, "pooler": answer.name}

    def update(self, rowid: t.Any, values: dict[str, t.Any]) -> None:
        if self.opt["show"] != "databases":
            raise self._read_only()
        paused = str(values["paused"])
        if paused not in ("0", "1"):
            raise WrapperError("paused is %s" % paused, hint="Set it to 1 (PAUSE) or 0 (RESUME)")
        if values["pooler"] not in self.opt["poolers"]:
            raise WrapperError('there is no pooler "%s"' % values["pooler"], hint="There are %s" % ", ".join(self.opt["poolers"]))
        name = '"%s"' % str(rowid).replace('"', '""')
        (answer,) = ask_all(self._targets(self.opt, [values["pooler"]]), "%s %s" % ("PAUSE" if paused == "1" else "RESUME", name), self.opt["timeout"])
        # A database that is as it should be already is answered with an error.
        if answer.error and "already" not in answer.error and "is not paused" not in answer.error:
            raise WrapperError("pooler %s, %s: %s" % (answer.name, name, answer.error))

    @classmethod
    def tables(cls, options: t.Mapping[str, t.Any], schema: str) -> list[Table]:
        found = [Table("status", _STATUS, {"show": "status"})]
        for show in SHOWS:
            # Versions differ: the table has what any of the poolers says.
            columns: dict[str, str] = {}
            for answer in ask_all(cls._targets(options), "SHOW %s" % show.upper(), options["timeout"]):
                for name, kind in answer.columns:
                    columns.setdefault(name, _TYPES.get(kind, "text"))
            if columns:
                found.append(Table(show, [("pooler", "text"), *columns.items()], {"show": show}))
        if len(found) == 1:
            hint = "Import the tables when one of %s does" % ", ".join(options["poolers"])
            raise WrapperError("no pooler answers, so that nobody knows the columns", hint=hint)
        return found
