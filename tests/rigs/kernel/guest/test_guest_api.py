"""GuestApi over real AF_VSOCK sockets, looped back in the guest."""

from pathlib import Path

import attestkit
from attestkit.serve.background_server import BackgroundServer
from attestkit.serve.endpoints import ListenAddresses, VsockAddress
from tests.serve.http.vsock_client import check_guest_api_over_vsock, has_loopback

PORT = 8000


def test_guest_api_over_vsock(tmp_path: Path) -> None:
    """A server answers the host's requests over vsock, and ends with open connections."""
    addresses = ListenAddresses(dstack=tmp_path / "dstack.sock", guest_api=VsockAddress(PORT))
    with attestkit.open("simulator") as tee, BackgroundServer(tee, addresses) as ready:
        assert ready.addresses["guest_api"] == f"vsock:{PORT}"
        assert has_loopback(PORT)
        check_guest_api_over_vsock(PORT)
