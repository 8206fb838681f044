# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for the whole repository: documentation and code say the same, imports run one way, roles keep their specs."""

from __future__ import annotations

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins"
PACKAGE = "ansible_collections.pgfleet.ops.plugins"
MODULES = sorted(path.stem for path in (PLUGINS / "modules").glob("*.py") if path.stem != "__init__")
FILTERS = sorted(path.stem for path in (PLUGINS / "filter").glob("*.py"))
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
PLAYBOOKS = sorted(path.name for path in (ROOT / "playbooks").glob("*.yml"))
CODE = sorted(path for path in PLUGINS.rglob("*.py") if path.name != "__init__.py")
GALAXY = yaml.safe_load((ROOT / "galaxy.yml").read_text())
RUNTIME = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())
CODE_LINES_OF_A_MODULE = 60


def tree_of(path):
    return ast.parse(path.read_text(), str(path))


def relative(path):
    return path.relative_to(ROOT).as_posix()


def test_there_is_something_to_test():
    assert {"pg_cluster_info", "pg_switchover", "pgbouncer_databases", "powa_server"} <= set(MODULES)
    assert {"postgresql_node", "pgbouncer", "powa_repository"} <= set(ROLES)
    assert "switch_over.yml" in PLAYBOOKS


# -- modules -----------------------------------------------------------------------------------------------------------


def load(name):
    return importlib.import_module("%s.modules.%s" % (PACKAGE, name))


def fragment_part(reference, part):
    namespace, name, file, *attribute = reference.split(".")
    assert (namespace, name) == ("pgfleet", "ops")
    fragment = importlib.import_module("%s.doc_fragments.%s" % (PACKAGE, file)).ModuleDocFragment
    return yaml.safe_load(getattr(fragment, attribute[0].upper() if attribute else "DOCUMENTATION")).get(part) or {}


def documented_options(name):
    """The options as ansible-doc shows them: the fragments' and over them the module's own."""
    documentation = yaml.safe_load(load(name).DOCUMENTATION)
    found = {}
    references = documentation.get("extends_documentation_fragment") or []
    for reference in [references] if isinstance(references, str) else references:
        found.update(fragment_part(reference, "options"))
    for option, own in (documentation.get("options") or {}).items():
        found[option] = {**found.get(option, {}), **own}
    return found


def defined_arguments(name, monkeypatch):
    """What main() gives to the frame."""
    given = []
    module = load(name)
    monkeypatch.setattr(module, "run", lambda operation, spec, **_options: given.append((operation, spec)))
    module.main()
    ((_operation, spec),) = given
    return spec


def facets(option, nested):
    """What an option's documentation and its definition have in common, with what is left out filled in."""
    return {
        "type": option.get("type", "str"),
        "elements": option.get("elements"),
        "choices": list(option.get("choices") or []),
        "default": option.get("default"),
        "required": bool(option.get("required", False)),
        "aliases": sorted(option.get("aliases") or []),
        "suboptions": {key: facets(value, nested) for key, value in (option.get(nested) or {}).items()},
    }


@pytest.mark.parametrize("name", MODULES)
def test_options_are_documented_as_they_are_defined(name, monkeypatch):
    spec = defined_arguments(name, monkeypatch)
    documented = {key: facets(option, "suboptions") for key, option in documented_options(name).items()}
    defined = {key: facets(option, "options") for key, option in spec.argument_spec.items()}
    assert sorted(documented) == sorted(defined)
    for key, option in defined.items():
        assert documented[key] == option, key


def walk_options(options, nested):
    for key, option in options.items():
        yield key, option
        yield from walk_options(option.get(nested) or {}, nested)


