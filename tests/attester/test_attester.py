"""An Attester's evidence always agrees with itself, and what the platform gets wrong is said."""

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
    JournalError,
    QuoteUnavailableError,
    ReplayError,
    UnsupportedError,
    UsageError,
)
from attestkit.event_log.runtime_events import RESERVED_NAMES
from attestkit.factory import open as open_attester
from attestkit.quote import Quote
from attestkit.report_data import ReportDataWarning
from tests.keeping import Keeping
from tests.untyped import untyped

SEED = bytes(32)


class Wrapped:
    """A backend around the simulator, some of whose answers a test replaces; without registers."""

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
        """It runs."""

    def get_quote(self, report_data: bytes) -> bytes:
        """Return what the test says."""
        raw: bytes = self.quote(report_data)
        return raw

    def read_event_log(self) -> bytes:
        """Return what the test says."""
        area: bytes = self.area
        return area

    def close(self) -> None:
        """Count."""
        self.closed += 1


class WithRegisters(Wrapped):
    """The same with registers."""

    def read_rtmr(self, register: int) -> bytes:
        """Read."""
        return self.inner.read_rtmr(register)

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend."""
        self.inner.extend_rtmr(register, digest)

    def open_journal(self, version: int | None = None) -> Any:
        """Return the simulator's."""
        return self.inner.open_journal(version)


# -- evidence ----------------------------------------------------------------------------------


def test_the_first_journey() -> None:
    """Quote, log, evidence, event, registers and keys, as the documentation shows them."""
    with open_attester("simulator", seed=SEED) as tee:
        quote = tee.get_quote(b"nonce")
        assert quote.report_data == b"nonce".ljust(64, b"\0")
        tee.event_log().check(quote)
        event = tee.emit_event("model-loaded", b"weights")
        assert event.digest == sha384(b"\1\0\0\x08:model-loaded:weights").digest()
        assert tee.event_log().events[-1] == event
        with pytest.raises(ReplayError, match="RTMR3"):
            tee.event_log().check(quote)
        evidence = Attestation.from_bytes(tee.attest(b"nonce").to_bytes())
        assert evidence.quote is not None
        evidence.event_log.check(evidence.quote)
        assert evidence.quote.rtmrs == tee.registers() == evidence.event_log.replay()
        assert evidence.runtime_events[-1].name == "model-loaded"
        assert evidence.config == tee.vm_config
        assert evidence.app_info() == tee.info()
        assert tee.info().app_id == tee.app_compose.default_app_id
        assert len(tee.keys.derive("wallet/eth", purpose="signing").key) == 32
        assert tee.keys is tee.keys
        assert tee.simulated
        assert not tee.blocking
        assert repr(tee) == "<Attester on simulator, simulated>"


def test_report_data_is_filled_up_or_refused() -> None:
    """0 to 64 bytes; more is refused with the agent's text; whole ones are not touched."""
    with open_attester("simulator") as tee:
        assert tee.get_quote(b"").report_data == bytes(64)
        assert tee.attest(b"\1" * 64).report_data == b"\1" * 64
        for call in (tee.get_quote, tee.attest):
            with pytest.raises(UsageError, match="Report data is too long"):
                call(bytes(65))
            with pytest.raises(UsageError):
                call(untyped("text"))
        for wrong in (b"", bytes(63), bytes(65), bytearray(64)):
            with pytest.raises(UsageError, match="64 bytes"):
                tee.quote_and_log(untyped(wrong))
            with pytest.raises(UsageError, match="64 bytes"):
                tee.evidence(untyped(wrong))


def test_hex_text_is_warned_about_only_where_bytes_are_typed() -> None:
    """Who hands over 64 exact bytes has made them; no warning disturbs a server."""
    text = b"ab" * 32
    with open_attester("simulator") as tee:
        with pytest.warns(ReportDataWarning):
            tee.attest(text)
        assert tee.evidence(text).report_data == text
        assert tee.quote_and_log(text)[0].report_data == text


