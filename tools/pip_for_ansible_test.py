# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let ansible-test fill its virtual environments where only a package index can be reached.

It wants get-pip.py from a site of its own, and takes a file in its cache instead if there is one. Python brings pip
along (ensurepip), so that file need not hold a copy of pip: it takes Python's, and pip then installs what is asked for.
A file that is there already is left alone.
"""

import ast
import pathlib

import ansible_test

SCRIPT = '''"""Stands in for get-pip.py: pip from this Python, then the versions asked for from the package index."""

import subprocess
import sys

# In a process of its own: it sets pip's configuration aside.
subprocess.check_call([sys.executable, "-m", "ensurepip"], stdout=subprocess.DEVNULL)
wanted = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *wanted]))
'''

source = pathlib.Path(ansible_test.__path__[0]) / "_internal" / "python_requirements.py"
(function,) = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.FunctionDef) and node.name == "get_venv_packages"]
versions = set()
for node in ast.walk(function):
    if isinstance(node, ast.Call):
        versions |= {keyword.value.value for keyword in node.keywords if keyword.arg == "pip" and isinstance(keyword.value, ast.Constant)}
    if isinstance(node, ast.Dict):
        versions |= {v.value for k, v in zip(node.keys, node.values) if getattr(k, "value", None) == "pip" and isinstance(v, ast.Constant)}
cache = pathlib.Path("~/.ansible/test/cache").expanduser()
cache.mkdir(parents=True, exist_ok=True)
for version in versions:
    script = cache / ("get_pip_%s.py" % version.replace(".", "_"))
    if not script.exists():
        script.write_text(SCRIPT)
