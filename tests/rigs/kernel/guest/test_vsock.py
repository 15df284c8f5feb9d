"""Quotes and GuestApi over real AF_VSOCK sockets, looped back in the guest.

Without another vsock transport, a guest reaches itself under the host's CID, too.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

import attestkit
from attestkit.backends.tdx_ioctl import TdxIoctl
from attestkit.errors import BackendUnavailableError, QuoteUnavailableError
from attestkit.quote import Quote
from attestkit.serve.background_server import BackgroundServer
from attestkit.serve.endpoints import ListenAddresses, VsockAddress
from tests.clients.python_dcap_qvl import verify_with_dcap_qvl
from tests.raising import raises
from tests.rigs.kernel.guest.machine import LOOPBACK_CID, SimulatedTd, service_on_vsock
from tests.serve.http.vsock_client import check_guest_api_over_vsock, has_loopback

REPORT_DATA = bytes(range(64))
OTHER_CID = 3
PORT = 4050
GUEST_API_PORT = 8000
QGS = ("vsock", LOOPBACK_CID, PORT)
CONFIGURATION = Path("/etc/tdx-attest.conf")


@pytest.fixture
def configuration() -> Iterator[None]:
    """Write the address of the host's service."""
    CONFIGURATION.write_text(f"# address\nport = {PORT}\n")
    yield
    CONFIGURATION.unlink()


def _check_quote(backend: TdxIoctl, td: SimulatedTd) -> None:
    """Check that the TD report of the driver becomes a quote that verifies."""
    quote = Quote.parse(backend.get_quote(REPORT_DATA))
    assert quote.report_data == REPORT_DATA
    assert quote.rtmrs == td.registers()
    now = 1_900_000_000
    verdict = verify_with_dcap_qvl(quote.raw, td.pki.collateral(now), td.pki.root_der, now)
    assert verdict.status == "UpToDate", verdict.text
    assert td.get("quote_calls") == 0


def test_get_quote_over_vsock_by_option(td_without_qgs: SimulatedTd) -> None:
    """The driver's own connection to the host is not used."""
    with service_on_vsock(td_without_qgs.quoter, PORT):
        TdxIoctl.probe(qgs=QGS)
        _check_quote(TdxIoctl(qgs=QGS), td_without_qgs)


@pytest.mark.usefixtures("configuration")
def test_get_quote_over_vsock_by_configuration(td_without_qgs: SimulatedTd) -> None:
    """The port of /etc/tdx-attest.conf is used at the host's CID."""
    with service_on_vsock(td_without_qgs.quoter, PORT):
        TdxIoctl.probe()
        _check_quote(TdxIoctl(), td_without_qgs)


@pytest.mark.usefixtures("td_without_qgs")
def test_get_quote_over_vsock_without_service() -> None:
    """The error has the port."""
    with raises(QuoteUnavailableError, "cannot_connect", path=f"vsock {LOOPBACK_CID}:{PORT}"):
        TdxIoctl(qgs=QGS).get_quote(REPORT_DATA)


@pytest.mark.usefixtures("td_without_qgs")
def test_get_quote_without_vsock_device() -> None:
    """The error names the missing device; only the guest's own CIDs can be reached."""
    with raises(BackendUnavailableError, "missing", path=f"vsock {OTHER_CID}:{PORT}"):
        TdxIoctl(qgs=("vsock", OTHER_CID, PORT)).get_quote(REPORT_DATA)


@pytest.mark.usefixtures("td_without_qgs")
def test_probe_without_quote_source() -> None:
    """The error has the configuration file."""
    with raises(BackendUnavailableError, "not_configured", path="/etc/tdx-attest.conf"):
        TdxIoctl.probe()


def test_guest_api_over_vsock(tmp_path: Path) -> None:
    """A server answers the host's requests over vsock, and ends with open connections."""
    addresses = ListenAddresses(
        dstack=tmp_path / "dstack.sock", guest_api=VsockAddress(GUEST_API_PORT)
    )
    with attestkit.open("simulator") as tee, BackgroundServer(tee, addresses) as ready:
        assert ready.addresses["guest_api"] == f"vsock:{GUEST_API_PORT}"
        assert has_loopback(GUEST_API_PORT)
        check_guest_api_over_vsock(GUEST_API_PORT)