def test_the_log_is_the_same_object_until_it_grows() -> None:
    """What depends on the log can be kept as long as the log is that object."""
    with open_attester("simulator") as tee:
        _, one = tee.quote_and_log(bytes(64))
        _, two = tee.quote_and_log(bytes(64))
        assert one is two is tee.event_log()
        tee.emit_event("more", b"")
        quote, three = tee.quote_and_log(bytes(64))
        assert three is not one
        assert three.events == (*one.events, three.events[-1])
        three.check(quote)


# -- what platforms get wrong ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda _: b"", "malformed quote"),
        (lambda _: bytes(1000), "malformed quote"),
        (lambda _: "text", "malformed quote"),
        (lambda _: Simulator(seed=SEED).get_quote(bytes(64))[:-1], "malformed quote"),
        (lambda _: Simulator(seed=SEED).get_quote(b"\1" * 64), "other report data"),
    ],
)
def test_a_wrong_quote_is_the_platforms_fault(answer: Callable[[bytes], Any], reason: str) -> None:
    """It never leaves, and it is no FormatError: the caller's bytes were right."""
    backend = Wrapped()
    backend.quote = answer
    with Attester(backend) as tee:
        for call in (tee.get_quote, tee.attest):
            with pytest.raises(BackendError, match=reason) as caught:
                call(b"nonce")
            assert type(caught.value) is BackendError


def test_the_platforms_own_errors_come_through() -> None:
    """A backend says best what is wrong with it."""
    backend = Wrapped()

    def refuse(report_data: bytes) -> bytes:
        raise QuoteUnavailableError(f"no quote over {len(report_data)} bytes")

    backend.quote = refuse
    with Attester(backend) as tee, pytest.raises(QuoteUnavailableError, match="over 64 bytes"):
        tee.get_quote(b"")


@pytest.mark.parametrize("area", [b"\0", b"CCEL", bytes(range(256)), "text"])
def test_a_malformed_firmware_log_is_the_platforms_fault(area: Any) -> None:
    """The log is refused; a quote alone is still to be had."""
    backend = WithRegisters()
    backend.area = area
    with Attester(backend) as tee:
        for call in (tee.event_log, lambda: tee.attest(b"")):
            with pytest.raises(BackendError, match="log is malformed"):
                call()
        assert tee.get_quote(b"").rtmrs == tee.registers()


def test_a_log_that_does_not_explain_the_quote_does_not_leave() -> None:
    """The registers say that something is missing: the error names them."""
    without_registers = Wrapped()
    with Attester(without_registers) as tee, pytest.raises(ReplayError, match="RTMR3"):
        tee.attest(b"")
    backend = WithRegisters()
    backend.area = b""
    with Attester(backend) as tee, pytest.raises(ReplayError, match="RTMR0"):
        tee.quote_and_log(bytes(64))


def test_an_extend_behind_the_logs_back_is_found() -> None:
    """Quotes still come; evidence and events do not."""
    with open_attester("simulator") as tee:
        tee.attest(b"")
        assert isinstance(tee.backend, Simulator)
        tee.backend.extend_rtmr(3, b"\1" * 48)
        assert tee.get_quote(b"").rtmrs == tee.registers()
        with pytest.raises(ReplayError, match="RTMR3"):
            tee.attest(b"")
        with pytest.raises(JournalError):
            tee.emit_event("more", b"")
        tee.backend.reset()
        tee.attest(b"")


def test_a_firmware_log_that_grows_is_read_again() -> None:
    """Some kernels append to the firmware's log; evidence holds what is there at that moment."""
    backend = WithRegisters()
    with Attester(backend) as tee:
        before = tee.event_log()
        area = bytearray(backend.area)
        end = len(bytes(area).rstrip(b"\xff"))
        extra = b"\3\0\0\0\5\0\0\0\1\0\0\0\x0c\0" + b"\7" * 48 + b"\0\0\0\0"
        area[end : end + len(extra)] = extra
        backend.area = bytes(area)
        with pytest.raises(ReplayError, match="RTMR2"):
            tee.attest(b"")
        backend.inner.extend_rtmr(2, b"\7" * 48)
        tee.attest(b"")
        assert len(tee.event_log().events) == len(before.events) + 1


