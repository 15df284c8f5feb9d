"""BackendContract on each type of guest."""

from collections.abc import Callable

import pytest

from attestkit import Attestation
from attestkit.backends.base import Backend, RegisterExtender
from attestkit.errors import UnsupportedError
from attestkit.event_log.runtime_events import runtime_event
from attestkit.testing import BackendContract
from tests.rigs.emulator import requires_fuse
from tests.rigs.suite.guests import Guest

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_fuse]

REPORT_DATA = bytes(range(64))


class TestContract(BackendContract):
    """Backend contract."""

    @pytest.fixture(autouse=True)
    def _on(self, guest: Guest) -> None:
        self._guest = guest

    def make_backend(self) -> Backend:
        """Return a backend as a program opens it."""
        return self._guest.backend()

    def probe_backend(self, backend: Backend) -> None:
        """Probe with the backend's options."""
        del backend
        self._guest.probe()

    def test_attester_produces_evidence(self) -> None:
        """Evidence is complete, with an event if the kernel extends registers."""
        if self._guest.kind.extends:
            super().test_attester_produces_evidence()
            return
        with self._guest.attester() as tee:
            with pytest.raises(UnsupportedError):
                tee.emit_event("contract", b"payload")
            assert tee.event_log().runtime == ()
            assert (
                Attestation.from_bytes(tee.attest(report_data=REPORT_DATA).to_bytes()).report_data
                == REPORT_DATA
            )

    def test_extend_rtmr_matches_hardware(self) -> None:
        """A kernel that cannot extend raises UnsupportedError, without side effects."""
        self._check_extend(
            lambda backend: backend.extend_rtmr(3, bytes(48)),
            super().test_extend_rtmr_matches_hardware,
        )

    def test_event_is_in_register_and_journal(self) -> None:
        """On a kernel that cannot extend, the event is in neither."""

        def emit(backend: RegisterExtender) -> None:
            journal = backend.open_journal()
            with pytest.raises(UnsupportedError):
                journal.emit(runtime_event("contract", b"payload", journal.version))
            assert journal.events() == ()
            journal.emit(runtime_event("contract", b"payload", journal.version))

        self._check_extend(emit, super().test_event_is_in_register_and_journal)

    def _check_extend(
        self, refused: Callable[[RegisterExtender], None], otherwise: Callable[[], None]
    ) -> None:
        with self.opened() as backend:
            if self._guest.kind.extends or not isinstance(backend, RegisterExtender):
                otherwise()
                return
            before = tuple(map(backend.read_rtmr, range(4)))
            with pytest.raises(UnsupportedError, match=r"6\.16"):
                refused(backend)
            assert tuple(map(backend.read_rtmr, range(4))) == before
