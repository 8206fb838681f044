# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: handyrep
short_description: The servers of a handyrep.conf as an inventory for this collection's playbooks
version_added: "0.1.0"
description:
  - Reads HandyRep's configuration file, and the servers that HandyRep has saved, and describes the cluster to the playbooks of this collection.
  - The group named after the cluster has the groups C(CLUSTER_nodes), C(CLUSTER_poolers) and C(CLUSTER_archives) in it. Servers that are not enabled
    are in C(CLUSTER_disabled), and those of a role that nothing here manages in C(CLUSTER_others); both are outside of the cluster's group.
  - What C([server_defaults]) says becomes variables of the groups, where C(group_vars) beside the inventory can override it, and only what a server says
    otherwise becomes a variable of the host, for C(host_vars).
  - Passwords are left out. Put those of postgres and of the poolers' administrator into Ansible Vault as C(postgresql_node_superuser_password)
    and C(pgbouncer_admin_password).
  - HandyRep's roles master and replica are kept as the variable C(handyrep_role) and used for nothing. Which node is the primary is asked, never told.
  - The cluster has C(pgfleet_managed=false), with which the playbook C(deploy_site) refuses its hosts - it would overwrite C(postgresql.conf) and
    C(pg_hba.conf), which HandyRep never managed.
  - The files are read as they are, or decrypted where Ansible Vault has encrypted them.
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [pgfleet.ops.handyrep]
  handyrep_conf:
    description: HandyRep's configuration file. A relative path counts from the directory of the inventory file.
    type: str
    required: true
  servers_save:
    description:
      - The JSON file in which HandyRep saved its servers. As in HandyRep it wins over C([servers]) of O(handyrep_conf).
      - Without this option C(server_file) of O(handyrep_conf) counts, if that file exists. A relative path counts from the directory of O(handyrep_conf)
        there, and from that of the inventory file here.
    type: str
  override_server_file:
    description: Take the servers of O(handyrep_conf) and leave O(servers_save) alone. Without this option the setting of the same name counts.
    type: bool
  cluster:
    description:
      - Name of the cluster's group.
      - Without this option it is made of C(cluster_name) by replacing what Ansible does not take in a group's name; the original is in the variable
        C(handyrep_cluster_name).
    type: str
  host_prefix:
    description: Put before the name of each server, for inventories of several HandyReps that use the same names.
    type: str
    default: ""
  strict:
    description: Fail for what has no effect here or needs work, instead of a warning that names it and what to use.
    type: bool
    default: false
  accepted:
    description: Names from that warning that are known and done with.
    type: list
    elements: str
    default: []
requirements:
  - configobj (Python library on the controller)
notes:
  - The name of the inventory file must be C(handyrep.yml), C(handyrep.yaml), or end in C(.handyrep.yml) or C(.handyrep.yaml).
seealso:
  - module: pgfleet.ops.pg_cluster_info
  - module: pgfleet.ops.pg_switchover
author:
  - pgfleet.ops contributors (@pgfleet)
"""

EXAMPLES = r"""
# orders.handyrep.yml, beside a copy of HandyRep's two files
plugin: pgfleet.ops.handyrep
handyrep_conf: handyrep.conf
servers_save: servers.save
---
# On the host of HandyRep itself; what is known and done with is not warned about again.
plugin: pgfleet.ops.handyrep
handyrep_conf: /etc/handyrep/handyrep.conf
cluster: orders
accepted: [auto_failover, archive_two_servers]
"""

import json
import os

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible_collections.pgfleet.ops.plugins.plugin_utils.handyrep_site import BadSetting, Section, Site, Translation

try:
    import configobj
except ImportError:
    configobj = None

FILE_NAMES = ("handyrep.yml", "handyrep.yaml")


def read_conf(text):
    """A handyrep.conf without its passwords, as nested dictionaries. Raises BadSetting, with no line of the file, which may hold a password."""
    try:
        found = configobj.ConfigObj(text.splitlines())
    except configobj.ConfigObjError as error:
        first = (getattr(error, "errors", None) or [error])[0]
        raise BadSetting("line %s is neither a section nor a setting" % first.line_number) from None
    found.pop("passwords", None)
    return plain(found, "")


def plain(section, path):
    found = {}
    for key in section:
        try:
            value = section[key]
        except configobj.InterpolationError:
            raise BadSetting("%s%s has a %%(name)s that names no setting" % (path, key)) from None
        found[key] = plain(value, "%s%s: " % (path, key)) if isinstance(value, dict) else value
    return found


def read_servers(text):
    """The servers of a servers.save. Raises BadSetting."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BadSetting("it is no JSON (line %s)" % getattr(error, "lineno", "?")) from None
    servers = found.get("servers") if isinstance(found, dict) else None
    if not isinstance(servers, dict):
        raise BadSetting("it has no servers")
    return servers


