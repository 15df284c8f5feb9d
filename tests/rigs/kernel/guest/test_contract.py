"""What every backend must keep to, on the real driver."""

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
    MadeUpSnp,
    MadeUpTd,
    service_on_vsock,
)

PORT = 4050
QGS = ("vsock", LOOPBACK_CID, PORT)

# What nobody can do on a kernel without register files.
EXTENDING = {
    "test_an_attester_makes_evidence_with_it",
    "test_an_event_is_in_register_and_journal",
    "test_an_extend_is_what_the_hardware_does",
}


@pytest.fixture
def extends(request: pytest.FixtureRequest) -> None:
    """Skip a test that extends a register where the kernel has no way to."""
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
    """The device alone, and a quoting service over vsock."""

    @pytest.fixture(autouse=True)
    def _machine(self, lonely_td: MadeUpTd) -> Iterator[None]:
        with service_on_vsock(lonely_td.quoter, PORT):
            yield

    def make_backend(self) -> Backend:
        """Return the backend with a quoting service on this machine in place of the host's."""
        return TdxIoctl(qgs=QGS)

    def probe_backend(self, backend: Backend) -> None:
        """Ask with the same service."""
        assert isinstance(backend, TdxIoctl)
        TdxIoctl.probe(qgs=QGS)


class TestConfigfsSnp(BackendContract):
    """configfs-tsm with a provider for SEV-SNP."""

    @pytest.fixture(autouse=True)
    def _machine(self, snp: MadeUpSnp) -> None:
        snp.boot()

    def make_backend(self) -> Backend:
        """Return the backend as a program gets it."""
        return ConfigfsTsm()
