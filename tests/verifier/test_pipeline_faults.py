"""Whatever goes wrong inside a verification, nothing passes, and the exception is one of ours."""

import gc
import sys
from collections.abc import Callable
from datetime import datetime, tzinfo
from inspect import CO_GENERATOR
from types import FrameType
from typing import Any, Final, NoReturn

import pytest

from attestkit.attestation import Attestation
from attestkit.errors import AttestKitError, UsageError, VerificationError
from attestkit.report_data import ReportData
from attestkit.verifier import (
    AppraisalPolicy,
    AttestationResult,
    Item,
    Verifier,
    authenticators,
    evidence_checks,
    pipeline,
)
from tests.verifier import parcels
from tests.verifier.parcels import NONCE, NOW

RAW = parcels.evidence().to_bytes()

BREAKABLE: list[tuple[object, str]] = [
    (pipeline, "_opened"),
    (pipeline, "reported_data"),
    (pipeline, "history"),
    (pipeline, "os_image"),
    (pipeline, "app_info"),
    (pipeline, "claims"),
    (pipeline, "fresh"),
    (pipeline, "accepted"),
    (ReportData, "pad"),
    (authenticators.Makers, "authenticate"),
    (authenticators.Makers, "genuine"),
    (AppraisalPolicy, "appraise"),
    (AppraisalPolicy, "needs_tcb_details"),
    (Verifier, "_moment"),
    (evidence_checks, "verified_hash"),
    (evidence_checks, "_same_events"),
    (Attestation, "from_bytes"),
]
# What Rust code raises when it panics, under pyo3.
PanicException = type("PanicException", (BaseException,), {})


def breaking(kind: type[BaseException]) -> Callable[..., Any]:
    """Return a function that raises."""

    def broken(*_args: object, **_options: object) -> None:
        raise kind("a secret of the machine")

    return broken


@pytest.mark.parametrize(("where", "name"), BREAKABLE, ids=[name for _, name in BREAKABLE])
@pytest.mark.parametrize(
    "kind", [RuntimeError, KeyError, RecursionError, MemoryError, ValueError, PanicException]
)
def test_a_broken_step_is_a_rejection(
    monkeypatch: pytest.MonkeyPatch, where: object, name: str, kind: type[BaseException]
) -> None:
    """Whatever goes wrong inside, nothing passes, and no foreign text gets out."""
    judge = parcels.verifier()
    broken: Any = breaking(kind)
    is_property = isinstance(vars(where)[name], property)
    monkeypatch.setattr(where, name, property(broken) if is_property else broken)
    with pytest.raises(VerificationError) as caught:
        judge.verify(RAW, report_data=NONCE)
    assert caught.value.reason == "internal"
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, kind)
    if name != "_moment":  # that is told once for all
        [found] = judge.verify_many([Item(RAW, NONCE)])
        assert isinstance(found, VerificationError)
        assert found.reason == "internal"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    """Ctrl-C and an exit get through."""
    judge = parcels.verifier()
    monkeypatch.setattr(pipeline, "history", breaking(kind))
    with pytest.raises(kind):
        judge.verify(RAW, report_data=NONCE)
    with pytest.raises(kind):
        judge.verify_many([Item(RAW, NONCE)])


def test_a_broken_clock() -> None:
    """It is a rejection; one that does not tell an aware time is its owner's mistake."""
    calls: tuple[Callable[[Verifier], object], ...] = (
        lambda judge: judge.verify(RAW, report_data=NONCE),
        lambda judge: judge.examine(RAW),
        lambda judge: judge.verify_many([Item(RAW, NONCE)]),
    )
    for call in calls:
        with pytest.raises(VerificationError) as caught:
            call(parcels.verifier(clock=breaking(OSError)))
        assert caught.value.reason == "internal"
        wrong: tuple[Any, ...] = (None, NOW.timestamp(), NOW.replace(tzinfo=None))
        for now in wrong:
            with pytest.raises(UsageError, match="the clock's time is a datetime"):
                call(parcels.verifier(clock=lambda now=now: now))


class Nowhere(tzinfo):
    """A zone that fails."""

    def utcoffset(self, _when: datetime | None) -> NoReturn:
        """Raise."""
        raise OSError("a secret of the machine")

    dst = tzname = utcoffset


