"""Addresses of the listeners: as configured, and as bound, for the ready message."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

AGENT_LISTENERS: Final = ("dstack", "tappd", "http", "dev_http", "pccs")
"""Listeners that need an attester."""

LISTENERS: Final = ("dstack", "tappd", "http", "dev_http", "verifier", "pccs", "verifier_metrics")
"""All listeners, in the order of the ready line."""


class ListenAddresses(NamedTuple):
    """Addresses to listen on, by listener; None turns the listener off.

    A TCP address is (host, port), and port 0 selects a free one. `http` may be the path of a unix
    socket; `socket_mode` and `socket_group` apply to all unix sockets.
    """

    dstack: Path | None = None
    tappd: Path | None = None
    http: tuple[str, int] | Path | None = None
    dev_http: tuple[str, int] | None = None
    socket_mode: int = 0o600
    socket_group: str | None = None
    verifier: tuple[str, int] | None = None
    pccs: tuple[str, int] | None = None
    verifier_metrics: tuple[str, int] | None = None


class BoundAddresses(NamedTuple):
    """Addresses that the server listens on; `str()` gives the ready line.

    Attributes:
        addresses: For each listener that is on, by name (see LISTENERS): the path of its socket, or
            its URL with the actual port.
    """

    addresses: Mapping[str, Path | str]

    def __str__(self) -> str:
        from shlex import quote  # quotes a path with blanks

        return " ".join(
            ["ready", *(f"{name}={quote(str(at))}" for name, at in self.addresses.items())]
        )
