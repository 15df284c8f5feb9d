"""BackendContract on the real driver."""

from collections.abc import Iterator

import pytest

from attestkit.backends.base import Backend
from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.backends.tdx_ioctl import TdxIoctl
from attestkit.testing import BackendContract
from tests.rigs.kernel.guest.machine import (
    HAS_REGISTERS,
    LOOPBACK_CID,
    NO_REGISTERS,
    SimulatedSnp,
    SimulatedTd,
    service_on_vsock,
)

PORT = 4050
QGS = ("vsock", LOOPBACK_CID, PORT)

# Unsupported on a kernel without register files.
EXTENDING = {
    "test_attester_produces_evidence",
    "test_event_is_in_register_and_journal",
    "test_extend_rtmr_matches_hardware",
}


@pytest.fixture
def extends(request: pytest.FixtureRequest) -> None:
    """Skip a test that extends a register on a kernel without register files."""
    if request.node.originalname in EXTENDING and not HAS_REGISTERS:
        pytest.skip(NO_REGISTERS)


@pytest.mark.usefixtures("extends", "td")
class TestConfigfsTdx(BackendContract):
    """configfs-tsm with the driver for TDX."""

    def make_backend(self) -> Backend:
        """Return the backend as a program gets it."""
        return ConfigfsTsm()


@pytest.mark.usefixtures("extends")
class TestTdxIoctl(BackendContract):
    """TDX device, with a quote generation service over vsock."""

    @pytest.fixture(autouse=True)
    def _machine(self, td_without_qgs: SimulatedTd) -> Iterator[None]:
        with service_on_vsock(td_without_qgs.quoter, PORT):
            yield

    def make_backend(self) -> Backend:
        """Return the backend with a quoting service on this machine in place of the host's."""
        return TdxIoctl(qgs=QGS)

    def probe_backend(self, backend: Backend) -> None:
        """Probe with the same service."""
        assert isinstance(backend, TdxIoctl)
        TdxIoctl.probe(qgs=QGS)


class TestConfigfsSnp(BackendContract):
    """configfs-tsm with a provider for SEV-SNP."""

    @pytest.fixture(autouse=True)
    def _machine(self, snp: SimulatedSnp) -> None:
        snp.boot()

    def make_backend(self) -> Backend:
        """Return the backend as a program gets it."""
        return ConfigfsTsm()
