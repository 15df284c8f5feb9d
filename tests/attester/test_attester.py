"""Attester: consistent evidence, rejected platform responses, events and lifecycle."""

import copy
import os
import pickle
import threading
import time
from collections.abc import Callable
from hashlib import sha384
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit import backends
from attestkit.attestation import Attestation
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.errors import (
    AttestKitError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    ReplayError,
    UnsupportedError,
    UsageError,
)
from attestkit.event_log.runtime_events import RESERVED_NAMES
from attestkit.factory import open as open_attester
from attestkit.quote import Quote
from attestkit.report_data import ReportDataWarning
from tests.concurrency.keeping import Keeping
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

SEED = bytes(32)


class FakeBackend:
    """Backend without registers on the simulator, with replaceable responses."""

    name = "wrapped"
    simulated = True
    blocking = False

    def __init__(self) -> None:
        self.inner = Simulator(seed=SEED)
        self.quote: Callable[[bytes], Any] = self.inner.get_quote
        self.area: Any = self.inner.read_event_log()
        self.closed = 0

    @classmethod
    def probe(cls) -> None:
        """Succeed."""

    def get_quote(self, report_data: bytes) -> bytes:
        """Return the configured response."""
        raw: bytes = self.quote(report_data)
        return raw

    def read_event_log(self) -> bytes:
        """Return the configured response."""
        area: bytes = self.area
        return area

    def close(self) -> None:
        """Count the calls."""
        self.closed += 1


class FakeRegisterBackend(FakeBackend):
    """The same with registers."""

    def read_rtmr(self, register: int) -> bytes:
        """Read a register."""
        return self.inner.read_rtmr(register)

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend a register."""
        self.inner.extend_rtmr(register, digest)

    def open_journal(self, version: int | None = None) -> Any:
        """Return the simulator's journal."""
        return self.inner.open_journal(version)


# -- evidence ----------------------------------------------------------------------------------


def test_attester_supports_the_documented_workflow() -> None:
    """Quote, log, event, evidence, registers and keys."""
    with open_attester("simulator", seed=SEED) as tee:
        quote = tee.get_quote(b"nonce")
        assert quote.report_data == b"nonce".ljust(64, b"\0")
        tee.event_log().check(quote)
        event = tee.emit_event("model-loaded", b"weights")
        assert event.digest == sha384(b"\1\0\0\x08:model-loaded:weights").digest()
        assert tee.event_log().events[-1] == event
        with raises(ReplayError, "rtmr_mismatch"):
            tee.event_log().check(quote)
        evidence = Attestation.from_bytes(tee.attest(report_data=b"nonce", pad=True).to_bytes())
        assert evidence.quote is not None
        evidence.event_log.check(evidence.quote)
        assert evidence.quote.rtmrs == tee.registers() == evidence.event_log.replay()
        assert evidence.runtime_events[-1].name == "model-loaded"
        assert evidence.config == tee.vm_config
        assert evidence.app_info == tee.app_info
        assert tee.app_info.app_id == tee.app_compose.default_app_id
        assert len(tee.keys.derive_compat("wallet/eth", purpose="signing").key) == 32
        assert tee.keys is tee.keys
        assert tee.simulated
        assert not tee.blocking
        assert repr(tee) == "<Attester on simulator, simulated>"


def test_report_data_is_zero_padded_or_rejected() -> None:
    """0 to 64 bytes are accepted; the error has the guest agent's text."""
    with open_attester("simulator") as tee:
        assert tee.get_quote(b"").report_data == bytes(64)
        assert tee.attest(report_data=b"\1" * 64, pad=True).report_data == b"\1" * 64
        for call in (tee.get_quote, lambda data: tee.attest(report_data=data, pad=True)):
            with pytest.raises(UsageError, match="Report data is too long"):
                call(bytes(65))
            with pytest.raises(UsageError):
                call(untyped("text"))
        for wrong in (b"", bytes(63), bytes(65), bytearray(64)):
            reason = "wrong_size" if isinstance(wrong, bytes) else "wrong_type"
            with raises(UsageError, reason):
                tee.evidence_source.quote_and_log(untyped(wrong))
            with raises(UsageError, reason):
                tee.attest(report_data=untyped(wrong))