class InventoryModule(BaseInventoryPlugin):
    NAME = "pgfleet.ops.handyrep"

    def verify_file(self, path):
        return super().verify_file(path) and (os.path.basename(path) in FILE_NAMES or path.endswith(tuple("." + name for name in FILE_NAMES)))

    def parse(self, inventory, loader, path, cache=True):
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        if configobj is None:
            raise AnsibleError("The inventory plugin %s needs the Python library configobj on the controller: install configobj there." % self.NAME)
        conf_path = self._beside(path, self.get_option("handyrep_conf"))
        conf = self._read(conf_path, read_conf)
        saved_path, saved = self._saved(path, conf_path, conf)
        source = "%s and %s" % (conf_path, saved_path) if saved is not None else conf_path
        try:
            site = Translation(conf, saved, self.get_option("cluster") or "", self.get_option("host_prefix") or "").site()
        except BadSetting as error:
            raise AnsibleParserError("%s: %s." % (source, error)) from None
        self._tell(source, site)
        self._fill(site, path)

    def _beside(self, path, name):
        """An absolute path; a relative one counts from the directory of the file ``path``."""
        return os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(path)), os.path.expanduser(name)))

    def _read(self, path, reader):
        try:
            return reader(str(self.loader.get_text_file_contents(path)))
        except BadSetting as error:
            raise AnsibleParserError("%s cannot be read: %s." % (path, error)) from None

    def _saved(self, path, conf_path, conf):
        settings = Section("[handyrep]", conf.get("handyrep", {}))
        override = self.get_option("override_server_file")
        if settings.flag("override_server_file", False) if override is None else override:
            return None, None
        named = self.get_option("servers_save")
        saved_path = self._beside(path, named) if named else self._beside(conf_path, settings.text("server_file", "servers.save"))
        if not named and not os.path.exists(saved_path):
            self.display.v("%s: no %s, the servers of the file count" % (conf_path, saved_path))
            return None, None
        return saved_path, self._read(saved_path, read_servers)

    def _tell(self, source, site: Site):
        accepted = self.get_option("accepted")
        findings = [found for found in site.findings if found.name not in accepted]
        if not findings:
            return
        text = "%s has what needs a look; put the names of what is done with into the option accepted.\n%s" % (
            source,
            "\n".join("- %s: %s" % (found.name, found.text) for found in findings),
        )
        if self.get_option("strict"):
            raise AnsibleParserError(text)
        self.display.warning(text, formatted=True)

    def _fill(self, site: Site, path):
        for host in site.hosts:
            there = self.inventory.hosts.get(host)
            if there is not None and "handyrep_role" in there.vars:
                raise AnsibleParserError(
                    "%s: another handyrep.conf has a server %s already; it would get the variables of both. Set host_prefix." % (path, host)
                )
        for group, variables in site.groups.items():
            self.inventory.add_group(group)
            for key, value in variables.items():
                self.inventory.set_variable(group, key, value)
        for child in site.children:
            self.inventory.add_child(site.group, child)
        for host, (group, variables) in site.hosts.items():
            self.inventory.add_host(host, group=group)
            for key, value in variables.items():
                self.inventory.set_variable(host, key, value)
