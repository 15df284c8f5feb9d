"""Listening sockets that a service manager hands over (systemd's socket activation).

`$LISTEN_FDS` descriptors from 3 on are ours if `$LISTEN_PID` is; `$LISTEN_FDNAMES` names them. A
listener that was handed its socket takes it, one that was not binds its own. A descriptor with the
name of a listener is that listener's; of the others the first is dstack.sock and the second
tappd.sock, whatever they are called, for systemd calls them after their unit.

Key methods are served to whoever can connect. So a descriptor that is not beyond doubt what its
listener needs ends the start; above all dstack and tappd are never served on TCP, nor under an
abstract name, which has neither owner nor mode.
"""

import fcntl
import ipaddress
import os
import socket
from collections.abc import Collection, Iterator, MutableMapping, Sequence
from typing import Final

from attestkit.errors import UsageError

__all__ = ["take_sockets"]

FIRST: Final = 3  # SD_LISTEN_FDS_START
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
_UNIX: Final = ("dstack", "tappd")
_TCP: Final = ("http", "dev_http", "verifier", "pccs", "verifier_metrics")
_OPTIONS: Final = {"dstack": "--socket", "tappd": "--tappd-socket"}
_MOST: Final = 256  # what is more is a mistake, and not worth a look at each


def take_sockets(
    environ: MutableMapping[str, str], wanted: Collection[str], *, first: int = FIRST
) -> dict[str, socket.socket]:
    """Return the sockets that were handed over, by the name of their listener.

    They are ours from now on: not inherited by other programs, and the variables are gone.

    Args:
        environ: Where the variables are.
        wanted: The names of the listeners that are on.
        first: The number of the first descriptor.

    Raises:
        UsageError: Numbers or names make no sense, or a descriptor is not what its listener needs.
    """
    pid, count, names = (environ.get(variable) for variable in _VARIABLES[:3])
    for variable in _VARIABLES:
        environ.pop(variable, None)
    if pid is None or count is None or _number("LISTEN_PID", pid, 1 << 31) != os.getpid():
        return {}
    descriptors = range(first, first + _number("LISTEN_FDS", count, _MOST))
    labels = ["unknown"] * len(descriptors) if names is None else names.split(":") if names else []
    if len(labels) != len(descriptors):
        raise UsageError(
            f"$LISTEN_FDNAMES has {len(labels)} names for {len(descriptors)} descriptors"
        )
    found: dict[str, socket.socket] = {}
    try:
        for descriptor, label in zip(descriptors, labels, strict=True):
            _take(found, descriptor, label, labels, wanted)
    except UsageError:
        for taken in found.values():
            taken.close()
        raise
    return {name: found[name] for name in (*_UNIX, *_TCP) if name in found}


def _number(variable: str, text: str, limit: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < limit):
        raise UsageError(f"${variable} is {text[:40]!r}: want a number below {limit}")
    return int(text)


def _take(
    found: dict[str, socket.socket],
    descriptor: int,
    label: str,
    labels: Sequence[str],
    wanted: Collection[str],
) -> None:
    """Add the socket of a descriptor to `found`, or say why not."""
    here = f"descriptor {descriptor} ({label[:80]!r}) was handed over, and "
    name = label if label in (*_UNIX, *_TCP) else None
    if name is None:
        free = (name for name in _UNIX if name not in found and name not in labels)
        name = next(free, None)
    if name is None:
        raise UsageError(
            f"{here}there is no listener for it: {' and '.join(_UNIX)} have theirs, and others "
            f"must be called {', '.join(_TCP)}"
        )
    if name in found:
        raise UsageError(f"{here}{name} has one already")
    if name not in wanted:
        option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
        raise UsageError(f"{here}{name} is off: see {option}")
    try:
        handed = socket.socket(fileno=descriptor)
    except OSError as error:
        raise UsageError(f"{here}it is no socket: {error.strerror}") from error
    fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    if reason := next(_objections(name, handed), ""):
        handed.close()
        raise UsageError(f"{here}it cannot be {name}: {reason}")
    found[name] = handed


def _objections(name: str, handed: socket.socket) -> Iterator[str]:
    """Yield what keeps a socket from being the listener `name`; the first is what to tell."""
    family, address = handed.family, handed.getsockname()
    if handed.type != socket.SOCK_STREAM:
        yield "it is not a stream socket"
    if not handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        yield "it does not listen"
    if name in _UNIX and family != socket.AF_UNIX:
        yield "keys are served on unix sockets only"
    if name in _UNIX and not (isinstance(address, str) and address):
        yield "it has no path, so anybody could connect"
    if name in _TCP and family not in {socket.AF_INET, socket.AF_INET6}:
        yield "it is not a TCP socket"
    if name == "dev_http" and not ipaddress.ip_address(address[0]).is_loopback:
        yield "only on a loopback address, for it gives keys to anybody"
