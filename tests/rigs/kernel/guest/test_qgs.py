"""Quotes from a quoting service over real AF_VSOCK sockets, looped back inside the guest.

A guest without any other vsock transport reaches itself under the host's CID too.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit.backends.tdx_ioctl import TdxIoctl
from attestkit.errors import BackendUnavailableError, QuoteUnavailableError
from attestkit.quote import Quote
from tests.dcap import judge
from tests.rigs.kernel.guest.machine import LOOPBACK_CID, MadeUpTd, service_on_vsock

ASKED = bytes(range(64))
OTHER_CID = 3
PORT = 4050
QGS = ("vsock", LOOPBACK_CID, PORT)
CONFIGURATION = Path("/etc/tdx-attest.conf")


@pytest.fixture
def configuration() -> Iterator[None]:
    """Let the guest be told where its host's service is."""
    CONFIGURATION.write_text(f"# where it is\nport = {PORT}\n")
    yield
    CONFIGURATION.unlink()


def _check_quote(backend: TdxIoctl, td: MadeUpTd) -> None:
    """The TD report goes from the driver to the service; a quote that verifies comes back."""
    quote = Quote.parse(backend.get_quote(ASKED))
    assert quote.report_data == ASKED
    assert quote.rtmrs == td.registers()
    now = 1_900_000_000
    verdict = judge(quote.raw, td.pki.collateral(now), td.pki.root_der, now)
    assert verdict.status == "UpToDate", verdict.text
    assert td.get("quote_calls") == 0


def test_a_quote_comes_over_vsock(lonely_td: MadeUpTd) -> None:
    """From an address that the program names; the driver's way to the host is not used."""
    with service_on_vsock(lonely_td.quoter, PORT):
        TdxIoctl.probe(qgs=QGS)
        _check_quote(TdxIoctl(qgs=QGS), lonely_td)


@pytest.mark.usefixtures("configuration")
def test_a_quote_comes_from_where_the_guest_was_told(lonely_td: MadeUpTd) -> None:
    """From the port in /etc/tdx-attest.conf, at the host's CID."""
    with service_on_vsock(lonely_td.quoter, PORT):
        TdxIoctl.probe()
        _check_quote(TdxIoctl(), lonely_td)


@pytest.mark.usefixtures("lonely_td")
def test_nobody_listens() -> None:
    """A port without a service is named."""
    with pytest.raises(QuoteUnavailableError, match=f"vsock {LOOPBACK_CID}:{PORT}.*nothing listen"):
        TdxIoctl(qgs=QGS).get_quote(ASKED)


@pytest.mark.usefixtures("lonely_td")
def test_no_vsock_device() -> None:
    """A guest without one is told which its VM lacks; only its own CIDs can be reached."""
    with pytest.raises(BackendUnavailableError, match="no vsock to the host"):
        TdxIoctl(qgs=("vsock", OTHER_CID, PORT)).get_quote(ASKED)


@pytest.mark.usefixtures("lonely_td")
def test_no_configuration() -> None:
    """Without a way to a quote the probe says what to write where."""
    with pytest.raises(BackendUnavailableError, match=r"tdx-attest\.conf"):
        TdxIoctl.probe()
