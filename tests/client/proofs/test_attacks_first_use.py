"""Attacks on policy="first-use": another program must not be taken for one that is new.

The attacker has the server's name, and genuine evidence of a program of its own, and chooses the
service and the names of roles that it answers with.
"""

import json
from pathlib import Path
from typing import Any

import pytest

import attestkit
from attestkit import Require
from attestkit.client.services.own_document import OwnDocument
from attestkit.client.services.service import Claims, Machine
from attestkit.errors import ServiceError
from attestkit.ra_tls import PeerRefusedError
from attestkit.testing import AttestedServer
from tests.raising import raises

OTHER_APP = b'{"manifest_version":2,"name":"other","runner":"bash"}'


class Renaming:
    """attestkit's own document, from a server that chooses the role."""

    name, where = "renaming", "wire"

    def __init__(self, role: str) -> None:
        self._role, self._own = role, OwnDocument()
        self.recognizes, self.questions = self._own.recognizes, self._own.questions

    def read(self, *arguments: Any) -> Claims:
        """Return the claims with another role."""
        found = self._own.read(*arguments)
        [machine] = found.machines
        renamed = Machine(self._role, machine.evidence, machine.report_data)
        return Claims((renamed,), found.bindings, found.freshness)


def connect(server: AttestedServer, pins: Path, url: str | None = None, **options: Any) -> None:
    """Connect by first use."""
    with attestkit.connect(
        url or server.url,
        policy="first-use",
        pins=pins,
        **{"server_ca": server.ca, **options},
        trust_anchor=server.tee.trust_anchor,
        collateral=server.tee.collateral,
    ):
        pass


def move(pins: Path, old: AttestedServer, new: AttestedServer) -> bytes:
    """Let the file be about another server: as if that one had taken over the name."""
    pins.write_text(pins.read_text().replace(old.url, new.url))
    return pins.read_bytes()


def test_new_role_with_another_program(tmp_path: Path) -> None:
    """A new name of a role does not make a program one of the first use."""
    pins = tmp_path / "pins.json"
    with AttestedServer() as server, AttestedServer(app_compose=OTHER_APP) as other:
        connect(server, pins, service=Renaming("gateway"))
        before = move(pins, server, other)
        with pytest.raises(PeerRefusedError) as caught:
            connect(other, pins, service=Renaming("server"))
        assert caught.value.reason == "identity"
        assert "server" in str(caught.value)
        assert pins.read_bytes() == before
        assert other.requests == []


def test_new_role_with_the_same_program(tmp_path: Path) -> None:
    """A further instance with the same program is accepted, and kept."""
    pins = tmp_path / "pins.json"
    with AttestedServer() as server:
        connect(server, pins, service=Renaming("instance 1"))
        connect(server, pins, service=Renaming("instance 2"))
        assert f"{server.url} renaming instance 2" in json.loads(pins.read_text())["pins"]


def test_guess_of_another_service(tmp_path: Path) -> None:
    """A server that answers as another service than at first use is refused."""
    pins = tmp_path / "pins.json"
    require = Require(freshness="key possession")
    with AttestedServer() as server, AttestedServer(app_compose=OTHER_APP, ra_tls=True) as other:
        connect(server, pins, require=require)
        before = move(pins, server, other)
        for server_ca in (other.ca, None):
            with raises(ServiceError, "identity", part="service of the first use"):
                connect(other, pins, require=require, server_ca=server_ca)
        assert pins.read_bytes() == before
        connect(other, pins, require=require, service="ra-tls", server_ca=None)
        connect(other, pins, require=require, server_ca=None)