def test_hex_report_data_warning_only_in_public_calls() -> None:
    """Calls with exactly 64 bytes, as of the server, do not warn."""
    text = b"ab" * 32
    with open_attester("simulator") as tee:
        with pytest.warns(ReportDataWarning):
            tee.attest(report_data=text, pad=True)
        assert tee.attest(report_data=text).report_data == text
        assert tee.evidence_source.quote_and_log(text)[0].report_data == text


def test_event_log_is_the_same_object_until_it_grows() -> None:
    """Values derived from the log can be cached by its identity."""
    with open_attester("simulator") as tee:
        _, one = tee.evidence_source.quote_and_log(bytes(64))
        _, two = tee.evidence_source.quote_and_log(bytes(64))
        assert one is two is tee.event_log()
        tee.emit_event("more", b"")
        quote, three = tee.evidence_source.quote_and_log(bytes(64))
        assert three is not one
        assert three.events == (*one.events, three.events[-1])
        three.check(quote)


# -- platform errors ---------------------------------------------------------------------------


@every_case(
    ("answer", "reason"),
    [
        (lambda _: b"", "malformed_response"),
        (lambda _: bytes(1000), "malformed_response"),
        (lambda _: "text", "malformed_response"),
        (lambda _: Simulator(seed=SEED).get_quote(bytes(64))[:-1], "malformed_response"),
        (lambda _: Simulator(seed=SEED).get_quote(b"\1" * 64), "wrong_report_data"),
    ],
)
def test_malformed_quote_is_a_backend_error(answer: Callable[[bytes], Any], reason: str) -> None:
    """It is not a FormatError, since the caller's input was valid."""
    backend = FakeBackend()
    backend.quote = answer
    with Attester(backend) as tee:
        for call in (lambda: tee.get_quote(b""), lambda: tee.attest(nonce=b"a nonce!")):
            with raises(BackendError, reason):
                call()


def test_backend_error_is_raised_unchanged() -> None:
    """Type, reason and text are the backend's."""
    backend = FakeBackend()

    def refuse(report_data: bytes) -> bytes:
        raise QuoteUnavailableError(f"no quote over {len(report_data)} bytes", reason="empty")

    backend.quote = refuse
    with (
        Attester(backend) as tee,
        raises(QuoteUnavailableError, "empty", args=("no quote over 64 bytes",)),
    ):
        tee.get_quote(b"")


@every_case("area", [b"\0", b"CCEL", bytes(range(256)), "text"])
def test_malformed_boot_log_is_a_backend_error(area: Any) -> None:
    """A quote alone can still be made."""
    backend = FakeRegisterBackend()
    backend.area = area
    with Attester(backend) as tee:
        for call in (tee.event_log, lambda: tee.attest(report_data=bytes(64))):
            with raises(BackendError, "malformed_response"):
                call()
        assert tee.get_quote(b"").rtmrs == tee.registers()


def test_evidence_with_unexplained_registers_is_rejected() -> None:
    """The error names the registers and the missing log."""
    without_registers = FakeBackend()
    with Attester(without_registers) as tee, raises(ReplayError, "rtmr_mismatch") as caught:
        tee.attest(report_data=bytes(64))
    backend = FakeRegisterBackend()
    backend.area = b""
    with Attester(backend) as tee, raises(ReplayError, "rtmr_mismatch", part="RTMR0") as caught:
        tee.evidence_source.quote_and_log(bytes(64))
    assert "CCEL" in str(caught.value)  # the missing log


def test_growing_boot_log_is_read_again() -> None:
    """Some kernels append to the log, and evidence needs its current state."""
    backend = FakeRegisterBackend()
    with Attester(backend) as tee:
        before = tee.event_log()
        area = bytearray(backend.area)
        end = len(bytes(area).rstrip(b"\xff"))
        extra = b"\3\0\0\0\5\0\0\0\1\0\0\0\x0c\0" + b"\7" * 48 + b"\0\0\0\0"
        area[end : end + len(extra)] = extra
        backend.area = bytes(area)
        with raises(ReplayError, "rtmr_mismatch", part="RTMR2"):
            tee.attest(report_data=bytes(64))
        backend.inner.extend_rtmr(2, b"\7" * 48)
        tee.attest(report_data=bytes(64))
        assert len(tee.event_log().events) == len(before.events) + 1


