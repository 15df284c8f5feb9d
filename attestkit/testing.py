"""For tests of code that uses attestkit: what every backend must keep to.

A package with a backend of its own subclasses `BackendContract` in its tests, named so that its
test runner collects it, and says how a backend is made:

    class TestMyBackend(BackendContract):
        def make_backend(self):
            return MyBackend(device=FakeDevice())
"""

from attestkit.attester import Attester
from attestkit.backends.base import Backend, RegisterExtender
from attestkit.errors import AttestKitError, UnsupportedError, UsageError
from attestkit.event_log import EventLog
from attestkit.event_log.journal import replay_from
from attestkit.event_log.runtime import runtime_event
from attestkit.quote import Quote

__all__ = ["BackendContract"]

_ASKED = bytes(range(64))


class BackendContract:
    """The tests that every backend must pass, with plain asserts for any runner."""

    def make_backend(self) -> Backend:
        """Return a backend that works, a new one each time."""
        raise NotImplementedError("say how your backend is made")

    def test_it_has_the_shape_of_a_backend(self) -> None:
        """All that an Attester uses is there, and the name is one that `load` could take."""
        backend = self.make_backend()
        assert isinstance(backend, Backend)
        assert backend.name.isidentifier()
        assert isinstance(backend.simulated, bool)
        assert isinstance(backend.blocking, bool)
        backend.close()

    def test_it_says_that_it_can_run(self) -> None:
        """Where a backend works, its probe does not complain."""
        backend = self.make_backend()
        type(backend).probe()
        backend.close()

    def test_a_quote_is_over_what_was_asked(self) -> None:
        """Bytes out, well formed, with the 64 bytes that went in."""
        backend = self.make_backend()
        for asked in (bytes(64), _ASKED):
            raw = backend.get_quote(asked)
            assert type(raw) is bytes
            assert Quote.parse(raw).report_data == asked
        backend.close()

    def test_other_sizes_of_report_data_are_refused(self) -> None:
        """A backend neither pads nor cuts: that is done once, above it."""
        backend = self.make_backend()
        for size in (0, 1, 63, 65):
            try:
                backend.get_quote(bytes(size))
            except UsageError:
                continue
            raise AssertionError(f"a quote over {size} bytes")
        backend.close()

    def test_the_log_replays_to_the_quote(self) -> None:
        """What firmware wrote, and the runtime events behind it, explain the registers."""
        backend = self.make_backend()
        area = backend.read_event_log()
        assert type(area) is bytes
        log = EventLog.from_ccel(area) if area else EventLog()
        if isinstance(backend, RegisterExtender):
            log = log.with_runtime(backend.open_journal().events())
        log.check(Quote.parse(backend.get_quote(_ASKED)))
        backend.close()

    def test_registers_are_those_of_the_quote(self) -> None:
        """Whoever can read registers reads what the quote has."""
        backend = self.make_backend()
        if isinstance(backend, RegisterExtender):
            registers = tuple(map(backend.read_rtmr, range(4)))
            assert Quote.parse(backend.get_quote(_ASKED)).rtmrs == registers
        backend.close()

    def test_an_extend_is_what_the_hardware_does(self) -> None:
        """RTMR3 becomes the SHA-384 of itself and the digest; the others stay."""
        backend = self.make_backend()
        if isinstance(backend, RegisterExtender):
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
        backend.close()

    def test_an_attester_makes_evidence_with_it(self) -> None:
        """The whole way, and an event where there are registers."""
        with Attester(self.make_backend()) as tee:
            try:
                tee.emit_event("contract", b"payload")
            except UnsupportedError:
                assert not isinstance(tee.backend, RegisterExtender)
            evidence = tee.attest(_ASKED)
        assert evidence.report_data == _ASKED
        assert evidence.quote is not None
        evidence.event_log.check(evidence.quote)

    def test_closing_twice_is_closing(self) -> None:
        """`close` can be called again."""
        backend = self.make_backend()
        backend.close()
        backend.close()