@pytest.mark.parametrize("name", MODULES)
def test_every_option_is_described_and_secrets_are_marked(name, monkeypatch):
    for key, option in walk_options(documented_options(name), "suboptions"):
        assert option.get("description"), key
    spec = defined_arguments(name, monkeypatch).argument_spec
    for key, option in walk_options(spec, "options"):
        if re.search(r"password|passwd|secret|token", key) and option.get("type", "str") == "str":
            assert option.get("no_log") is True, key
        # A default beside "required" never counts.
        assert not (option.get("required") and "default" in option), key
    own = yaml.safe_load(load(name).DOCUMENTATION).get("options") or {}
    for key, option in spec.items():
        # A module that describes a login option anew knows better which of its sources counts.
        if "fallback" in option and key not in own:
            text = str(documented_options(name)[key]["description"])
            for variable in option["fallback"][1]:
                assert "E(%s)" % variable in text, key


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_documented_as_this_collections(name):
    module = load(name)
    documentation = yaml.safe_load(module.DOCUMENTATION)
    assert documentation["module"] == name
    assert tuple(map(int, documentation["version_added"].split("."))) <= tuple(map(int, GALAXY["version"].split(".")))
    attributes = {}
    for reference in documentation["extends_documentation_fragment"]:
        for key, value in (fragment_part(reference, "attributes")).items():
            attributes.setdefault(key, {}).update(value)
    for key, value in (documentation.get("attributes") or {}).items():
        attributes.setdefault(key, {}).update(value)
    assert {"check_mode", "diff_mode", "idempotent"} <= set(attributes)
    assert attributes["check_mode"]["support"] == "full"
    for value in attributes.values():
        assert value["description"] and value["support"] in ("full", "partial", "N/A")
        assert value["support"] == "full" or value["details"]
    returned = yaml.safe_load(module.RETURN)
    assert all({"description", "returned", "type"} <= set(value) for value in returned.values())
    examples = yaml.safe_load(module.EXAMPLES)
    names = {key for task in examples for key in task}
    assert "pgfleet.ops.%s" % name in str(examples) and name not in names


@pytest.mark.parametrize("name", MODULES)
def test_examples_use_options_that_exist(name):
    options = documented_options(name)
    for task in yaml.safe_load(load(name).EXAMPLES):
        arguments = task.get("pgfleet.ops.%s" % name) or {}
        assert isinstance(arguments, dict)
        assert set(arguments) <= set(options)
        for key, value in arguments.items():
            suboptions = options[key].get("suboptions")
            for item in value if isinstance(value, list) and suboptions else []:
                if isinstance(item, dict):
                    assert set(item) <= set(suboptions), key


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_wiring_and_no_more(name):
    path = PLUGINS / "modules" / (name + ".py")
    (end,) = [node.end_lineno for node in tree_of(path).body if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["RETURN"]]
    lines = [line for line in path.read_text().splitlines()[end:] if line.strip()]
    assert 5 <= len(lines) <= CODE_LINES_OF_A_MODULE


def test_the_action_group_has_every_module_and_no_other():
    assert sorted(RUNTIME["action_groups"]["all"]) == MODULES


def test_every_module_is_called_by_an_integration_test():
    texts = "\n".join(path.read_text() for path in (ROOT / "tests" / "integration").rglob("*.py"))
    missing = [name for name in MODULES if not re.search(r"\b%s\b" % name, texts)]
    assert missing == []


def test_only_the_frame_ends_a_module():
    found = [
        "%s:%d" % (relative(path), node.lineno)
        for path in CODE
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in ("fail_json", "exit_json") and path.name != "_module.py"
    ]
    assert found == []
    assert "module.fail_json(" in (PLUGINS / "module_utils" / "_module.py").read_text()


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_each_file_names_its_licence(path):
    head = path.read_text()[:400]
    assert "GNU General Public License v3.0+" in head and "SPDX-License-Identifier: GPL-3.0-or-later" in head
    if "module_utils" in path.parts:
        assert "PRIVATE to the collection" in head


# -- layers ------------------------------------------------------------------------------------------------------------

BASE = {"_errors", "_plan", "_wait", "_parallel"}
# Each layer's own files and those below it, never beside or above. _sql.values is pure and as low as the base.
MAY_IMPORT = {
    "_errors": set(),
    "_plan": set(),
    "_wait": {"_errors"},
    "_parallel": {"_errors", "_wait"},
    "_sql": {"_sql", *BASE},
    "_host": {"_host", "_sql.values", *BASE},
    "_cluster": {"_cluster", "_sql.values", "_errors"},
    "_pgbouncer": {"_pgbouncer", "_sql", "_host", *BASE},
    "_powa": {"_powa", "_sql", "_host", *BASE},
    "_fdw": {"_fdw", "_sql", "_host", *BASE},
    "_module": {"_errors", "_plan", "_sql"},
    "_operations": {"_operations", "_module", "_cluster", "_pgbouncer", "_powa", "_fdw", "_sql", "_host", *BASE},
    "modules": {"_module", "_operations"},
    "doc_fragments": set(),
    "plugin_utils": {"_plugin_utils"},
    "inventory": {"_plugin_utils"},
    "filter": {"_plugin_utils"},
}
# A switchover's decisions are made here: what cannot reach a server, a file or a clock can be tested completely.
PURE = {"__future__", "collections", "contextlib", "dataclasses", "enum", "functools", "itertools", "math", "re", "typing"}
# The only files that may know these packages.
ELSEWHERE = {
    "ansible": {"module_utils/_module.py", "inventory/handyrep.py", "filter/resolve_method.py", "filter/scram_secret.py"},
    "configobj": {"inventory/handyrep.py"},
    "psycopg": {"module_utils/_sql/connection.py", "module_utils/_host/guardian_program.py"},
}


