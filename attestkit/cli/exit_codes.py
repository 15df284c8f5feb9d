"""How an error ends the program: its exit code, and its text in one line."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Final, TextIO

import click

from attestkit.errors import (
    AttestKitError,
    BackendError,
    CollateralError,
    ConfigError,
    FormatError,
    PolicyError,
    UsageError,
    VerificationError,
)

__all__ = [
    "INTERRUPTED",
    "NETWORK",
    "POLICY",
    "REJECTED",
    "UNREADABLE",
    "USAGE",
    "complain",
    "decide",
    "decided",
    "drop",
    "ended_in_order",
    "exit_code",
    "gravest",
    "one_line",
    "tell",
]

USAGE, REJECTED, NETWORK, POLICY, UNREADABLE = 1, 2, 3, 4, 5
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

# The first that fits decides; PolicyError before the VerificationError it is.
_CODES: Final[tuple[tuple[type[AttestKitError], int], ...]] = (
    (PolicyError, POLICY),
    (VerificationError, REJECTED),
    (FormatError, UNREADABLE),
    (UsageError, USAGE),
    (ConfigError, USAGE),
    (BackendError, NETWORK),
    (CollateralError, NETWORK),
)
# A forged one among many must not be hidden by one that could not be read.
_GRAVEST_FIRST: Final = (REJECTED, POLICY, NETWORK, UNREADABLE, USAGE)
_DECIDED: Final = "attestkit.exit_code"


def exit_code(error: AttestKitError) -> int:
    """Return the exit code for an error: 1 usage, 2 rejected, 3 device, 4 policy, 5 unreadable."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), NETWORK)


def gravest(codes: Iterable[int]) -> int:
    """Return the one code for many outcomes: rejected, policy, network, unreadable, usage, good."""
    found = set(codes)
    return next((code for code in _GRAVEST_FIRST if code in found), 0)


def one_line(text: str) -> str:
    """Fold white space and show control characters, so that no input can draw on a terminal."""
    folded = " ".join(text.split())
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in folded)


def complain(text: str) -> None:
    """Say what went wrong, in one line on stderr."""
    tell(f"attestkit: {one_line(text)}\n")


def tell(text: str) -> None:
    """Write to stderr; that nobody can be told changes neither what is done nor the exit code."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """Have what is still buffered go nowhere: the interpreter flushes once more at its end."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def decide(code: int) -> int:
    """Keep the exit code of the running command, also if nobody reads its output; return it."""
    click.get_current_context().meta[_DECIDED] = code
    return code


def decided(context: click.Context) -> int:
    """Return the exit code that the command has decided on, or 0."""
    code: int = context.meta.get(_DECIDED, 0)
    return code


class _EndedError(BaseException):
    """A signal that ends the process came."""


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Have SIGTERM and SIGHUP leave the block first, which puts things in order, and then end us.

    A signal that somebody handles or ignores is left to them.
    """
    came: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        came.append(number)
        raise _EndedError

    taken: list[int] = []
    if threading.current_thread() is threading.main_thread():  # which alone may take them
        deadly = (signal.SIGTERM, signal.SIGHUP)
        taken = [one for one in deadly if signal.getsignal(one) is signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, leave)
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
        if came:
            os.kill(os.getpid(), came[0])
