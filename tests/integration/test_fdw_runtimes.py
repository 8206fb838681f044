# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changing what runs the classes: tables, rights and what depends on them stay.

Where this machine has Multicorn, that is what runs them. Elsewhere an extension of the same name stands in for it, in a copy of PostgreSQL's programs: its
handler is postgres_fdw's, so that foreign tables answer without PL/Python, from a table of the same server. What Multicorn itself does is not tested then.
"""

from __future__ import annotations

import pathlib
import shutil

import psycopg
import pytest
from fdw_packages import install_packages
from lab import BIN, SUPERUSER_PASSWORD, System, call_module, four_steps, run

SHOP = '''
from pgfleet_fdw import Option, Wrapper

class Items(Wrapper):
    """Options of postgres_fdw are declared so that both can have them."""

    options = {name: Option() for name in ("host", "port", "dbname", "user", "password", "schema_name", "table_name")}

    def scan(self, quals, columns):
        yield {"n": 1, "word": "one"}
        yield {"n": 2, "word": "two"}
'''
STAND_IN = """
CREATE FUNCTION multicorn_handler() RETURNS fdw_handler AS '$libdir/postgres_fdw', 'postgres_fdw_handler' LANGUAGE C STRICT;
CREATE FUNCTION multicorn_validator(options text[], catalog oid) RETURNS void LANGUAGE plpgsql AS $$ BEGIN END $$;
"""


class Copied(System):
    """PostgreSQL's programs and shared files at another place, which they find from where they are."""

    def __init__(self, directory):
        super().__init__()
        version = BIN.parent.name
        share = pathlib.Path(run([BIN / "pg_config", "--sharedir"]).strip())
        shutil.copytree(BIN.parent, directory / "lib" / "postgresql" / version, symlinks=True)
        shutil.copytree(share, directory / "share" / "postgresql" / version, symlinks=True)
        run(["chmod", "-R", "a+rX", directory])
        self.extensions = directory / "share" / "postgresql" / version / "extension"
        self.bin = directory / "lib" / "postgresql" / version / "bin"


@pytest.fixture(scope="module")
def server(lab):
    environment = {"PYTHONPATH": str(install_packages(lab, shop_fdw=SHOP))}
    share = pathlib.Path(run([BIN / "pg_config", "--sharedir"]).strip())
    if (share / "extension" / "multicorn.control").exists():
        system = System()
    else:
        system = Copied(lab.path / "programs")
        (system.extensions / "multicorn.control").write_text("default_version = '0'\ncomment = 'stands in for Multicorn'\n")
        (system.extensions / "multicorn--0.sql").write_text(STAND_IN)
    server = lab.postgres("runtimes", environment=environment, system=system).init().start()
    server.sql("CREATE SCHEMA there")
    server.sql("CREATE TABLE there.items (n int, word text)")
    server.sql("INSERT INTO there.items VALUES (1, 'one'), (2, 'two')")
    server.sql("CREATE ROLE reader LOGIN PASSWORD 'reads a lot'")
    return server


def test_there_and_back(server):
    wrapper = {**server.login, "name": "fleet", "packages": ["shop_fdw"]}
    assert call_module("fdw_wrapper", {**wrapper, "runtime": "plpython"})["runtime"] == "plpython"
    here = {"wrapper": "shop_fdw.Items", "host": "127.0.0.1", "port": server.port, "dbname": "postgres"}
    mapping = {"role": "PUBLIC", "options": {"user": "postgres"}, "secrets": {"password": SUPERUSER_PASSWORD}}
    options = {**server.login, "name": "shop", "wrapper": "fleet", "options": here, "mappings": [mapping]}
    assert not call_module("fdw_server", options)["failed"]
    columns = [{"name": "n", "type": "int"}, {"name": "word", "type": "text"}]
    table = {**server.login, "server": "shop", "name": "items", "columns": columns, "options": {"schema_name": "there", "table_name": "items"}}
    assert call_module("fdw_table", table)["runtime"] == "plpython"
    server.sql("GRANT SELECT ON items TO reader")
    server.sql("CREATE VIEW above AS SELECT max(n) AS most FROM items")
    assert call_module("fdw_table", table)["plan"] == ["let reader, who may read public.items, have it read"]
    before = server.sql("SELECT c.oid, c.relname, c.relacl::text FROM pg_class c WHERE relname IN ('items', 'items_ft', 'above') ORDER BY 1")

    def answers():
        assert server.sql("SELECT * FROM items ORDER BY n") == [(1, "one"), (2, "two")] and server.sql("SELECT * FROM above") == [(2,)]
        with psycopg.connect(host="127.0.0.1", port=server.port, user="reader", password="reads a lot", dbname="postgres") as session:
            assert session.execute("SELECT count(*) FROM items").fetchone() == (2,)
        assert server.sql("SELECT c.oid, c.relname, c.relacl::text FROM pg_class c WHERE relname IN ('items', 'items_ft', 'above') ORDER BY 1") == before

    answers()
    result = four_steps("fdw_wrapper", {**wrapper, "runtime": "multicorn"})
    assert "let multicorn run foreign-data wrapper fleet" in result["plan"] and "let multicorn read public.items" in result["plan"]
    assert server.sql("SELECT proname FROM pg_proc WHERE proname LIKE 'items%'") == []
    assert "Foreign Scan on items_ft" in "".join(row[0] for row in server.sql("EXPLAIN SELECT * FROM items"))
    answers()
    assert call_module("fdw_table", table)["changed"] is False
    assert server.value("SELECT has_function_privilege('reader', 'multicorn_validator(text[], oid)', 'EXECUTE')") is False
    info = call_module("fdw_info", server.login)
    assert info["wrappers"][0]["runtime"] == "multicorn" and info["problems"] == []
    with pytest.raises(psycopg.Error, match="none of the packages"):
        server.sql("CREATE SERVER bad FOREIGN DATA WRAPPER fleet OPTIONS (wrapper 'os.getcwd')")
    result = four_steps("fdw_wrapper", {**wrapper, "runtime": "plpython"})
    assert "let plpython read public.items" in result["plan"]
    four_steps("fdw_table", table)
    answers()
    assert call_module("fdw_wrapper", {**wrapper, "runtime": "auto"})["runtime"] == "multicorn"
