"""The contract: what every backend must keep to.

A package with a backend of its own subclasses `BackendContract` in its tests, named so that its
test runner collects it, and says how a backend is made:

    class TestMyBackend(BackendContract):
        def make_backend(self):
            return MyBackend(device=FakeDevice())

Whatever the backend can do is tested: a quote for every backend, registers and the log of runtime
events for a `RegisterExtender`, reports for an `SnpReporter`, the agent's answers for a
`GuestAgent`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from attestkit.attestation import Attestation
from attestkit.attestation.snp_certificates import SnpCertificates
from attestkit.attester import Attester
from attestkit.backends.base import Backend, GuestAgent, RegisterExtender, SnpReporter
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import AttestKitError, UnsupportedError, UsageError
from attestkit.event_log import EventLog
from attestkit.event_log.journal import replay_from
from attestkit.event_log.runtime_events import runtime_event
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport

__all__ = ["BackendContract"]

_ASKED: Final = bytes(range(64))


class BackendContract:
    """The tests that every backend must pass, with plain asserts for any runner.

    They extend RTMR3, and they emit events: give them a TEE that is theirs. Each begins with what
    `make_backend` returns, and a TEE that goes on between two of them has to be booted again there.
    """

    def make_backend(self) -> Backend:
        """Return a backend that works, a new one each time, with nothing emitted since the boot."""
        raise NotImplementedError("say how your backend is made")

    def probe_backend(self, backend: Backend) -> None:
        """Ask whether such a backend can run; override it if its class has to be told where."""
        type(backend).probe()

    @contextmanager
    def opened(self) -> Iterator[Backend]:
        """Make a backend, and close it whatever happens."""
        backend = self.make_backend()
        try:
            yield backend
        finally:
            backend.close()

    # -- every backend -------------------------------------------------------------------------

    def test_it_has_the_shape_of_a_backend(self) -> None:
        """All that an Attester uses is there, and the name is one that `load` could take."""
        with self.opened() as backend:
            assert isinstance(backend, Backend)
            assert backend.name.isidentifier()
            assert isinstance(backend.simulated, bool)
            assert isinstance(backend.blocking, bool)
            what = (
                isinstance(backend, RegisterExtender),
                isinstance(backend, SnpReporter),
                isinstance(backend, GuestAgent),
            )
            assert sum(what) < 2, "one backend is several things"

    def test_it_says_that_it_can_run(self) -> None:
        """Where a backend works, its probe does not complain."""
        with self.opened() as backend:
            self.probe_backend(backend)

    def test_a_quote_is_over_what_was_asked(self) -> None:
        """Bytes out, well formed, with the 64 bytes that went in; from SEV-SNP a report."""
        with self.opened() as backend:
            for asked in (bytes(64), _ASKED):
                raw = backend.get_quote(asked)
                assert type(raw) is bytes
                if isinstance(backend, SnpReporter):
                    assert SnpReport.parse(raw).report_data == asked
                else:
                    assert Quote.parse(raw).report_data == asked

    def test_other_sizes_of_report_data_are_refused(self) -> None:
        """A backend neither pads nor cuts: that is done once, above it."""
        with self.opened() as backend:
            doors: list[Callable[[bytes], object]] = [backend.get_quote]
            if isinstance(backend, SnpReporter):
                doors.append(backend.get_snp_report)
            if isinstance(backend, GuestAgent):
                doors.append(backend.get_quote_response)
            for door in doors:
                for size in (0, 1, 63, 65):
                    try:
                        door(bytes(size))
                    except UsageError:
                        continue
                    raise AssertionError(f"evidence over {size} bytes")

    def test_the_log_replays_to_the_quote(self) -> None:
        """What firmware wrote, and the runtime events behind it, explain the registers.

        So a TD without a log passes with registers of zeros only: it could make no evidence.
        """
        with self.opened() as backend:
            area = backend.read_event_log()
            assert type(area) is bytes
            log = EventLog.parse(area) if area else EventLog()
            if isinstance(backend, SnpReporter):
                assert log == EventLog(), "no register of SEV-SNP vouches for a log"
                return
            if isinstance(backend, RegisterExtender):
                log = log.with_runtime(backend.open_journal().events())
            log.check(Quote.parse(backend.get_quote(_ASKED)))

    def test_an_attester_makes_evidence_with_it(self) -> None:
        """The whole way, and an event where there are registers."""
        with Attester(self.make_backend()) as tee:
            try:
                event = tee.emit_event("contract", b"payload")
            except UnsupportedError:
                assert not isinstance(tee.backend, RegisterExtender)
            else:
                assert tee.event_log().events[-1] == event
            evidence = Attestation.from_bytes(tee.attest(_ASKED).to_bytes())
        assert evidence.report_data == _ASKED
        if evidence.quote is not None:
            evidence.event_log.check(evidence.quote)
        if isinstance(tee.backend, SnpReporter):
            assert evidence.snp_report is not None

    def test_closing_twice_is_closing(self) -> None:
        """`close` can be called again."""
        backend = self.make_backend()
        backend.close()
        backend.close()

    # -- a RegisterExtender --------------------------------------------------------------------

    def test_registers_are_those_of_the_quote(self) -> None:
        """Whoever can read registers reads what the quote has."""
        with self.opened() as backend:
            if isinstance(backend, RegisterExtender):
                registers = tuple(map(backend.read_rtmr, range(4)))
                assert Quote.parse(backend.get_quote(_ASKED)).rtmrs == registers

    def test_an_extend_is_what_the_hardware_does(self) -> None:
        """RTMR3 becomes the SHA-384 of itself and the digest; the others stay."""
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
                raise AssertionError(f"RTMR{register} extended by {len(digest)} bytes")
            assert tuple(map(backend.read_rtmr, range(4))) == after

    def test_an_event_is_in_register_and_journal(self) -> None:
        """There is one journal, whatever version is asked for later; it is entered again within."""
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

    def test_a_report_comes_with_certificates(self) -> None:
        """Both of one request, well formed; a host without certificates has an empty table."""
        with self.opened() as backend:
            if isinstance(backend, SnpReporter):
                evidence = backend.get_snp_report(_ASKED)
                assert SnpReport.parse(evidence.report).report_data == _ASKED
                assert type(evidence.certificates) is bytes
                SnpCertificates.parse(evidence.certificates)

    # -- a GuestAgent --------------------------------------------------------------------------

    def test_an_answer_is_evidence(self) -> None:
        """What the agent answers agrees with itself, and is over what was asked."""
        with self.opened() as backend:
            if isinstance(backend, GuestAgent):
                answer = backend.get_quote_response(_ASKED)
                assert type(answer) is str
                evidence = Attestation.from_agent_response(answer)
                assert evidence.report_data == _ASKED
                if evidence.quote is not None:
                    evidence.event_log.check(evidence.quote)

    def test_an_agent_emits(self) -> None:
        """An event is in later logs once; agents without the call say that they have none."""
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

    def test_an_agent_knows_its_app(self) -> None:
        """Its keys are the same whenever they are asked for; it may hide the description."""
        with self.opened() as backend:
            if not isinstance(backend, GuestAgent):
                return
            one, two = (backend.keys.derive("contract", "test") for _ in range(2))
            assert len(one.key) == 32
            assert (one.key, one.public_key) == (two.key, two.public_key)
            try:
                AppCompose.parse(backend.read_app_compose())
            except UnsupportedError:
                return
