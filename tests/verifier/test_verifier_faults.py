"""Tests of faults inside a verification: it never passes, and raises one of attestkit's errors."""

import gc
import sys
from collections.abc import Callable
from datetime import datetime, tzinfo
from inspect import CO_GENERATOR
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import pytest

import attestkit
from attestkit.errors import AttestKitError, UsageError, VerificationError
from attestkit.verifier import (
    AppraisalPolicy,
    AttestationResult,
    VerificationItem,
    Verifier,
    examination,
)
from tests.raising import raises
from tests.thorough import limited
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import NONCE, NOW

PACKAGE: Final = f"{Path(attestkit.__file__).parent}/"
RAW = intel.evidence().to_bytes()

# The calls of every other function fail in test_verify_fault_in_any_call_never_passes.
BREAKABLE: list[tuple[object, str]] = [
    (examination, "replay_event_log"),
    (AppraisalPolicy, "appraise"),
    (Verifier, "_verification_time"),
]
# The exception type of a Rust panic under pyo3.
PanicException = type("PanicException", (BaseException,), {})


def create_failing_function(kind: type[BaseException]) -> Callable[..., Any]:
    """Return a function that raises `kind`."""

    def failing(*_args: object, **_options: object) -> None:
        raise kind("a secret of the machine")

    return failing


