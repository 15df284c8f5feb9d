"""The simulated metadata service of Azure, requested by curl."""

import json
import re
import shutil
import socket
import struct
import subprocess
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import ExitStack, closing

import pytest

from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.clouds.azure import AzureSnpSimulator, AzureTdxSimulator
from attestkit.backends.simulator.clouds.imds import (
    CERTIFICATION_PATH,
    LOCATION_PATH,
    TD_QUOTE_PATH,
    ImdsServer,
    SimulatedImds,
)
from attestkit.backends.simulator.service_response import ServiceResponse
from tests.runner.cases import every_case

REPORT = bytes(range(256)) * 4
METADATA = {"metadata": "true"}
JSON = {**METADATA, "content-type": "application/json"}


def tdx() -> SimulatedImds:
    """Return the service of a TDX VM, whose quotes are the reversed report."""
    return SimulatedImds(quote=lambda report: report[::-1])


def snp() -> SimulatedImds:
    """Return the service of an SEV-SNP VM."""
    return SimulatedImds(certification=lambda: ("vcek", "0" * 16, "chain"))


def quote_request(report: bytes = REPORT) -> bytes:
    """Return the body of a request for a quote."""
    return json.dumps({"report": urlsafe_b64encode(report).rstrip(b"=").decode()}).encode()


def test_quote_of_td_report_is_returned() -> None:
    """POST /acc/tdquote returns a quote in base64url without padding."""
    response = tdx().handle("POST", TD_QUOTE_PATH, JSON, quote_request())
    text = json.loads(response.body)["quote"]
    assert response.status == 200
    assert urlsafe_b64decode(text + "=" * (-len(text) % 4)) == REPORT[::-1]