def test_missing_protocols_are_unsupported() -> None:
    """A platform without registers or app raises UnsupportedError."""
    with Attester(FakeBackend()) as tee:
        for call in (tee.registers, lambda: tee.emit_event("a", b"")):
            with raises(UnsupportedError, "no_registers"):
                call()
        with raises(UnsupportedError, "no_app"):
            _ = tee.keys
        with raises(UnsupportedError, "no_app"):
            _ = tee.app_compose
        assert tee.vm_config == ""


# -- events ------------------------------------------------------------------------------------


@every_case("name", ["", *sorted(RESERVED_NAMES), "a:b", ":", "\ud800"])
def test_emit_event_invalid_name_is_rejected(name: str) -> None:
    """Empty, reserved and, in version 1, names with a colon; nothing is extended."""
    with open_attester("simulator") as tee:
        before = tee.registers()
        with pytest.raises(UsageError):
            tee.emit_event(name, b"payload")
        assert tee.registers() == before
        tee.attest(report_data=bytes(64))


@every_case(("name", "payload"), [(b"bytes", b""), (["a"], b""), ("a", "text"), ("a", bytearray())])
def test_emit_event_invalid_type_is_rejected(name: Any, payload: Any) -> None:
    """A name is a str, a payload is bytes."""
    with open_attester("simulator") as tee, pytest.raises(UsageError):
        tee.emit_event(name, payload)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.text(min_size=1), st.binary(max_size=200)), max_size=6))
def test_emitted_events_are_in_the_evidence(events: list[tuple[str, bytes]]) -> None:
    """Accepted events are there in order, rejected ones are not."""
    with open_attester("simulator", seed=SEED) as tee:
        taken: list[object] = []
        for name, payload in events:
            try:
                taken.append(tee.emit_event(name, payload))
            except UsageError:
                assert ":" in name or name in RESERVED_NAMES
        evidence = Attestation.from_bytes(tee.attest(report_data=bytes(64)).to_bytes())
        found = evidence.runtime_events[len(evidence.runtime_events) - len(taken) :]
        assert list(found) == taken
        assert evidence.quote is not None
        evidence.event_log.check(evidence.quote)