def test_a_broken_zone() -> None:
    """A time whose zone fails is a rejection too."""
    with pytest.raises(VerificationError) as caught:
        parcels.verifier().verify(RAW, report_data=NONCE, now=NOW.replace(tzinfo=Nowhere()))
    assert caught.value.reason == "internal"


def test_arguments_of_another_type() -> None:
    """They are refused where they are handed in, with what is wanted."""
    judge = parcels.verifier(collateral=None)
    wrong: tuple[Any, ...] = ("x", b"{}", 5)
    for value in wrong:
        with pytest.raises(UsageError, match="collateral is a Collateral, not"):
            judge.verify(RAW, report_data=NONCE, collateral=value)
        with pytest.raises(UsageError, match="collateral is a Collateral, not"):
            judge.examine(RAW, collateral=value)
        with pytest.raises(UsageError, match=r"AppraisalPolicy\.strict\(\), .*default.*develop"):
            Verifier(policy=value)
    with pytest.raises(UsageError, match="the PCCS URL"):
        Verifier(pccs_url="ftp://h")


# -- every call ----------------------------------------------------------------------------------

# Nothing but calls of the others: these cannot be guarded by a function, for they are its callers.
OUTERMOST: Final = {
    "whole": {"verify", "guarded"},
    "steps": {
        *("examine", "authenticate", "replay", "image_hash", "app_info", "appraise"),
        *("_check_collateral", "guarded"),
    },
}


class UnforeseenError(Exception):
    """Raised where nobody expects anything."""


def whole(judge: Verifier) -> AttestationResult:
    """Verify in one call."""
    return judge.verify(RAW, report_data=NONCE)


def in_steps(judge: Verifier) -> AttestationResult:
    """Verify as a service does that tells how far it got."""
    examination = judge.examine(RAW)
    examination.authenticate()
    examination.replay()
    examination.image_hash()
    examination.app_info()
    return examination.appraise(NONCE)


ROUTES: Final[dict[str, Callable[[Verifier], AttestationResult]]] = {
    "whole": whole,
    "steps": in_steps,
}


class Outcome:
    """What became of a verification in which one call failed."""

    def __init__(self) -> None:
        self.passed = False
        self.refused = False  # as a rejection
        self.calls = 0
        self.broken = ""  # the function


def verify_breaking(judge: Verifier, route: str, call: int) -> Outcome:
    """Verify good evidence with the n-th call of a Python function failing; count the calls."""
    found = Outcome()
    generators: set[FrameType] = set()  # started; a generator's end is a call too, in vain

    def hook(frame: FrameType, event: str, _argument: object) -> None:
        if event != "call" or frame in generators:
            return
        if frame.f_code.co_flags & CO_GENERATOR:
            generators.add(frame)
        if "/attestkit/" in frame.f_code.co_filename:
            found.calls += 1
            if found.calls == call:
                found.broken = frame.f_code.co_name
                raise UnforeseenError

    gc.disable()  # else others' objects end in the middle of it, and that is a call too
    sys.setprofile(hook)
    try:
        ROUTES[route](judge)
        found.passed = True
    except (AttestKitError, UnforeseenError) as error:
        found.refused = isinstance(error, VerificationError)
    finally:
        sys.setprofile(None)
        gc.enable()
    return found


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("route", ROUTES)
def test_every_call_broken(route: str, *, fresh: bool) -> None:
    """Break each call that a verification makes, one at a time: none of them can be missed.

    All but the outermost are rejections. A fresh verifier has nothing in its caches.
    """
    judge = parcels.verifier()
    judge.verify(RAW, report_data=NONCE)  # what is loaded late is loaded
    anchored = parcels.collateral()

    def used() -> Verifier:
        return parcels.verifier(collateral=anchored) if fresh else judge

    good = verify_breaking(used(), route, 0)
    assert good.passed
    assert good.calls > 100
    broken = [verify_breaking(used(), route, call) for call in range(1, good.calls + 1)]
    assert [each.broken for each in broken if each.passed] == []
    escaped = [each.broken for each in broken if not each.refused]
    assert set(escaped) <= OUTERMOST[route]
    assert len(escaped) <= (2 if route == "whole" else 13)
