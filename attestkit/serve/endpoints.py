"""Addresses of the listeners: as configured, and as bound, for the ready message."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from attestkit.errors import UsageError

AGENT_LISTENERS: Final = ("dstack", "tappd", "http", "dev_http", "pccs")
"""Listeners that need an attester; `guest_api` does too, but is never the only one."""

LISTENERS: Final = (
    "dstack",
    "tappd",
    "http",
    "dev_http",
    "verifier",
    "pccs",
    "verifier_metrics",
    "guest_api",
)
"""All listeners, in the order of the ready line."""

_OPTIONS: Final = {"dstack": "--socket", "tappd": "--tappd-socket", "pccs": "--pccs-http"}

LIMITED_PREFIX: Final = "dstack-"
"""Start of the name of every listener that is limited to some methods."""

_STEM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_LIMITED: Final = 16
_NO_METHODS: Final[Mapping[str, Sequence[str]]] = MappingProxyType({})


class LimitedSocket(NamedTuple):
    """A unix socket that serves some methods of dstack.sock, and nothing else.

    Attributes:
        path: Path of the socket.
        methods: Names of the methods: `Info` allows the method in both generations of the API,
            `v1.Info` or `v0.Info` in one of them.
        option: Name of the option or environment variable that the socket comes from, for errors.
    """

    path: Path
    methods: Sequence[str]
    option: str = "--socket"

    @property
    def listener(self) -> str:
        """Name of the listener: `dstack-` and the file name without `.sock`."""
        return f"{LIMITED_PREFIX}{self.path.name.removesuffix('.sock')}"

    def error(self, problem: str) -> UsageError:
        """Return a UsageError with the option, the path and `problem` as its text."""
        return UsageError(f"{self.option} {self.path}: {problem}", reason="wrong_value")


def option_of(listener: str) -> str:
    """Return the name of the option with a listener's address, such as `--http`, for errors."""
    return _OPTIONS.get(listener, f"--{listener.replace('_', '-')}")


ANY_CID: Final = 0xFFFFFFFF
"""Context id for all addresses of this machine (VMADDR_CID_ANY)."""


class VsockAddress(NamedTuple):
    """Address of a vsock listener (vsock(7)): port and context id, by default any."""

    port: int
    cid: int = ANY_CID

    def __str__(self) -> str:
        return f"vsock:{self.port}" if self.cid == ANY_CID else f"vsock:{self.cid}:{self.port}"


class ListenAddresses(NamedTuple):
    """Addresses to listen on, by listener; None turns the listener off.

    The guest agent has `dstack` and `tappd` (unix sockets), `http` (the external listener),
    `dev_http` (all methods, on loopback only), `guest_api` (methods for the host), and `limited`:
    up to 16 unix sockets with some methods of `dstack` each. `pccs` serves the simulator's
    collateral, `verifier` the verifier service, `verifier_metrics` the metrics of a verifier
    without an agent.

    A TCP address is (host, port), and port 0 selects a free one. `http` and `guest_api` may be the
    path of a unix socket. `socket_mode` and `socket_group` (name or number) apply to all unix
    sockets.
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
    limited: Sequence[LimitedSocket] = ()
    guest_api: VsockAddress | Path | None = None

    def listeners(self) -> Iterator[tuple[str, tuple[str, int] | VsockAddress | Path]]:
        """Yield name and address of each listener that is on, in the order of the ready line."""
        for name in LISTENERS:
            if (address := getattr(self, name)) is not None:
                yield name, address
            if name == "tappd":
                yield from ((one.listener, one.path) for one in self.limited)

    def check_limited(self) -> None:
        """Check the number, paths and names of the limited sockets.

        Raises:
            UsageError: If there are more than 16, a file name is unsuitable or not unique, or a
                path is also that of another listener.
        """
        others = (self.dstack, self.tappd, self.http, self.guest_api)
        paths = [path.absolute() for path in others if isinstance(path, Path)]
        names: list[str] = []
        for one in self.limited:
            if not _STEM.fullmatch(one.listener.removeprefix(LIMITED_PREFIX)):
                raise one.error(
                    "file name without .sock: must match [A-Za-z0-9][A-Za-z0-9._-]{0,63}"
                )
            if one.path.absolute() in paths:
                raise one.error(
                    "is the path of two listeners; change one of them (`--socket none` turns "
                    "dstack.sock off)"
                )
            if one.listener in names:
                raise one.error(f"two sockets have the name {one.listener}; rename one of them")
            names.append(one.listener)
        if len(names) > _MOST_LIMITED:
            raise self.limited[-1].error(f"too many limited sockets: give at most {_MOST_LIMITED}")


class BoundAddresses(NamedTuple):
    """Addresses that the server listens on; `str()` gives the ready line.

    Attributes:
        addresses: For each listener that is on, by name (see LISTENERS): the path of its socket, or
            its URL with the actual port.
        methods: Names of the methods of each limited socket, by name.
    """

    addresses: Mapping[str, Path | str]
    methods: Mapping[str, Sequence[str]] = _NO_METHODS

    def __str__(self) -> str:
        from shlex import quote  # quotes a path with blanks

        return " ".join(
            ["ready", *(f"{name}={quote(str(at))}" for name, at in self.addresses.items())]
        )
