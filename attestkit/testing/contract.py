"""Contract tests for backends.

A package with its own backend subclasses `BackendContract` in its tests, under a name that its test
runner collects, and implements `make_backend`:

    class TestMyBackend(BackendContract):
        def make_backend(self):
            return MyBackend(device=FakeDevice())

The tests cover quotes of every backend, registers and runtime events of a `RegisterExtender`,
reports of an `SnpReporter`, evidence of an `EvidenceCollector`, and responses of a `GuestAgent`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from attestkit.attestation import Attestation
from attestkit.attestation.snp import SnpCertificates
from attestkit.attestation.wire.evidence_parts import PLATFORM_NAMES
from attestkit.attester import Attester
from attestkit.backends.base import (
    Backend,
    EvidenceCollector,
    GuestAgent,
    RegisterExtender,
    SnpReporter,
)
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import AttestKitError, UnsupportedError, UsageError
from attestkit.event_log import EventLog
from attestkit.event_log.journal import replay_from
from attestkit.event_log.runtime_events import runtime_event
from attestkit.quote import Quote
from attestkit.snp_report import SIZE as SNP_SIZE
from attestkit.snp_report import SnpReport

_REPORT_DATA: Final = bytes(range(64))


class BackendContract:
    """Tests that every backend must pass, with plain asserts for any test runner.

    They extend RTMR3 and emit events, so they need a dedicated TEE. Each test calls `make_backend`;
    if the TEE keeps its state between tests, `make_backend` must reboot it.
    """

    def make_backend(self) -> Backend:
        """Return a new working backend of a TEE without events since its boot."""
        raise NotImplementedError("implement make_backend")

    def probe_backend(self, backend: Backend) -> None:
        """Probe the class of the backend; override this if `probe` needs arguments."""
        type(backend).probe()

    @contextmanager
    def opened(self) -> Iterator[Backend]:
        """Context manager: create a backend, and close it on exit."""
        backend = self.make_backend()
        try:
            yield backend
        finally:
            backend.close()

    # -- every backend -------------------------------------------------------------------------

    def test_backend_implements_protocol(self) -> None:
        """A backend has the attributes of `Backend`, and a name that `load` accepts."""
        with self.opened() as backend:
            assert isinstance(backend, Backend)
            assert backend.name.isidentifier()
            assert isinstance(backend.simulated, bool)
            assert isinstance(backend.blocking, bool)
            abilities = (
                isinstance(backend, (RegisterExtender, EvidenceCollector)),  # a TD may be both
                isinstance(backend, SnpReporter),
                isinstance(backend, GuestAgent),
            )
            assert sum(abilities) < 2, "backend: must implement at most one of these protocols"

    def test_probe_accepts_working_backend(self) -> None:
        """`probe` raises no error where the backend works."""
        with self.opened() as backend:
            self.probe_backend(backend)

    def test_quote_contains_report_data(self) -> None:
        """`get_quote` returns a well-formed quote or SNP report over the requested report data.

        That of an `EvidenceCollector` may raise UnsupportedError instead.
        """
        with self.opened() as backend:
            collects = isinstance(backend, EvidenceCollector)
            for report_data in (bytes(64), _REPORT_DATA):
                try:
                    raw = backend.get_quote(report_data)
                except UnsupportedError:
                    assert collects, "get_quote: only that of an EvidenceCollector may be missing"
                    continue
                assert type(raw) is bytes
                is_snp = isinstance(backend, SnpReporter) or (collects and len(raw) == SNP_SIZE)
                parsed = SnpReport.parse(raw) if is_snp else Quote.parse(raw)
                assert parsed.report_data == report_data

    def test_report_data_of_wrong_size_is_rejected(self) -> None:
        """A backend accepts exactly 64 bytes; the Attester pads shorter report data."""
        with self.opened() as backend:
            methods: list[Callable[[bytes], object]] = [backend.get_quote]
            if isinstance(backend, SnpReporter):
                methods.append(backend.get_snp_report)
            if isinstance(backend, EvidenceCollector):
                methods = [backend.collect_evidence]
            if isinstance(backend, GuestAgent):
                methods.append(backend.get_quote_response)
            for method in methods:
                for size in (0, 1, 63, 65):
                    try:
                        method(bytes(size))
                    except UsageError:
                        continue
                    problem = "must be refused: only 64 bytes are valid"
                    raise AssertionError(f"report data of {size} bytes: {problem}")

    def test_event_log_replays_to_quote(self) -> None:
        """The firmware event log and the runtime events replay to the registers in the quote.

        A TD without a log passes only if its registers are zero.
        """
        with self.opened() as backend:
            data = backend.read_event_log()
            assert type(data) is bytes
            log = EventLog.parse(data) if data else EventLog()
            if isinstance(backend, SnpReporter):
                assert log == EventLog(), "event log: must be empty on SEV-SNP, without registers"
                return
            if isinstance(backend, EvidenceCollector):
                return  # the logs are parts of the evidence
            if isinstance(backend, RegisterExtender):
                log = log.with_runtime(backend.open_journal().events())
            log.check(Quote.parse(backend.get_quote(_REPORT_DATA)))

    def test_attester_produces_evidence(self) -> None:
        """An Attester emits an event, if there are registers, and produces consistent evidence."""
        with Attester(self.make_backend()) as tee:
            try:
                event = tee.emit_event("contract", b"payload")
            except UnsupportedError:
                assert not isinstance(tee.backend, RegisterExtender)
            else:
                assert tee.event_log().events[-1] == event
            made = tee.attest(report_data=_REPORT_DATA)
            assert made.report_data == _REPORT_DATA
            if isinstance(tee.backend, EvidenceCollector):
                return  # not every encoding has every platform
            evidence = Attestation.from_bytes(made.to_bytes())
        assert evidence.report_data == _REPORT_DATA
        if evidence.quote is not None:
            evidence.event_log.check(evidence.quote)
        if isinstance(tee.backend, SnpReporter):
            assert evidence.snp_report is not None

    def test_close_is_idempotent(self) -> None:
        """`close` can be called twice."""
        backend = self.make_backend()
        backend.close()
        backend.close()

    # -- a RegisterExtender --------------------------------------------------------------------

    def test_registers_match_quote(self) -> None:
        """`read_rtmr` returns the values of RTMR0 to RTMR3 in the quote."""
        with self.opened() as backend:
            if isinstance(backend, RegisterExtender):
                registers = tuple(map(backend.read_rtmr, range(4)))
                assert Quote.parse(backend.get_quote(_REPORT_DATA)).rtmrs == registers

    def test_extend_rtmr_matches_hardware(self) -> None:
        """An extend sets RTMR3 to SHA-384(RTMR3 || digest) and changes no other register."""
        with self.opened() as backend:
            if not isinstance(backend, RegisterExtender):
                return
            event = runtime_event("contract", b"payload")
            before = tuple(map(backend.read_rtmr, range(4)))
            backend.extend_rtmr(3, event.digest)
            after = tuple(map(backend.read_rtmr, range(4)))
            assert after == (*before[:3], replay_from(before[3], (event,)))
            for register, digest in ((3, b""), (3, bytes(47)), (4, bytes(48)), (-1, bytes(48))):
                try:
                    backend.extend_rtmr(register, digest)
                except AttestKitError:
                    continue
                problem = "must be refused: only RTMR2 and RTMR3 and 48 bytes are valid"
                raise AssertionError(f"extend_rtmr({register}, {len(digest)} bytes): {problem}")
            assert tuple(map(backend.read_rtmr, range(4))) == after

    def test_event_is_in_register_and_journal(self) -> None:
        """An event is in RTMR3 and in the journal, which is unique and has a re-entrant lock."""
        with self.opened() as backend:
            if not isinstance(backend, RegisterExtender):
                return
            journal = backend.open_journal(None)
            assert backend.open_journal() is backend.open_journal(2) is journal
            assert journal.version in (1, 2)
            before, register = journal.events(), backend.read_rtmr(3)
            assert journal.events() is before
            event = runtime_event("contract", b"payload", journal.version)
            with journal.locked(), journal.locked():
                journal.emit(event)
                assert journal.events() == (*before, event)
            assert backend.read_rtmr(3) == replay_from(register, (event,))

    # -- an SnpReporter ------------------------------------------------------------------------

    def test_snp_report_has_certificate_table(self) -> None:
        """A report has a well-formed certificate table, which is empty without certificates."""
        with self.opened() as backend:
            if isinstance(backend, SnpReporter):
                evidence = backend.get_snp_report(_REPORT_DATA)
                assert SnpReport.parse(evidence.report).report_data == _REPORT_DATA
                assert type(evidence.certificates) is bytes
                SnpCertificates.parse(evidence.certificates)

    # -- an EvidenceCollector ------------------------------------------------------------------

    def test_collected_evidence_has_known_platform(self) -> None:
        """The evidence is of a known platform; the key is DER, or raises UnsupportedError."""
        with self.opened() as backend:
            if isinstance(backend, EvidenceCollector):
                assert type(backend.collect_evidence(_REPORT_DATA)) in PLATFORM_NAMES
                with suppress(UnsupportedError):
                    assert backend.read_attestation_key()[:1] == b"\x30"

    # -- a GuestAgent --------------------------------------------------------------------------

    def test_agent_response_is_evidence(self) -> None:
        """The agent's response is consistent evidence over the requested report data."""
        with self.opened() as backend:
            if isinstance(backend, GuestAgent):
                response = backend.get_quote_response(_REPORT_DATA)
                assert type(response) is str
                evidence = Attestation.from_agent_response(response)
                assert evidence.report_data == _REPORT_DATA
                if evidence.quote is not None:
                    evidence.event_log.check(evidence.quote)

    def test_agent_emits_event(self) -> None:
        """The agent logs an event once, or raises UnsupportedError."""
        with self.opened() as backend:
            if not isinstance(backend, GuestAgent):
                return

            def events() -> list[tuple[str, bytes]]:
                log = EventLog.parse(backend.read_event_log())
                return [(event.name, event.payload) for event in log.runtime]

            before = events()
            try:
                backend.emit_event("contract", b"payload")
            except UnsupportedError:
                assert events() == before
            else:
                assert events() == [*before, ("contract", b"payload")]

    def test_agent_returns_app_keys(self) -> None:
        """The agent returns deterministic keys, and a valid app-compose unless it hides it."""
        with self.opened() as backend:
            if not isinstance(backend, GuestAgent):
                return
            one, two = (backend.keys.derive_compat("contract", "test") for _ in range(2))
            assert len(one.key) == 32
            assert (one.key, one.public_key) == (two.key, two.public_key)
            with suppress(UnsupportedError):  # of an agent without the v1 API
                newer = backend.keys.derive_v1("contract", "secp256k1")
                assert len(newer.key) == 32
                assert newer.key != one.key
            try:
                AppCompose.parse(backend.read_app_compose())
            except UnsupportedError:
                return
