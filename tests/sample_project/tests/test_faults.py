"""Effect of each fault, in the process and on the server."""

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

# The error of evidence and of an event; None means success.
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


def test_all_faults_are_covered() -> None:
    """A new fault needs a test."""
    assert set(NAMED) == {*OF_EVIDENCE, *OF_EVENTS, *HARMLESS, *OF_A_QUOTING_SERVICE}


def request_status(url: str, method: str, message: object) -> int:
    """Return the HTTP status of a method."""
    data, kind = json.dumps(message).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/{method}", data, kind)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.parametrize("name", OF_EVIDENCE)
def test_evidence_fault_is_raised_and_ends(
    tee_factory: Callable[..., SimulatedTee], name: str
) -> None:
    """It is raised as often as its count, and ends, at the latest with a reboot."""
    tee = tee_factory(faults=f"{name}:1")
    with pytest.raises(OF_EVIDENCE[name]):
        tee.attest(b"nonce")
    tee.reset()
    tee.arm(name)
    assert request_status(tee.url, "GetQuote", {"report_data": ""}) == 500
    tee.reset()
    assert tee.verify(tee.attest(b"nonce"), report_data=b"nonce").simulated


@pytest.mark.parametrize("name", OF_EVENTS)
def test_event_fault_is_raised_and_ends(
    tee_factory: Callable[..., SimulatedTee], name: str
) -> None:
    """Later evidence is valid, with or without the event."""
    tee = tee_factory(faults=f"{name}:2")
    with pytest.raises(OF_EVENTS[name]):
        tee.emit("first", b"1")
    assert request_status(tee.url, "EmitEvent", {"event": "second", "payload": "02"}) == 500
    tee.emit("third", b"3")
    assert tee.verify(tee.attest(b"nonce"), report_data=b"nonce").simulated


def test_rtmr_extend_lies_fault_is_hidden(tee_factory: Callable[..., SimulatedTee]) -> None:
    """The register's value decides, not the error."""
    tee = tee_factory(faults="rtmr_extend_lies")
    assert tee.emit("model", b"1") == tee.event_log().events[-1]
    assert tee.verify(tee.attest(), report_data=b"").simulated


def test_slow_fault_delays_evidence(tee_factory: Callable[..., SimulatedTee]) -> None:
    """The host's delay is the fault's."""
    tee = tee_factory(faults="slow:300ms")
    begin = time.monotonic()
    tee.attest()
    assert time.monotonic() - begin >= 0.3


@pytest.mark.parametrize("name", OF_A_QUOTING_SERVICE)
def test_quoting_service_fault_is_rejected(
    tee_factory: Callable[..., SimulatedTee], name: str
) -> None:
    """The simulator has no quoting service."""
    with pytest.raises(UsageError) as refused:
        tee_factory(faults=name)
    assert refused.value.reason == "not_applicable"


def test_misspelt_fault_suggests_a_name(tee: SimulatedTee) -> None:
    """The error has the nearest name."""
    with pytest.raises(UsageError, match="ebusy") as refused:
        tee.arm("ebussy")
    assert refused.value.reason == "unknown_name"
