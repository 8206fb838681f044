# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# PRIVATE to the collection: no promise is made about this file to anything outside it.

"""The validator that keeps a foreign-data wrapper from loading any other class than those of listed packages.

With Multicorn's own validator, whoever may use a server can name a class in a user mapping of his, and that wins over the server's: any callable that
can be imported is then run as the server's account.
"""

from __future__ import annotations

import typing as t

from .._sql.connection import Session, sql
from .runtime import MULTICORN

_BODY = """
DECLARE
  given text;
  named boolean := false;
BEGIN
  FOREACH given IN ARRAY coalesce(options, '{{}}') LOOP
    IF given LIKE 'wrapper=%' THEN
      IF catalog <> 'pg_catalog.pg_foreign_server'::regclass THEN
        RAISE EXCEPTION 'the option "wrapper" belongs to the server and nowhere else' USING ERRCODE = 'fdw_invalid_option_name';
      END IF;
      named := true;
      IF substr(given, 9) NOT LIKE '%.%' OR NOT split_part(substr(given, 9), '.', 1) = ANY ({packages}::text[]) THEN
        RAISE EXCEPTION 'the wrapper "%" is in none of the packages %', substr(given, 9), {packages}
          USING ERRCODE = 'fdw_invalid_attribute_value', HINT = 'Packages are listed by the option packages of pgfleet.ops.fdw_wrapper.';
      END IF;
    END IF;
  END LOOP;
  IF catalog = 'pg_catalog.pg_foreign_server'::regclass AND NOT named THEN
    RAISE EXCEPTION 'the option "wrapper" is missing' USING ERRCODE = 'fdw_dynamic_parameter_value_needed', HINT = 'It names a class: package.module.Class';
  END IF;
{rest}END
"""
_MULTICORN = "  PERFORM {schema}.multicorn_validator(options, catalog);\n"


def body(session: Session, packages: t.Collection[str], runtime: str, multicorn_schema: str | None) -> str:
    """The validator's source. ``multicorn_schema``: where that extension has its functions."""
    listed = sql.Literal("{%s}" % ",".join('"%s"' % name for name in sorted(packages)))
    rest = sql.SQL(_MULTICORN).format(schema=sql.Identifier(multicorn_schema or "public")) if runtime == MULTICORN else sql.SQL("")
    return sql.SQL(_BODY).format(packages=listed, rest=rest).as_string(session.connection)


def statements(session: Session, schema: str, name: str, source: str) -> list[t.Any]:
    """Make it, or change it in place; nobody can call it but through DDL, which needs no right on it."""
    function = sql.SQL("{}.{}").format(sql.Identifier(schema), sql.Identifier(name))
    return [
        sql.SQL("CREATE OR REPLACE FUNCTION {} (options text[], catalog oid) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS {}").format(
            function, sql.Literal(source)
        ),
        sql.SQL("REVOKE ALL ON FUNCTION {} (text[], oid) FROM PUBLIC").format(function),
    ]
