# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What fdw_info tells of file_fdw and postgres_fdw, of classes in Python, and to whom it cannot tell it; file_fdw by the other modules, too."""

from __future__ import annotations

import json

import pytest
from fdw_packages import install_packages
from lab import SUPERUSER_PASSWORD, call_module, four_steps

SHOP = '''
from pgfleet_fdw import Option, Wrapper

class Items(Wrapper):
    options = {"size": Option(int, required=True, scope=("table",))}

    def scan(self, quals, columns):
        yield {"n": self.opt["size"]}
'''
COLUMNS = [{"name": "n", "type": "int"}]


@pytest.fixture(scope="module")
def server(lab):
    server = lab.postgres("told", environment={"PYTHONPATH": str(install_packages(lab, shop_fdw=SHOP))}).init().start()
    server.sql("CREATE EXTENSION file_fdw")
    server.sql("CREATE EXTENSION postgres_fdw")
    server.sql("CREATE ROLE looker LOGIN PASSWORD 'looks around'")
    return server


def info(server, **options):
    result = call_module("fdw_info", {**server.login, **options})
    assert not result["failed"], result
    return result


def tables(result, wrapper):
    (found,) = [one for one in result["wrappers"] if one["name"] == wrapper]
    return {table["name"]: table for one in found["servers"] for table in one["tables"]}


def test_files_as_tables(server):
    """file_fdw knows nothing of user mappings and imports."""
    file = server.base / "prices.csv"
    file.write_text("item;price\n1;it's 2\n")
    four_steps("fdw_server", {**server.login, "name": "files", "wrapper": "file_fdw"})
    wanted = {
        **server.login, "server": "files", "name": "prices", "columns": [{"name": "item", "type": "int"}, {"name": "price", "type": "text"}],
        "options": {"filename": str(file), "format": "csv", "header": True, "delimiter": ";"},
    }  # fmt: skip
    assert four_steps("fdw_table", wanted)["runtime"] is None
    assert server.sql("SELECT * FROM prices") == [(1, "it's 2")]
    server.sql("CREATE VIEW above AS SELECT max(item) AS most FROM prices")
    result = four_steps("fdw_table", {**wanted, "options": {**wanted["options"], "header": None, "force_null": None, "null": "it's"}})
    assert result["plan"] == ["change public.prices: DROP header, ADD null"]
    four_steps("fdw_table", wanted)
    found = info(server, wrappers=["file_fdw"])
    table = tables(found, "file_fdw")["prices"]
    assert table["dependents"] == ["view public.above"] and table["problem"] is None and found["problems"] == []
    assert found["wrappers"][0]["servers"][0]["dependents"] == ["foreign table public.prices"] and found["wrappers"][0]["extension"] == "file_fdw"
    for bad, words in (({"filename": str(file), "format": "cvs"}, "cvs"), ({"format": "csv"}, "filename"), ({"filename": str(file), "colour": 1}, "colour")):
        result = call_module("fdw_table", {**wanted, "name": "other", "options": bad})
        assert result["failed"] and words in result["msg"] and not result["changed"], result
    assert server.value("SELECT to_regclass('other')") is None


def test_without_pl_python_nobody_knows_what_can_be_imported(server):
    assert server.sql("SELECT 1 FROM pg_extension WHERE extname = 'plpython3u'") == []
    result = info(server, packages=["pgfleet_fdw"])
    assert result["python"] is None
    assert [problem.split(":")[0] for problem in result["problems"]] == ["whether pgfleet_fdw can be imported is not known"]
    assert call_module("fdw_info", {**server.login, "packages": ["pgfleet_fdw"], "fail_on_problems": True})["failed"]


