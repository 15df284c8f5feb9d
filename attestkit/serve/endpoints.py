"""Addresses of the listeners: as configured, and as bound, for the ready message."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["BoundAddresses", "ListenAddresses"]


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


class BoundAddresses:
    """Addresses that the server listens on; `str()` gives the ready line.

    Attributes:
        addresses: For each listener that is on, by name (dstack, tappd, http, dev_http, verifier,
            pccs, verifier_metrics): the path of its socket, or its URL with the actual port.
    """

    __slots__ = ("addresses",)

    def __init__(self, addresses: Mapping[str, Path | str]) -> None:
        self.addresses: Mapping[str, Path | str] = addresses

    def __str__(self) -> str:
        from shlex import quote  # quotes a path with blanks

        return " ".join(
            ["ready", *(f"{name}={quote(str(at))}" for name, at in self.addresses.items())]
        )