@pytest.mark.parametrize("on_disk", [True, False])
def test_concurrent_events_and_evidence_are_consistent(tmp_path: Any, *, on_disk: bool) -> None:
    """Each log replays to its quote's registers, and each event is logged once."""
    options = {"state_dir": tmp_path} if on_disk else {}
    failures: list[BaseException] = []
    rounds = 12

    def emit(tee: Attester, thread_number: int) -> None:
        for number in range(rounds):
            tee.emit_event(f"event-{thread_number}-{number}", bytes([thread_number]))

    def attest(tee: Attester, thread_number: int) -> None:
        nonce = bytes([thread_number]) * 64
        for _ in range(rounds):
            quote, log = tee.evidence_source.quote_and_log(nonce)
            assert quote.report_data == nonce
            log.check(quote)

    def run(work: Callable[[Attester, int], None], tee: Attester, thread_number: int) -> None:
        with Keeping(failures):
            work(tee, thread_number)

    with open_attester("simulator", **options) as tee:
        threads = [
            threading.Thread(
                target=run, args=(emit if thread_number % 2 else attest, tee, thread_number)
            )
            for thread_number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        names = [event.name for event in tee.event_log().runtime if "event-" in event.name]
        assert len(names) == len(set(names)) == 4 * rounds
        for thread_number in (1, 3, 5, 7):
            own = [name for name in names if name.startswith(f"event-{thread_number}-")]
            assert own == [f"event-{thread_number}-{number}" for number in range(rounds)]


# -- opening and closing -----------------------------------------------------------------------


def test_open_accepts_a_backend_object() -> None:
    """A backend object needs no registration, and takes no options."""
    backend = Simulator(seed=SEED)
    with open_attester(backend) as tee:
        assert tee.backend is backend
    unchecked: Any = open_attester
    with raises(UsageError, "conflict"):
        unchecked(backend, seed=SEED)
    for wrong in (7, Simulator, object()):
        with raises(UsageError, "wrong_type"):
            open_attester(untyped(wrong))


class RelocatableBackend(FakeBackend):
    """Backend whose class probe fails, and which exists below /there."""

    name = "elsewhere"

    def __init__(self, *, root: str = "/") -> None:
        super().__init__()
        if root != "/there":
            raise BackendUnavailableError(f"nothing below {root}", reason="missing")

    @classmethod
    def probe(cls) -> None:
        """Fail at the default path."""
        raise BackendUnavailableError("nothing here", reason="wrong_platform")


def test_open_with_options_skips_the_class_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The constructor raises the error."""
    monkeypatch.setattr(backends, "load", lambda _: RelocatableBackend)
    with open_attester("elsewhere", root="/there") as tee:
        assert tee.backend.name == "elsewhere"
    with raises(BackendUnavailableError, "missing"):
        open_attester("elsewhere", root="/nowhere")
    with raises(BackendUnavailableError, "wrong_platform"):
        open_attester("elsewhere")
    with raises(UsageError, "unknown_name"):
        open_attester("elsewhere", depth=1)


def test_close_waits_for_running_call() -> None:
    """Calls after close are rejected."""
    backend = FakeRegisterBackend()
    entered, go_on = threading.Event(), threading.Event()
    quote = backend.inner.get_quote

    def slow(report_data: bytes) -> bytes:
        entered.set()
        assert go_on.wait(30)
        assert not backend.closed
        return quote(report_data)

    backend.quote = slow
    tee = Attester(backend)
    outcome: list[object] = []

    def run(call: Callable[[], object]) -> None:
        try:
            outcome.append(call())
        except UsageError as error:
            outcome.append(error.reason)

    threads = [threading.Thread(target=run, args=(lambda: tee.get_quote(b""),))]
    threads[0].start()
    assert entered.wait(30)
    threads += [threading.Thread(target=tee.close), threading.Thread(target=tee.close)]
    for number, thread in enumerate(threads[1:]):
        thread.start()
        while tee._device.waiting < number + 1 and thread.is_alive():
            time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join(30)
    run(lambda: tee.get_quote(b""))
    assert (type(outcome[0]), outcome[1]) == (Quote, "closed")


def test_closed_attester_rejects_calls() -> None:
    """Close is idempotent."""
    backend = FakeRegisterBackend()
    tee = Attester(backend)
    tee.attest(report_data=bytes(64))
    tee.close()
    tee.close()
    assert backend.closed == 1
    calls: list[Callable[[], object]] = [
        lambda: tee.get_quote(b""),
        lambda: tee.attest(report_data=bytes(64)),
        lambda: tee.evidence_source.quote_and_log(bytes(64)),
        lambda: tee.emit_event("a", b""),
        lambda: tee.keys,
        tee.__enter__,
        tee.event_log,
        tee.registers,
        lambda: tee.app_info,
    ]
    for call in calls:
        with raises(UsageError, "closed"):
            call()


def test_close_wipes_the_simulators_keys() -> None:
    """The keys cannot be used after the attester is closed."""
    with open_attester("simulator") as tee:
        keys = tee.keys
        keys.derive_compat("a")
    with pytest.raises(AttestKitError):
        keys.derive_compat("a")


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_attester_is_not_picklable_or_copyable(duplicate: Callable[[object], object]) -> None:
    """A device has one owner."""
    with open_attester("simulator") as tee, raises(UsageError, "not_picklable"):
        duplicate(tee)


def test_evidence_values_are_picklable() -> None:
    """Quotes, logs, evidence and app info compare equal after a round trip."""
    with open_attester("simulator") as tee:
        for value in (
            tee.get_quote(b""),
            tee.event_log(),
            tee.attest(report_data=bytes(64)),
            tee.app_info,
        ):
            assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the child makes few calls
def test_forked_child_cannot_use_the_attester(tmp_path: Any) -> None:
    """A close in the child does not affect the parent's state."""
    with open_attester("simulator", state_dir=tmp_path) as tee:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                tee.get_quote(b"")
                outcome_of_child = "a quote"
            except UsageError as error:
                outcome_of_child = error.reason
            tee.close()
            os.write(write, outcome_of_child.encode())
            os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        with os.fdopen(read) as pipe:
            assert pipe.read() == "wrong_process"
        tee.emit_event("still", b"here")
        tee.attest(report_data=bytes(64))