def test_what_uses_a_table_of_a_class(server):
    assert not call_module("fdw_wrapper", {**server.login, "name": "fleet", "packages": ["shop_fdw"], "runtime": "plpython"})["failed"]
    options = {**server.login, "name": "shop", "wrapper": "fleet", "options": {"wrapper": "shop_fdw.Items"}}
    assert not call_module("fdw_server", options)["failed"]
    table = {**server.login, "server": "shop", "name": "items", "columns": COLUMNS}
    result = call_module("fdw_table", {**table, "options": {"size": "large"}}, check=True)
    assert not result["failed"] and result["printed"] == ""
    result = call_module("fdw_table", {**table, "options": {"size": "large"}})
    assert not result["failed"] and 'public.items cannot be read as it is, at least not by postgres: option "size": "large" is no int' in result["printed"]
    assert info(server, wrappers=["fleet"])["problems"] == ['public.items: option "size": "large" is no int']
    result = call_module("fdw_table", {**table, "options": {"size": 5}})
    assert not result["failed"] and result["printed"] == ""
    server.sql("CREATE VIEW higher AS SELECT n FROM items")
    assert server.sql("SELECT * FROM higher") == [(5,)]
    result = info(server, wrappers=["fleet"], packages=["shop_fdw"])
    assert result["problems"] == [] and tables(result, "fleet")["items"]["dependents"] == ["view public.higher"]
    assert result["python"]["packages"]["shop_fdw"]["error"] is None and result["python"]["version"].startswith("3.")
    assert result["extensions"]["plpython"]["created"] and result["extensions"]["plpython"]["name"] == "plpython3u"


def test_a_class_that_is_not_there_makes_no_server(server):
    assert not call_module("fdw_wrapper", {**server.login, "name": "fleet", "packages": ["shop_fdw"], "runtime": "plpython"})["failed"]
    options = {**server.login, "name": "typo", "wrapper": "fleet", "options": {"wrapper": "shop_fdw.Itmes"}}
    result = call_module("fdw_server", options)
    assert result["failed"] and not result["changed"] and "cannot load the class shop_fdw.Itmes" in result["msg"] and "every node" in result["msg"]
    result = call_module("fdw_server", {**options, "options": {"wrapper": "shop_fdw.__name__"}})
    assert result["failed"] and "is no class" in result["msg"]
    assert server.sql("SELECT 1 FROM pg_foreign_server WHERE srvname = 'typo'") == []


def test_what_an_ordinary_role_is_told(server):
    """It may see neither values of mappings nor ask Python, and is told so; the rest it gets."""
    assert not call_module("fdw_wrapper", {**server.login, "name": "fleet", "packages": ["shop_fdw"], "runtime": "plpython"})["failed"]
    mapping = {"role": "looker", "options": {"user": "r"}, "secrets": {"password": SUPERUSER_PASSWORD}}
    wanted = {**server.login, "name": "away", "wrapper": "postgres_fdw", "options": {"host": "127.0.0.1", "port": 1}, "mappings": [mapping]}
    assert not call_module("fdw_server", wanted)["failed"]
    assert not call_module("fdw_table", {**server.login, "server": "away", "name": "far", "columns": COLUMNS})["failed"]
    assert not call_module("fdw_server", {**server.login, "name": "shop", "wrapper": "fleet", "options": {"wrapper": "shop_fdw.Items"}})["failed"]
    table = {**server.login, "server": "shop", "name": "items", "columns": COLUMNS, "options": {"size": 5}}
    assert not call_module("fdw_table", table)["failed"]
    server.sql("GRANT SELECT ON far TO looker")
    # Nobody has been let use the server.
    assert server.value("SELECT has_server_privilege('looker', 'away', 'USAGE') OR has_server_privilege('looker', 'shop', 'USAGE')") is False
    result = info(server, login_user="looker", login_password="looks around")
    assert "were not checked, as looker is no superuser" in result["printed"] and result["python"] is None
    assert tables(result, "fleet")["items"]["problem"] is None and tables(result, "postgres_fdw")["far"]["problem"] is None
    assert SUPERUSER_PASSWORD not in json.dumps(result)
    # Another test's table, on which it has no right.
    assert [problem for problem in result["problems"] if not problem.startswith("public.prices: ")] == []
