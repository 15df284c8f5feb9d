"""systemd socket activation: listening sockets inherited from the service manager.

The descriptors are `$LISTEN_FDS` from 3 on, if `$LISTEN_PID` is this process; `$LISTEN_FDNAMES` has
their names. A listener without an inherited socket binds its own. A descriptor with the name of a
listener belongs to that listener. Of the others the first is dstack.sock and the second tappd.sock,
because systemd names descriptors after their unit by default. With limited sockets every descriptor
needs the name of a listener, so that none is mistaken for dstack.sock. A descriptor with the name
of a limited socket that is not configured is an error.

Every client of dstack and tappd can use the app's keys. Startup therefore fails if a
descriptor does not fit its listener. In particular, dstack and tappd are never served over TCP or
on an abstract unix socket, which has neither owner nor mode.
"""

import fcntl
import ipaddress
import os
import socket
from collections.abc import Collection, Iterator, MutableMapping, Sequence
from typing import Final

from attestkit.errors import UsageError
from attestkit.serve.endpoints import LIMITED_PREFIX, option_of

FIRST: Final = 3  # SD_LISTEN_FDS_START
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
_UNIX: Final = ("dstack", "tappd")
_TCP: Final = ("http", "dev_http", "verifier", "pccs", "verifier_metrics")
_MAX_DESCRIPTORS: Final = 256


def take_sockets(
    environ: MutableMapping[str, str], listeners: Collection[str], *, first: int = FIRST
) -> dict[str, socket.socket]:
    """Return the inherited sockets by the name of their listener, if any.

    Those of another process (`$LISTEN_PID`) are ignored. The sockets become close-on-exec, and the
    variables are removed from `environ`.

    Args:
        environ: Environment variables.
        listeners: Names of the listeners that are on.
        first: Number of the first descriptor.

    Raises:
        UsageError: If a variable is not a valid number, the numbers of names and descriptors
            differ, or a descriptor does not fit its listener, or has none that is on.
    """
    pid, count, names = (environ.get(variable) for variable in _VARIABLES[:3])
    for variable in _VARIABLES:
        environ.pop(variable, None)
    if pid is None or count is None or read_number("LISTEN_PID", pid, 1 << 31) != os.getpid():
        return {}
    descriptors = range(first, first + read_number("LISTEN_FDS", count, _MAX_DESCRIPTORS))
    labels = ["unknown"] * len(descriptors) if names is None else names.split(":") if names else []
    if len(labels) != len(descriptors):
        text = f"$LISTEN_FDNAMES: {len(labels)} names for {len(descriptors)} descriptors; name each"
        raise UsageError(text, reason="conflict")
    found: dict[str, socket.socket] = {}
    try:
        for descriptor, label in zip(descriptors, labels, strict=True):
            _add_socket(found, descriptor, label, labels, listeners)
    except UsageError:
        for taken in found.values():
            taken.close()
        raise
    return {name: found[name] for name in sorted(found, key=_order)}


def _order(name: str) -> int:
    """Return the rank of the listener `name` for sorting: limited sockets last."""
    known = (*_UNIX, *_TCP)
    return known.index(name) if name in known else len(known)


def read_number(variable: str, text: str, limit: int, least: int = 0) -> int:
    """Return the number `text` of an environment variable, from `least` to below `limit`.

    `variable` is its name without `$`, for errors.

    Raises:
        UsageError: If `text` is not such a number.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and least <= int(text) < limit):
        problem = f"${variable}: must be an integer, {least} to {limit - 1}, not {text[:40]!r}"
        raise UsageError(problem, reason="wrong_value")
    return int(text)


def _add_socket(
    found: dict[str, socket.socket],
    descriptor: int,
    label: str,
    labels: Sequence[str],
    listeners: Collection[str],
) -> None:
    """Add the socket of a descriptor to `found`, after checking that it fits its listener.

    `label` is the name of the descriptor, and `labels` are those of all descriptors.
    """
    here = f"inherited descriptor {descriptor} ({label[:80]!r}):"
    limited = sorted(name for name in listeners if name.startswith(LIMITED_PREFIX))
    names = (*_UNIX, *_TCP, *limited)
    name = label if label in names else None
    if name is None and not limited and label != "guest_api" and not _is_limited(label):
        free = (name for name in _UNIX if name not in found and name not in labels)
        name = next(free, None)
    if name is None:
        text = f"{here} no listener of that name; use one of {', '.join(names)}"
        raise UsageError(text, reason="unknown_name")
    if name in found:
        raise UsageError(f"{here} the listener {name} already has a socket", reason="conflict")
    if name not in listeners:
        text = f"{here} the listener {name} is off; see {option_of(name)}"
        raise UsageError(text, reason="not_applicable")
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise UsageError(f"{here} not a socket: {error.strerror}", reason="wrong_type") from error
    fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    if problem := next(_find_problems(name, sock), ""):
        sock.close()
        raise UsageError(f"{here} unsuitable for {name}: {problem}", reason="wrong_value")
    found[name] = sock


def _is_limited(label: str) -> bool:
    """Return whether a descriptor has the name of a limited socket, not that of its unit.

    `label` is the descriptor's name: `dstack-NAME`, whose unit would be `dstack-NAME.socket`.
    """
    return label.startswith(LIMITED_PREFIX) and not label.endswith(".socket")


def _find_problems(name: str, sock: socket.socket) -> Iterator[str]:
    """Yield the reasons why a socket is unsuitable for the listener `name`, for use in an error.

    Later checks rely on earlier ones, so the caller must stop at the first problem.
    """
    family, address = sock.family, sock.getsockname()
    if sock.type != socket.SOCK_STREAM:
        yield "not a stream socket"
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        yield "not listening"
    is_unix = name in _UNIX or _is_limited(name)
    if is_unix and family != socket.AF_UNIX:
        yield "keys are served on unix sockets only"
    if is_unix and not (isinstance(address, str) and address):
        yield "an abstract socket has no file permissions; bind it to a path"
    if name in _TCP and family not in {socket.AF_INET, socket.AF_INET6}:
        yield "not a TCP socket"
    if name == "dev_http" and not ipaddress.ip_address(address[0]).is_loopback:
        yield "it serves keys without authentication; use a loopback address"