def imports_of(path):
    """(what, line) of every import, also inside functions: ``_sql.values`` for files of ours, the name of a package otherwise."""
    parts = path.relative_to(PLUGINS).with_suffix("").parts
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                target = [*parts[: -node.level], *(node.module.split(".") if node.module else [])]
            elif (node.module or "").startswith(PACKAGE + "."):
                target = node.module[len(PACKAGE) + 1 :].split(".")
            else:
                yield node.module.split(".")[0], node.lineno
                continue
            if target[0] == "plugin_utils":
                # What runs on the controller only is one layer.
                yield "_plugin_utils", node.lineno
                continue
            assert target[0] == "module_utils", "%s:%d" % (path, node.lineno)
            # "from . import x" and "from .._host import x" name a file of the package.
            for alias in node.names:
                longer = [*target, alias.name]
                yield ".".join((longer if PLUGINS.joinpath(*longer).with_suffix(".py").exists() else target)[1:]), node.lineno


def layer_of(path):
    parts = path.relative_to(PLUGINS).with_suffix("").parts
    return parts[1] if parts[0] == "module_utils" else parts[0]


def is_allowed(what, allowed):
    return any(what == one or what.startswith(one + ".") for one in allowed)


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_imports_run_one_way(path):
    allowed = MAY_IMPORT[layer_of(path)]
    wrong = [
        "%s (line %d)" % (what, line) for what, line in imports_of(path) if what.startswith("_") and what != "__future__" and not is_allowed(what, allowed)
    ]
    assert wrong == []


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_only_the_standard_library_is_imported_beside_ours(path):
    file = path.relative_to(PLUGINS).as_posix()
    for what, line in imports_of(path):
        if not what.startswith("_") and what not in sys.stdlib_module_names:
            assert file in ELSEWHERE.get(what, ()), "%s in line %d" % (what, line)


