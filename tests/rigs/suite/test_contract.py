"""What every backend must keep to, on each kind of guest."""

from collections.abc import Callable

import pytest

from attestkit import Attestation
from attestkit.backends.base import Backend, RegisterExtender
from attestkit.errors import UnsupportedError
from attestkit.event_log.runtime_events import runtime_event
from attestkit.testing import BackendContract
from tests.rigs.emulator import requires_fuse
from tests.rigs.suite.guests import Guest

pytestmark = [pytest.mark.rig, requires_fuse]

ASKED = bytes(range(64))


class TestContract(BackendContract):
    """The contract."""

    @pytest.fixture(autouse=True)
    def _on(self, guest: Guest) -> None:
        self._guest = guest

    def make_backend(self) -> Backend:
        """Return one as a program opens it."""
        return self._guest.backend()

    def probe_backend(self, backend: Backend) -> None:
        """Ask with the options that the backend has."""
        del backend
        self._guest.probe()

    def test_an_attester_makes_evidence_with_it(self) -> None:
        """The whole way, and an event where the kernel extends registers."""
        if self._guest.kind.extends:
            super().test_an_attester_makes_evidence_with_it()
            return
        with self._guest.attester() as tee:
            with pytest.raises(UnsupportedError):
                tee.emit_event("contract", b"payload")
            assert tee.event_log().runtime == ()
            assert Attestation.from_bytes(tee.attest(ASKED).to_bytes()).report_data == ASKED

    def test_an_extend_is_what_the_hardware_does(self) -> None:
        """Or, where the kernel extends none, refused as unsupported, with all as it was."""
        self._check_extend(
            lambda backend: backend.extend_rtmr(3, bytes(48)),
            super().test_an_extend_is_what_the_hardware_does,
        )

    def test_an_event_is_in_register_and_journal(self) -> None:
        """Or, where the kernel extends none, in neither."""

        def emit(backend: RegisterExtender) -> None:
            journal = backend.open_journal()
            with pytest.raises(UnsupportedError):
                journal.emit(runtime_event("contract", b"payload", journal.version))
            assert journal.events() == ()
            journal.emit(runtime_event("contract", b"payload", journal.version))

        self._check_extend(emit, super().test_an_event_is_in_register_and_journal)

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
