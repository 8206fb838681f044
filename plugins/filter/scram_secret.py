# Copyright (c) 2026, pgfleet.ops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: scram_secret
short_description: The SCRAM secret of a password, as PostgreSQL stores it
version_added: "0.1.0"
description:
  - Makes from a password what PostgreSQL keeps of it in C(pg_authid.rolpassword), C(SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY), and always the same,
    so that a second run changes nothing.
  - Given to the nodes (O(pgfleet.ops.postgresql_node#role:main:postgresql_node_users)) and to the poolers
    (O(pgfleet.ops.pgbouncer#role:main:pgbouncer_users)), it spares PgBouncer the derivation of keys at each login, and the file of its users holds no
    password that somebody could read.
  - A password that is a SCRAM secret already is returned as it is.
notes:
  - Whoever logs in still needs the password; for the modules' options, C(.pgpass) files and user mappings it stays plain.
  - Another salt or another number of iterations is another secret. Once the nodes have it, the poolers cannot open new connections before they have it, too,
    and a client has logged in; the README of the role P(pgfleet.ops.pgbouncer#role) says more.
positional: salt
options:
  _input:
    description: The password.
    type: str
    required: true
  salt:
    description:
      - A text from which the salt is made. It need not be kept secret, but should be different for each user and each site, such as their names together.
    type: str
    required: true
  iterations:
    description: How often the hash is applied. More make guessing harder, and logins slower. The default is that of PostgreSQL.
    type: int
    default: 4096
author:
  - pgfleet.ops contributors (@pgfleet)
seealso:
  - name: RFC 5802 and RFC 7677
    description: Salted Challenge Response Authentication Mechanism, and SCRAM-SHA-256.
    link: https://www.rfc-editor.org/rfc/rfc7677
"""

EXAMPLES = r"""
# group_vars of a cluster and its poolers
app_secret: "{{ vault_app_password | pgfleet.ops.scram_secret('shop app') }}"
postgresql_node_users:
  - {name: app, password: "{{ app_secret }}"}
pgbouncer_users:
  - {name: app, password: "{{ app_secret }}"}
"""

RETURN = r"""
_value:
  description: The secret.
  type: str
  sample: SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=
"""

import base64
import hashlib
import hmac
import re
import stringprep as rfc3454
import typing as t
import unicodedata

from ansible.errors import AnsibleFilterError

# Length of the salt that PostgreSQL itself makes, in bytes.
SALT_BYTES = 16

_PROHIBITED: tuple[t.Callable[[str], bool], ...] = (
    rfc3454.in_table_a1,
    rfc3454.in_table_c12,
    rfc3454.in_table_c21_c22,
    rfc3454.in_table_c3,
    rfc3454.in_table_c4,
    rfc3454.in_table_c5,
    rfc3454.in_table_c6,
    rfc3454.in_table_c7,
    rfc3454.in_table_c8,
    rfc3454.in_table_c9,
)


def _is_allowed(text: str) -> bool:
    """Whether SASLprep allows a text that it has mapped (RFC 3454, sections 5 to 7)."""
    if not text or any(is_in(character) for character in text for is_in in _PROHIBITED):
        return False
    if not any(map(rfc3454.in_table_d1, text)):
        return True
    return rfc3454.in_table_d1(text[0]) and rfc3454.in_table_d1(text[-1]) and not any(map(rfc3454.in_table_d2, text))


def prepared(password: str) -> bytes:
    """What is hashed of a password: the text after SASLprep (RFC 4013), or the password as it is where that allows none, as servers and clients of
    PostgreSQL have it (src/common/saslprep.c)."""
    if not password.isascii():
        # One character is in both tables: PostgreSQL takes it for a space.
        mapped = (" " if rfc3454.in_table_c12(character) else "" if rfc3454.in_table_b1(character) else character for character in password)
        text = unicodedata.normalize("NFKC", "".join(mapped))
        if _is_allowed(text):
            password = text
    # Bytes that are no UTF-8 come as surrogates.
    return password.encode("utf-8", "surrogateescape")


def secret_of(password: bytes, salt: bytes, iterations: int) -> str:
    """The secret of a prepared password (RFC 5802, section 3; the format is that of scram_build_secret in src/common/scram-common.c)."""
    salted = hashlib.pbkdf2_hmac("sha256", password, salt, iterations)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    return "SCRAM-SHA-256$%d:%s$%s:%s" % (iterations, *(base64.b64encode(part).decode() for part in (salt, stored_key, server_key)))


def scram_secret(password: t.Any, salt: t.Any, iterations: t.Any = 4096) -> str:
    """The SCRAM secret of a password, the same each time. Raises AnsibleFilterError, which never contains the password."""
    for name, value in (("the password", password), ("salt", salt)):
        if not isinstance(value, str) or not value:
            raise AnsibleFilterError("scram_secret: %s is %s: expected a text" % (name, "empty" if value in ("", None) else "a %s" % type(value).__name__))
    if isinstance(iterations, bool) or not isinstance(iterations, int) or not 1 <= iterations < 2**31:
        raise AnsibleFilterError("scram_secret: iterations is %r: expected a number from 1 to 2147483647, such as 4096" % (iterations,))
    if re.fullmatch(r"SCRAM-SHA-256\$\d+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+", password):
        return password
    if re.fullmatch(r"md5[0-9a-f]{32}", password):
        raise AnsibleFilterError("scram_secret: the password is an MD5 hash, from which no SCRAM secret can be made: give the password itself")
    return secret_of(prepared(password), hashlib.sha256(salt.encode("utf-8", "surrogateescape")).digest()[:SALT_BYTES], iterations)


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"scram_secret": scram_secret}
