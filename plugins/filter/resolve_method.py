# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: resolve_method
short_description: Find the task file or module that a method of one's own names
version_added: "0.1.0"
description:
  - The playbooks' variables that end in C(_method) may name a task file or a module instead of a built-in method. This says which it is and where.
  - A name that is neither is an error that says what was expected, and for a plugin of HandyRep what to use instead.
positional: option, builtin, directories
options:
  _input:
    description:
      - The method. The path of a task file, ending in C(.yml) or C(.yaml), or the full name of a module, C(NAMESPACE.COLLECTION.NAME).
    type: str
    required: true
  option:
    description: The variable that names it, for the error.
    type: str
    required: true
  builtin:
    description: The built-in methods of that variable, for the error.
    type: list
    elements: str
    default: []
  directories:
    description: Where a relative path is looked for, in this order.
    type: list
    elements: str
    default: []
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
- name: Find a task file beside the inventory
  ansible.builtin.debug:
    msg: "{{ 'methods/clone.yml' | pgfleet.ops.resolve_method('clone_method', ['basebackup'], [inventory_dir]) }}"
"""

RETURN = r"""
_value:
  description: What it is, V(file) or V(module), as C(kind), and its absolute path or its full name as C(name).
  type: dict
  sample: {kind: file, name: /srv/inventory/methods/clone.yml}
"""

import os
import re
import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.pgfleet.ops.plugins.plugin_utils.handyrep_names import instead_of


def resolve_method(name: t.Any, option: str, builtin: t.Sequence[str] = (), directories: t.Sequence[str] = ()) -> dict[str, str]:
    """What a method of one's own is: a task file with its path, or a module with its name. Raises AnsibleFilterError."""
    if not isinstance(name, str) or not name:
        raise AnsibleFilterError("%s is %s: expected the name of a method" % (option, "empty" if name in ("", None) else "a %s" % type(name).__name__))
    if name.endswith((".yml", ".yaml")):
        places = [os.path.abspath(os.path.join(directory, name)) for directory in ([""] if os.path.isabs(name) else filter(None, directories))]
        for place in places:
            if os.path.isfile(place):
                return {"kind": "file", "name": place}
        raise AnsibleFilterError('%s is "%s", a task file that is not there; looked for %s' % (option, name, " and ".join(places) or "it nowhere"))
    if re.fullmatch(r"[a-z_]\w*(\.[a-z_]\w*){2,}", name, re.IGNORECASE):
        return {"kind": "module", "name": name}
    own = "the path of a task file (NAME.yml) or the full name of a module (NAMESPACE.COLLECTION.NAME)"
    raise AnsibleFilterError(
        '%s is "%s", which is neither %s%s.%s'
        % (option, name, "a built-in method (%s) nor " % ", ".join(builtin) if builtin else "", own, " %s." % instead_of(name) if instead_of(name) else "")
    )


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"resolve_method": resolve_method}