@pytest.mark.parametrize("path", [path for path in CODE if layer_of(path) == "_cluster"], ids=relative)
def test_the_cluster_model_reaches_no_io(path):
    assert {what for what, _line in imports_of(path) if not what.startswith("_") or what == "__future__"} <= PURE
    calls = {node.func.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {"open", "print", "exec", "eval", "__import__"}


def test_the_program_that_is_sent_to_other_hosts_needs_nothing_of_ours():
    found = {what for what, _line in imports_of(PLUGINS / "module_utils" / "_host" / "guardian_program.py")}
    assert found - {"__future__", "psycopg"} <= set(sys.stdlib_module_names)
    assert not any(what.startswith("_") and what != "__future__" for what in found)


def test_the_rule_about_layers_can_be_broken(tmp_path, monkeypatch):
    """The check itself: without this, a mistake in it would look like a clean collection."""
    monkeypatch.setattr(sys.modules[__name__], "PLUGINS", tmp_path)
    (tmp_path / "module_utils" / "_cluster").mkdir(parents=True)
    (tmp_path / "module_utils" / "_sql").mkdir()
    (tmp_path / "module_utils" / "_sql" / "connection.py").touch()
    path = tmp_path / "module_utils" / "_cluster" / "model.py"
    path.write_text("import os.path\nfrom .._sql import connection\nfrom .._sql.values import x\ndef f():\n    from .._errors import y\n")
    assert list(imports_of(path)) == [("os", 1), ("_sql.connection", 2), ("_sql.values", 3), ("_errors", 5)]
    assert [is_allowed(what, MAY_IMPORT["_cluster"]) for what, _line in imports_of(path)] == [False, False, True, True]


# -- SQL ---------------------------------------------------------------------------------------------------------------

ASKING = {"execute", "rows", "row", "value"}


def summands(node):
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return summands(node.left) + summands(node.right)
    return [node]


def is_put_together(node):
    """Whether an expression makes text of parts: a percent sign, an f-string, format(), join(), or text added to something that is none."""
    if isinstance(node, ast.JoinedStr):
        return any(isinstance(value, ast.FormattedValue) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = summands(node)
        constant = [isinstance(part, ast.Constant) for part in parts]
        return any(map(is_put_together, parts)) or (any(constant) and not all(constant))
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Mod)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in ("format", "join", "replace") and isinstance(node.func.value, (ast.Constant, ast.JoinedStr))
    return False


def put_together_sql(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            owner = node.func.value
            composing = node.func.attr == "SQL" and isinstance(owner, ast.Name) and owner.id == "sql"
            if (node.func.attr in ASKING or composing) and is_put_together(node.args[0]):
                yield node.lineno


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_no_statement_is_put_together_as_text(path):
    assert list(put_together_sql(tree_of(path))) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("s.rows('SELECT %s' % name)", True),
        ("s.value(f'SELECT {name}')", True),
        ("s.execute('SELECT {}'.format(name))", True),
        ("s.execute('SELECT ' + name)", True),
        ("s.execute('DROP TABLE ' + 'a' + name)", True),
        ("sql.SQL('SELECT %s' % name)", True),
        ("s.execute(sql.SQL('SELECT {}').format(sql.Identifier(name)))", False),
        ("s.execute(sql.SQL(', ').join(parts))", False),
        ("s.execute(statement + sql.SQL(' CASCADE'))", False),
        ("s.execute('SELECT ' + '1')", False),
        ("s.rows('SELECT %s', [name])", False),
        ("s.rows('SELECT ' 'a', [name % 2])", False),
        ("s.rows(QUERY)", False),
    ],
)
def test_what_counts_as_put_together(code, found):
    assert bool(list(put_together_sql(ast.parse(code)))) is found


# -- roles and playbooks -----------------------------------------------------------------------------------------------


def role_file(role, *names):
    return yaml.safe_load(ROOT.joinpath("roles", role, *names).read_text()) or {}


def role_options(role):
    return role_file(role, "meta", "argument_specs.yml")["argument_specs"]["main"]["options"]


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_defaults_and_its_spec_name_the_same_variables(role):
    options, defaults = role_options(role), role_file(role, "defaults", "main.yml")
    assert sorted(defaults) == sorted(key for key, option in options.items() if not option.get("required") or key in defaults)
    for key, option in options.items():
        assert option.get("description") and option.get("type"), key
        if "default" in option:
            assert not option.get("required"), key
            assert option["default"] == defaults[key] and type(option["default"]) is type(defaults[key]), key
        if "choices" in option and "{{" not in str(defaults.get(key, "{{")):
            assert defaults[key] in option["choices"], key


PYTHON_TYPES = {"str": str, "path": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict, "raw": object}


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_defaults_are_of_the_type_that_its_spec_states(role):
    options = role_options(role)
    for key, value in role_file(role, "defaults", "main.yml").items():
        if not (isinstance(value, str) and "{{" in value) and value is not None:
            assert isinstance(value, PYTHON_TYPES[options[key]["type"]]), key
            assert isinstance(value, bool) is (options[key]["type"] == "bool") or options[key]["type"] == "raw", key


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_passwords_are_marked(role):
    for key, option in walk_options(role_options(role), "options"):
        if re.search(r"password$|secret$", key):
            assert option.get("no_log") is True, key


@pytest.mark.parametrize("role", ROLES)
def test_a_role_says_what_it_is(role):
    home = ROOT / "roles" / role
    info = role_file(role, "meta", "main.yml")["galaxy_info"]
    assert info["description"] and info["license"] == "GPL-3.0-or-later" and info["min_ansible_version"] == "2.19"
    assert (home / "README.md").is_file()
    text = (home / "README.md").read_text()
    assert "pgfleet.ops.%s" % role in text
    prefixes = {key.split("_")[0] for key in role_options(role)}
    assert len(prefixes) == 1 and role.startswith(prefixes.pop())


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_a_playbook_says_what_it_is_for_and_how_it_is_called(name):
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*\.yml", name)
    text = (ROOT / "playbooks" / name).read_text()
    header = []
    for line in text.splitlines():
        if line.startswith("#"):
            header.append(line.lstrip("# "))
        elif line != "---":
            break
    assert header and len(" ".join(header)) > 40
    assert isinstance(yaml.safe_load(text), list)