@pytest.mark.parametrize(("owner", "name"), BREAKABLE, ids=[name for _, name in BREAKABLE])
@pytest.mark.parametrize("kind", [RuntimeError, RecursionError, MemoryError, PanicException])
def test_verify_fault_in_step_raises_verification_error(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, kind: type[BaseException]
) -> None:
    """A fault in any step is a rejection, and the text of its exception is not reported."""
    verifier = intel.verifier()
    failing: Any = create_failing_function(kind)
    monkeypatch.setattr(owner, name, failing)
    with raises(VerificationError, "internal") as caught:
        verifier.verify(RAW, report_data=NONCE)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, kind)
    if name != "_verification_time":  # read once for all items
        [found] = verifier.verify_many([VerificationItem(RAW, report_data=NONCE)])
        assert isinstance(found, VerificationError)
        assert found.reason == "internal"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_verify_interrupt_propagates(
    monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    """KeyboardInterrupt and SystemExit propagate."""
    verifier = intel.verifier()
    monkeypatch.setattr(examination, "replay_event_log", create_failing_function(kind))
    with pytest.raises(kind):
        verifier.verify(RAW, report_data=NONCE)
    with pytest.raises(kind):
        verifier.verify_many([VerificationItem(RAW, report_data=NONCE)])


def test_verify_faulty_clock_is_rejected() -> None:
    """A clock that raises is a rejection; one that returns no aware time raises UsageError."""
    calls: tuple[Callable[[Verifier], object], ...] = (
        lambda verifier: verifier.verify(RAW, report_data=NONCE),
        lambda verifier: verifier.examine(RAW),
        lambda verifier: verifier.verify_many([VerificationItem(RAW, report_data=NONCE)]),
    )
    for call in calls:
        with raises(VerificationError, "internal"):
            call(intel.verifier(clock=create_failing_function(OSError)))
        wrong: tuple[tuple[Any, str], ...] = (
            (None, "wrong_type"),
            (NOW.timestamp(), "wrong_type"),
            (NOW.replace(tzinfo=None), "wrong_value"),
        )
        for now, reason in wrong:
            with raises(UsageError, reason):
                call(intel.verifier(clock=lambda now=now: now))


class FailingZone(tzinfo):
    """A time zone that raises."""

    def utcoffset(self, _when: datetime | None) -> NoReturn:
        """Raise."""
        raise OSError("a secret of the machine")

    dst = tzname = utcoffset


def test_verify_faulty_time_zone_is_rejected() -> None:
    """A `now` with a failing time zone is a rejection."""
    with raises(VerificationError, "internal"):
        intel.verifier().verify(RAW, report_data=NONCE, now=NOW.replace(tzinfo=FailingZone()))


def test_verifier_wrong_argument_type_raises_usage_error() -> None:
    """Arguments of a wrong type raise UsageError."""
    verifier = intel.verifier(collateral=None)
    wrong: tuple[Any, ...] = ("x", b"{}", 5)
    for value in wrong:
        with raises(UsageError, "wrong_type"):
            verifier.verify(RAW, report_data=NONCE, collateral=value)
        with raises(UsageError, "wrong_type"):
            verifier.examine(RAW, collateral=value)
        if value != "x":  # a path
            with raises(UsageError, "wrong_type"):
                Verifier(policy=value)
            with raises(UsageError, "wrong_type"):
                Verifier(collateral=value)
    with raises(UsageError, "wrong_value"):
        Verifier(pccs_url="ftp://h")


# -- faults in every call ------------------------------------------------------------------------

# Functions outside of the guard, which call the guarded ones.
OUTERMOST: Final = {
    "whole": {"verify", "run_step"},
    "steps": {
        *("examine", "authenticate", "replay", "image_hash", "app_info", "appraise"),
        *("check_collateral", "run_step"),
    },
}


class UnforeseenError(Exception):
    """An exception that no code expects."""


def verify_at_once(verifier: Verifier) -> AttestationResult:
    """Verify in one call."""
    return verifier.verify(RAW, report_data=NONCE)


def verify_in_steps(verifier: Verifier) -> AttestationResult:
    """Verify step by step, as a service that reports progress."""
    examination = verifier.examine(RAW)
    examination.authenticate()
    examination.replay()
    examination.image_hash()
    examination.app_info()
    return examination.appraise(report_data=NONCE)


ROUTES: Final[dict[str, Callable[[Verifier], AttestationResult]]] = {
    "whole": verify_at_once,
    "steps": verify_in_steps,
}


class Outcome:
    """The outcome of a verification in which one call failed."""

    def __init__(self) -> None:
        self.passed = False
        self.refused = False  # as a rejection
        self.calls = 0
        self.failing = ""  # the function


def verify_breaking(verifier: Verifier, route: str, call: int) -> Outcome:
    """Verify good evidence with the n-th call of a Python function failing; count the calls."""
    found = Outcome()
    generators: set[FrameType] = set()  # a resumption is reported as a call

    def hook(frame: FrameType, event: str, _argument: object) -> None:
        if event != "call" or frame in generators:
            return
        if frame.f_code.co_flags & CO_GENERATOR:
            generators.add(frame)
        if frame.f_code.co_filename.startswith(PACKAGE):
            found.calls += 1
            if found.calls == call:
                found.failing = frame.f_code.co_name
                raise UnforeseenError

    gc.disable()  # finalizers of other objects would count as calls
    sys.setprofile(hook)
    try:
        ROUTES[route](verifier)
        found.passed = True
    except (AttestKitError, UnforeseenError) as error:
        found.refused = isinstance(error, VerificationError)
    finally:
        sys.setprofile(None)
        gc.enable()
    return found


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("route", ROUTES)
def test_verify_fault_in_any_call_never_passes(route: str, *, fresh: bool) -> None:
    """A fault in any single call is a rejection, except in the outermost calls.

    A fresh verifier has empty caches; continuous integration breaks some of its calls.
    """
    verifier = intel.verifier()
    verifier.verify(RAW, report_data=NONCE)  # import lazily loaded modules
    anchored = intel.collateral()

    def create_verifier() -> Verifier:
        return intel.verifier(collateral=anchored) if fresh else verifier

    good = verify_breaking(create_verifier(), route, 0)
    assert good.passed
    assert good.calls > 100
    calls = range(1, good.calls + 1)
    failing = [
        verify_breaking(create_verifier(), route, call)
        for call in (limited(calls) if fresh else calls)
    ]
    assert [each.failing for each in failing if each.passed] == []
    not_rejected = [each.failing for each in failing if not each.refused]
    assert set(not_rejected) <= OUTERMOST[route]
    assert len(not_rejected) <= (2 if route == "whole" else 13)
