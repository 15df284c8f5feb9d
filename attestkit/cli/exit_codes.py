"""Exit codes of the program, and its error output on stderr."""

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Final

import click

from attestkit import errors
from attestkit._sanitize import printable
from attestkit._system.process_hardening import discard_output

USAGE, REJECTED, NETWORK, POLICY, UNREADABLE = 1, 2, 3, 4, 5
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
MEANINGS: Final = {
    0: "good",
    USAGE: "usage",
    REJECTED: "rejected",
    NETWORK: "network or device",
    POLICY: "refused by policy",
    UNREADABLE: "unreadable input",
}
"""Meaning of the codes in every command, unless its help is more specific."""

# The first match counts: PolicyError is a subclass of VerificationError.
_EXIT_CODES: Final[tuple[tuple[type[errors.AttestKitError], int], ...]] = (
    (errors.PolicyError, POLICY),
    (errors.VerificationError, REJECTED),
    (errors.FormatError, UNREADABLE),
    (errors.UsageError, USAGE),
    (errors.ConfigError, USAGE),
    (errors.BackendError, NETWORK),
    (errors.CollateralError, NETWORK),
)
_NO_CONNECTION: Final = frozenset({"connection", "timeout"})
# One forged piece of evidence among many must not be hidden by an unreadable one.
_MOST_SEVERE_FIRST: Final = (REJECTED, POLICY, NETWORK, UNREADABLE, USAGE)
_EXIT_CODE_KEY: Final = "attestkit.exit_code"


def exit_code(error: errors.AttestKitError) -> int:
    """Return the exit code of an error.

    It is 1 for usage, 2 rejected, 3 network or device, 4 policy, 5 unreadable.
    """
    if isinstance(error, errors.GpuEvidenceError) and error.by_policy:
        return POLICY
    if isinstance(error, errors.KmsError) and error.is_rejection:
        return REJECTED
    if isinstance(error, errors.ServiceError):
        return NETWORK if error.reason in _NO_CONNECTION else REJECTED
    if isinstance(error, OSError):  # PeerRefusedError: its cause determines the code
        if isinstance(cause := error.__cause__, errors.AttestKitError):
            return exit_code(cause)
        return NETWORK if error.reason in _NO_CONNECTION else REJECTED
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), NETWORK)


def most_severe_code(codes: Iterable[int]) -> int:
    """Return the most severe of some exit codes; 0 if all are 0 or there is none.

    The order is rejected, policy, network, unreadable, usage.
    """
    found = set(codes)
    return next((code for code in _MOST_SEVERE_FIRST if code in found), 0)


def one_line(text: str) -> str:
    """Return `text` with white space collapsed and control characters escaped.

    So untrusted text cannot control a terminal.
    """
    return printable(" ".join(text.split()))


def print_error(text: str) -> None:
    """Print the error message `text` as one line on stderr, after `attestkit: `."""
    write_stderr(f"attestkit: {one_line(text)}\n")


@contextlib.contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Context manager: print each UserWarning that is issued in it as one line on stderr."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        yield
    for one in found:
        print_error(f"warning: {one.message}")


def write_stderr(text: str) -> None:
    """Write `text` to stderr; a failure is ignored, and does not change the exit code."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        discard_output(sys.stderr)


def set_exit_code(code: int) -> int:
    """Store the exit code of the running command, which also holds if stdout is a closed pipe.

    Returns:
        The same exit code.
    """
    click.get_current_context().meta[_EXIT_CODE_KEY] = code
    return code


def chosen_exit_code(context: click.Context) -> int:
    """Return the exit code that the running command has stored with `set_exit_code`, or 0."""
    code: int = context.meta.get(_EXIT_CODE_KEY, 0)
    return code


class _TerminatedError(BaseException):
    """A terminating signal was received."""


@contextlib.contextmanager
def clean_up_on_signals() -> Iterator[None]:
    """Context manager: on SIGTERM or SIGHUP exit it, so that cleanup runs, then end the process.

    Signals that are ignored or have a handler already are not changed.
    """
    received: list[int] = []

    def leave_block(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        raise _TerminatedError

    handled: list[int] = []
    if threading.current_thread() is threading.main_thread():  # required by signal.signal
        terminating = (signal.SIGTERM, signal.SIGHUP)
        handled = [one for one in terminating if signal.getsignal(one) is signal.SIG_DFL]
    try:
        for number in handled:
            signal.signal(number, leave_block)
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
        if received:
            os.kill(os.getpid(), received[0])