def test_abilities_that_are_missing_are_named() -> None:
    """A platform without registers or app says so, in one kind of error."""
    with Attester(Wrapped()) as tee:
        for call in (tee.registers, lambda: tee.emit_event("a", b"")):
            with pytest.raises(UnsupportedError, match="no run-time registers"):
                call()
        with pytest.raises(UnsupportedError, match="no app"):
            _ = tee.keys
        with pytest.raises(UnsupportedError, match="no app"):
            _ = tee.app_compose
        assert tee.vm_config == ""


# -- events ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", *sorted(RESERVED_NAMES), "a:b", ":", "\ud800"])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    """None, those of a boot, and in version 1 those with a colon; nothing is extended."""
    with open_attester("simulator") as tee:
        before = tee.registers()
        with pytest.raises(UsageError):
            tee.emit_event(name, b"payload")
        assert tee.registers() == before
        tee.attest(b"")


@pytest.mark.parametrize(
    ("name", "payload"), [(b"bytes", b""), (["a"], b""), ("a", "text"), ("a", bytearray())]
)
def test_other_types_are_refused(name: Any, payload: Any) -> None:
    """A name is text, a payload is bytes."""
    with open_attester("simulator") as tee, pytest.raises(UsageError):
        tee.emit_event(name, payload)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.text(min_size=1), st.binary(max_size=200)), max_size=6))
def test_whatever_is_emitted_is_in_the_evidence(events: list[tuple[str, bytes]]) -> None:
    """Any names and payloads: what was taken is there in order, what was refused is not."""
    with open_attester("simulator", seed=SEED) as tee:
        taken: list[object] = []
        for name, payload in events:
            try:
                taken.append(tee.emit_event(name, payload))
            except UsageError:
                assert ":" in name or name in RESERVED_NAMES
        evidence = Attestation.from_bytes(tee.attest(b"").to_bytes())
        found = evidence.runtime_events[len(evidence.runtime_events) - len(taken) :]
        assert list(found) == taken
        assert evidence.quote is not None
        evidence.event_log.check(evidence.quote)