@every_case(
    ("method", "headers", "body", "status"),
    [
        ("POST", {"content-type": "application/json"}, quote_request(), 400),
        ("GET", JSON, b"", 405),
        ("POST", {**METADATA, "content-type": "application/json; charset=utf-8"}, b"", 415),
        ("POST", METADATA, quote_request(), 415),
        ("POST", JSON, b"", 400),
        ("POST", JSON, b"[]", 400),
        ("POST", JSON, b'{"report": 1}', 400),
        ("POST", JSON, quote_request(REPORT[1:]), 400),
        ("POST", JSON, b'{"report": "+/+/"}', 400),
        ("POST", JSON, b'{"report": "A"}', 400),
    ],
)
def test_unacceptable_request_for_quote_is_refused(
    method: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    """Requests that the real service is known to refuse are refused."""
    assert tdx().handle(method, TD_QUOTE_PATH, headers, body).status == status


def test_td_report_of_another_machine_is_refused() -> None:
    """A report without a MAC of this machine is status 400."""
    simulator = Simulator(platform="azure-tdx")
    assert isinstance(simulator, AzureTdxSimulator)
    with closing(simulator):
        response = simulator.metadata_service(
            "POST", TD_QUOTE_PATH, JSON, quote_request(bytes(1024))
        )
    assert response.status == 400


def test_certificates_of_snp_vm_are_returned() -> None:
    """GET /metadata/THIM/amd/certification returns VCEK, TCB and chain."""
    response = snp().handle("GET", CERTIFICATION_PATH, METADATA)
    fields = json.loads(response.body)
    assert (fields["vcekCert"], fields["tcbm"], fields["certificateChain"]) == (
        "vcek",
        "0" * 16,
        "chain",
    )


def test_tcb_of_snp_vm_begins_with_the_microcode() -> None:
    """The number has the boot loader in its lowest byte, as in recorded answers."""
    simulator = Simulator(platform="azure-snp")
    assert isinstance(simulator, AzureSnpSimulator)
    response = simulator._make_imds().handle("GET", CERTIFICATION_PATH, METADATA)
    found = json.loads(response.body)["tcbm"]
    assert re.fullmatch("[0-9A-F]{16}", found)
    assert int(found, 16) == int.from_bytes(simulator._chip.tcb, "little")


@every_case(
    ("service", "path", "status"),
    [
        (tdx(), CERTIFICATION_PATH, 404),
        (snp(), LOCATION_PATH, 400),
        (snp(), f"{LOCATION_PATH}?api-version=2021-01-01&format=text", 200),
        (snp(), "/metadata/other", 404),
    ],
)
def test_other_paths_have_their_status(service: SimulatedImds, path: str, status: int) -> None:
    """A path that the VM does not have is 404, and a missing api-version 400."""
    assert service.handle("GET", path, METADATA).status == status


def test_quote_route_of_snp_vm_is_missing() -> None:
    """An SEV-SNP VM has no quotes."""
    assert snp().handle("POST", TD_QUOTE_PATH, JSON, quote_request()).status == 404


def request(server: ImdsServer) -> bytes:
    """Return the response to a request for the region, with its headers."""
    head = f"GET {LOCATION_PATH}?api-version=2021-01-01 HTTP/1.1\r\nMetadata: true\r\n"
    with socket.create_connection(server.address, 60) as client:
        client.sendall(f"{head}Connection: close\r\n\r\n".encode())
        return client.makefile("rb").read()


@pytest.mark.parametrize("headers", ["", "Content-Length: 5\r\nExpect: 100-continue\r\n"])
def test_client_that_resets_the_connection_is_no_error(
    headers: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is printed if a client resets the connection in a response, or in a request."""

    def respond(*_: object) -> ServiceResponse:
        return ServiceResponse(200, (), bytes(1 << 25))  # more than the buffers of sockets

    known = set(threading.enumerate())
    with closing(ImdsServer(respond)) as server, socket.create_connection(server.address) as client:
        client.sendall(f"POST / HTTP/1.1\r\n{headers}\r\n".encode())
        assert client.recv(1)  # of the response, or of status 100, which asks for the body
        # SO_LINGER with 0 s: close sends RST.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        for thread in set(threading.enumerate()) - known - {server._thread}:
            thread.join(60)  # of the request
            assert not thread.is_alive()
    assert capfd.readouterr().err == ""


def test_imds_server_answers_beside_connections_that_send_nothing() -> None:
    """Idle clients occupy a thread each, and one more waits; few threads remain afterwards."""
    known = set(threading.enumerate())
    with ExitStack() as stack:
        server = stack.enter_context(closing(ImdsServer(snp().handle)))
        for _ in range(5):
            stack.enter_context(socket.create_connection(server.address))
        assert request(server).endswith(b"westeurope")
        assert len(set(threading.enumerate()) - known) >= 6
        stack.pop_all().close()
    for thread in set(threading.enumerate()) - known:
        thread.join(60)
        assert not thread.is_alive()
    server.close()


def test_imds_server_survives_a_response_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    """An exception of a handler is printed, and ends its connection only."""
    failing = iter([True, False])

    def respond(*_: object) -> ServiceResponse:
        if next(failing):
            raise RuntimeError("of this test")
        return ServiceResponse(200, (), b"second")

    with closing(ImdsServer(respond)) as server:
        assert request(server) == b""
        assert request(server).endswith(b"second")
    assert "RuntimeError: of this test" in capfd.readouterr().err


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_gets_location_and_loses_without_header() -> None:
    """The service over HTTP answers an ordinary client, and is closed afterwards."""
    target = f"{LOCATION_PATH}?api-version=2021-01-01&format=text"
    with closing(ImdsServer(snp().handle)) as server:
        command = ["curl", "-sS", "--noproxy", "*", "-w", "%{http_code}", server.url + target]
        with_header = subprocess.run(
            [*command, "-H", "Metadata: true"], capture_output=True, check=True, timeout=30
        )
        without = subprocess.run(command, capture_output=True, check=True, timeout=30)
        url = server.url
    assert with_header.stdout == b"westeurope200"
    assert without.stdout.endswith(b"400")
    closed = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", url], capture_output=True, check=False, timeout=30
    )
    assert closed.returncode != 0
