"""Every fault strikes as it is named, in the program and in the server."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from attestkit.backends.simulator.faults.fault_specs import NAMED
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    JournalError,
    QuoteUnavailableError,
    ReplayError,
    UsageError,
)
from attestkit.testing import SimulatedTee

# What evidence, and what an event, ends with; None is well.
OF_EVIDENCE: dict[str, type[AttestKitError]] = {
    "ebusy": BackendBusyError,
    "eintr": BackendBusyError,
    "eio": QuoteUnavailableError,
    "etimedout": QuoteUnavailableError,
    "quote_fails": QuoteUnavailableError,
    "empty_outblob": QuoteUnavailableError,
    "short_outblob": QuoteUnavailableError,
    "oversized_outblob": BackendError,
    "wrong_report_data": BackendError,
    "foreign_extend": ReplayError,
    "generation_race": BackendBusyError,
    "provider_changes": BackendError,
    "provider_leaves": BackendUnavailableError,
}
OF_EVENTS: dict[str, type[AttestKitError]] = {
    "rtmr_extend_fails": BackendError,
    "torn_journal": JournalError,
}
HARMLESS = {"slow", "rtmr_extend_lies"}
OF_A_QUOTING_SERVICE = {"qgs_error", "qgs_closes", "qgs_truncates"}


def test_every_fault_is_here() -> None:
    """A new one needs a test."""
    assert set(NAMED) == {*OF_EVIDENCE, *OF_EVENTS, *HARMLESS, *OF_A_QUOTING_SERVICE}


def status(url: str, method: str, message: object) -> int:
    """Return the status with which a method answers."""
    data, kind = json.dumps(message).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/{method}", data, kind)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.parametrize("name", OF_EVIDENCE)
def test_of_evidence(tee_factory: Callable[..., SimulatedTee], name: str) -> None:
    """It fails as often as it is told to, and is well again, if need be after a reboot."""
    tee = tee_factory(faults=f"{name}:1")
    with pytest.raises(OF_EVIDENCE[name]):
        tee.attest(b"nonce")
    tee.reset()
    tee.arm(name)
    assert status(tee.url, "GetQuote", {"report_data": ""}) == 500
    tee.reset()
    assert tee.verify(tee.attest(b"nonce"), report_data=b"nonce").simulated


@pytest.mark.parametrize("name", OF_EVENTS)
def test_of_events(tee_factory: Callable[..., SimulatedTee], name: str) -> None:
    """The event is refused; evidence afterwards is good, with the event or without it."""
    tee = tee_factory(faults=f"{name}:2")
    with pytest.raises(OF_EVENTS[name]):
        tee.emit("first", b"1")
    assert status(tee.url, "EmitEvent", {"event": "second", "payload": "02"}) == 500
    tee.emit("third", b"3")
    assert tee.verify(tee.attest(b"nonce"), report_data=b"nonce").simulated


def test_rtmr_extend_lies(tee_factory: Callable[..., SimulatedTee]) -> None:
    """The register counts, not the answer."""
    tee = tee_factory(faults="rtmr_extend_lies")
    assert tee.emit("model", b"1") == tee.event_log().events[-1]
    assert tee.verify(tee.attest(), report_data=b"").simulated


def test_slow(tee_factory: Callable[..., SimulatedTee]) -> None:
    """Evidence comes later, and who needs none does not wait for it."""
    tee = tee_factory(faults="slow:300ms")
    begin = time.monotonic()
    tee.attest()
    assert time.monotonic() - begin >= 0.3


@pytest.mark.parametrize("name", OF_A_QUOTING_SERVICE)
def test_what_cannot_go_wrong_here_is_refused(
    tee_factory: Callable[..., SimulatedTee], name: str
) -> None:
    """The simulator has no quoting service of its own."""
    with pytest.raises(UsageError, match="cannot go wrong"):
        tee_factory(faults=name)


def test_a_misspelt_fault_is_refused(tee: SimulatedTee) -> None:
    """The error says what there is."""
    with pytest.raises(UsageError, match="ebusy"):
        tee.arm("ebussy")
