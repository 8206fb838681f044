# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What PostgreSQL stores of a password: the published exchange, SASLprep, and bad input."""

from __future__ import annotations

import base64
import hmac

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.pgfleet.ops.plugins.filter.scram_secret import FilterModule, prepared, secret_of

scram_secret = FilterModule().filters()["scram_secret"]


def test_the_exchange_of_rfc_7677_is_signed_with_the_secret():
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    messages = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=%s,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=%s" % (nonce, nonce)
    secret = secret_of(b"pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    assert secret.startswith("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$")
    server_key = base64.b64decode(secret.rpartition(":")[2])
    assert base64.b64encode(hmac.digest(server_key, messages.encode(), "sha256")) == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


@pytest.mark.parametrize(
    ("password", "expected"),
    [
        # The examples of RFC 4013, section 3.
        ("I\u00adX", "IX"), ("user", "user"), ("USER", "USER"), ("\u00aa", "a"), ("\u2168", "IX"),
        # Where it allows none of the text, PostgreSQL takes the password as it is.
        ("\u06271", "\u06271"), ("\u00e4\u0007", "\u00e4\u0007"), ("\u00ad", "\u00ad"), ("a\u0627b", "a\u0627b"), ("x\u0221", "x\u0221"),
        # Spaces become the plain one, also the one of no width, which another table would take away.
        ("a\u00a0b", "a b"), ("a\u200bb", "a b"),
        ("\u0627\u0628", "\u0627\u0628"),
        # ASCII is never touched.
        ("tab\there", "tab\there"),
    ],
)  # fmt: skip
def test_a_password_is_prepared_as_servers_and_clients_do(password, expected):
    assert prepared(password) == expected.encode()


def test_bytes_that_are_no_utf_8_are_hashed_as_they_are():
    assert prepared(b"caf\xe9".decode("utf-8", "surrogateescape")) == b"caf\xe9"


def test_the_same_input_makes_the_same_secret_and_any_other_another():
    secret = scram_secret("password", "shop app")
    assert scram_secret("password", salt="shop app", iterations=4096) == secret
    others = [scram_secret("password", "shop powa"), scram_secret("passwort", "shop app"), scram_secret("password", "shop app", 4097)]
    assert len({secret, *others}) == 4
    iterations, salt = secret.removeprefix("SCRAM-SHA-256$").split("$")[0].split(":")
    assert int(iterations) == 4096 and len(base64.b64decode(salt)) == 16


def test_a_secret_stays_what_it_is():
    secret = scram_secret("password", "shop app")
    assert scram_secret(secret, "another") == secret


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("", "salt"), "the password is empty"),
        ((None, "salt"), "the password is empty"),
        ((12345678, "salt"), "the password is a int"),
        (("hidden", ""), "salt is empty"),
        (("hidden", 7), "salt is a int"),
        (("hidden", "salt", 0), "iterations is 0: expected a number from 1"),
        (("hidden", "salt", "4096"), "iterations is '4096'"),
        (("hidden", "salt", True), "iterations is True"),
        (("md5" + 32 * "0", "salt"), "an MD5 hash, from which no SCRAM secret can be made"),
    ],
)
def test_bad_input_is_named_and_the_password_is_not(arguments, said):
    with pytest.raises(AnsibleFilterError) as error:
        scram_secret(*arguments)
    assert said in str(error.value) and "hidden" not in str(error.value) and "12345678" not in str(error.value)