def test_roles_and_modules_that_playbooks_and_roles_name_exist():
    known = {"pgfleet.ops.%s" % name for name in [*MODULES, *FILTERS, *ROLES, *(playbook[:-4] for playbook in PLAYBOOKS)]}
    missing = set()
    for path in [*ROOT.glob("playbooks/**/*.yml"), *ROOT.glob("roles/**/*.yml")]:
        missing |= {"%s in %s" % (name, relative(path)) for name in re.findall(r"\bpgfleet\.ops\.[a-z_]+", path.read_text()) if name not in known}
    assert sorted(missing) == []


# -- the collection ----------------------------------------------------------------------------------------------------


def test_versions_agree():
    assert re.fullmatch(r"\d+\.\d+\.\d+", GALAXY["version"])
    assert (GALAXY["namespace"], GALAXY["name"]) == ("pgfleet", "ops")
    assert RUNTIME["requires_ansible"].startswith(">=2.19")
    assert "ansible-core>=2.19" in (ROOT / "requirements.txt").read_text()
    changelog = ROOT / "changelogs" / "changelog.yaml"
    releases = (yaml.safe_load(changelog.read_text()).get("releases") or {}) if changelog.exists() else {}
    assert not releases or GALAXY["version"] in releases
    assert GALAXY["readme"] == "README.md" and "GPL-3.0-or-later" in GALAXY["license"]


def tracked_files():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


# In pieces, so that this file does not find itself.
FOREIGN = {
    "a path of a workplace": re.compile(r"(?<![\w./~}-])/wo" + r"rk(?![\w-])|/ro" + r"ot/(?!\.pgpass)"),
    "a package registry": re.compile(
        r"py" + r"pi\.|python" + r"hosted|arti" + r"factory|://[^/\s]*(nex" + r"us|regis" + r"try|mir" + r"ror|pro" + r"xy)[^/\s]*", re.I
    ),
    "a conflict that was not resolved": re.compile(r"^(<{7}|>{7}) ", re.M),
    "an index of packages": re.compile(r"index-" + r"url[ =]+\w+://|INDEX_" + r"URL[:= ]+\w+://"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_nothing_of_one_workplace_is_in_the_repository(what):
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += ["%s: %s" % (relative(path), match.group()) for match in FOREIGN[what].finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a path of a workplace", "cd /wo" + "rk/main"),
        ("a path of a workplace", "/ro" + "ot/.cache"),
        ("a package registry", "https://my-mir" + "ror.example/debian"),
        ("an index of packages", "--index-" + "url https://x"),
        ("a conflict that was not resolved", "a\n" + "<" * 7 + " HEAD\nb"),
    ],
)
def test_what_counts_as_of_one_workplace(what, text):
    assert FOREIGN[what].search(text)


def test_fragments_of_the_changelog_name_what_exists():
    known = {*MODULES, *FILTERS, *ROLES, *(playbook[:-4] for playbook in PLAYBOOKS)}
    announced = set()
    for path in sorted((ROOT / "changelogs" / "fragments").glob("*.yml")):
        for section, entries in yaml.safe_load(path.read_text()).items():
            assert section in (
                "major_changes",
                "minor_changes",
                "breaking_changes",
                "deprecated_features",
                "removed_features",
                "security_fixes",
                "bugfixes",
                "known_issues",
            )
            for entry in entries:
                announced |= {name.strip() for name in entry.split(" - ")[0].split(",")}
    # After a release the fragments are gone.
    assert not announced or set(MODULES) | set(ROLES) <= announced, sorted((set(MODULES) | set(ROLES)) - announced)
    assert not {name for name in announced if re.fullmatch(r"(pg|powa)[a-z]*_[a-z_]+", name)} - known


@pytest.mark.parametrize("path", [path for path in tracked_files() if path.suffix in (".yml", ".yaml")], ids=relative)
def test_lines_of_yaml_are_short_enough_for_the_linter(path):
    assert [number for number, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 160] == []