@pytest.mark.parametrize("on_disk", [True, False])
def test_threads_that_emit_and_attest_never_disagree(tmp_path: Any, *, on_disk: bool) -> None:
    """Every log that leaves replays to its own quote's registers; every event is there once."""
    options = {"state_dir": tmp_path} if on_disk else {}
    failures: list[BaseException] = []
    rounds = 12

    def emit(tee: Attester, who: int) -> None:
        for number in range(rounds):
            tee.emit_event(f"event-{who}-{number}", bytes([who]))

    def attest(tee: Attester, who: int) -> None:
        nonce = bytes([who]) * 64
        for _ in range(rounds):
            quote, log = tee.quote_and_log(nonce)
            assert quote.report_data == nonce
            log.check(quote)

    def run(work: Callable[[Attester, int], None], tee: Attester, who: int) -> None:
        with Keeping(failures):
            work(tee, who)

    with open_attester("simulator", **options) as tee:
        threads = [
            threading.Thread(target=run, args=(emit if who % 2 else attest, tee, who))
            for who in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        names = [event.name for event in tee.event_log().runtime if "event-" in event.name]
        assert len(names) == len(set(names)) == 4 * rounds
        for who in (1, 3, 5, 7):
            own = [name for name in names if name.startswith(f"event-{who}-")]
            assert own == [f"event-{who}-{number}" for number in range(rounds)]


# -- opening and closing -----------------------------------------------------------------------


def test_a_backend_can_be_an_object() -> None:
    """Somebody's own backend needs no registration; it takes no options then."""
    backend = Simulator(seed=SEED)
    with open_attester(backend) as tee:
        assert tee.backend is backend
    unchecked: Any = open_attester
    with pytest.raises(UsageError, match="takes no options"):
        unchecked(backend, seed=SEED)
    for wrong in (7, Simulator, object()):
        with pytest.raises(UsageError, match="no backend"):
            open_attester(untyped(wrong))


class Elsewhere(Wrapped):
    """A backend that is not where its class looks, and is where it is told to be."""

    name = "elsewhere"

    def __init__(self, *, root: str = "/") -> None:
        super().__init__()
        if root != "/there":
            raise BackendUnavailableError(f"nothing below {root}")

    @classmethod
    def probe(cls) -> None:
        """Look at the usual place."""
        raise BackendUnavailableError("nothing at the usual place")


def test_options_say_where_a_backend_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that looks elsewhere has no say then; the constructor complains."""
    monkeypatch.setattr(backends, "load", lambda _: Elsewhere)
    with open_attester("elsewhere", root="/there") as tee:
        assert tee.backend.name == "elsewhere"
    with pytest.raises(BackendUnavailableError, match="below /nowhere"):
        open_attester("elsewhere", root="/nowhere")
    with pytest.raises(BackendUnavailableError, match="usual place"):
        open_attester("elsewhere")
    with pytest.raises(UsageError, match=r"elsewhere: .*depth"):
        open_attester("elsewhere", depth=1)


def test_a_call_on_its_way_is_done_before_closing() -> None:
    """Whoever came before is served, whoever comes behind is told."""
    backend = WithRegisters()
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
            outcome.append(str(error))

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
    assert (type(outcome[0]), outcome[1]) == (Quote, "this Attester is closed")


def test_closing() -> None:
    """Once is enough, twice does no harm, and nothing can be asked afterwards."""
    backend = WithRegisters()
    tee = Attester(backend)
    tee.attest(b"")
    tee.close()
    tee.close()
    assert backend.closed == 1
    calls: list[Callable[[], object]] = [
        lambda: tee.get_quote(b""),
        lambda: tee.attest(b""),
        lambda: tee.quote_and_log(bytes(64)),
        lambda: tee.emit_event("a", b""),
        lambda: tee.keys,
        tee.__enter__,
        tee.event_log,
        tee.registers,
        tee.info,
    ]
    for call in calls:
        with pytest.raises(UsageError, match="closed"):
            call()


def test_keys_end_with_the_attester() -> None:
    """Keys that the simulator made are wiped when it is closed."""
    with open_attester("simulator") as tee:
        keys = tee.keys
        keys.derive("a")
    with pytest.raises(AttestKitError):
        keys.derive("a")


@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_neither_pickles_nor_copies(how: Callable[[object], object]) -> None:
    """There is one owner of a device."""
    with open_attester("simulator") as tee, pytest.raises(UsageError, match="does not pickle"):
        how(tee)


def test_evidence_pickles() -> None:
    """Quotes, logs, evidence and info come out of a pickle equal."""
    with open_attester("simulator") as tee:
        for value in (tee.get_quote(b""), tee.event_log(), tee.attest(b""), tee.info()):
            assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the child does next to nothing
def test_it_does_not_survive_a_fork(tmp_path: Any) -> None:
    """The child is told so, and cannot take the parent's state away by closing."""
    with open_attester("simulator", state_dir=tmp_path) as tee:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                tee.get_quote(b"")
                said = "a quote"
            except UsageError as error:
                said = str(error)
            tee.close()
            os.write(write, said.encode())
            os._exit(0)
        os.close(write)
        os.waitpid(child, 0)
        with os.fdopen(read) as pipe:
            assert "does not survive a fork" in pipe.read()
        tee.emit_event("still", b"here")
        tee.attest(b"")


def test_quotes_are_values_of_their_own() -> None:
    """What came out does not change when the TEE does."""
    with open_attester("simulator") as tee:
        quote, log = tee.quote_and_log(bytes(64))
        raw, events = quote.raw, log.events
        tee.emit_event("later", b"")
    assert (quote.raw, log.events) == (raw, events)
    assert Quote.parse(raw) == quote
