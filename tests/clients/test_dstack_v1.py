"""A client of dstack 0.6 works with every method, over the socket and HTTP."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit import Attestation
from attestkit.keys import verify_signature
from tests.clients.dstack_v1 import ENDPOINT, NO_ALGORITHM, DstackClient, StatusError
from tests.serve.client import get
from tests.serve.server import PATIENCE, Server, running_server

pytestmark = pytest.mark.slow

_DSTACK = "1.3.6.1.4.1.62397.1."


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server that also listens on a URL."""
    with running_server("--dev-http", "127.0.0.1:0") as server:
        yield server
        server.check_log()


@pytest.fixture(params=["dstack", "dev_http"])
def client(server: Server, request: pytest.FixtureRequest) -> DstackClient:
    """Return a client of the socket and of the URL."""
    return DstackClient(server.ready[request.param], timeout=PATIENCE)


def test_get_key(client: DstackClient) -> None:
    """The key has its public key, and a chain of two links."""
    found = client.get_key("wallet", "secp256k1")
    assert (len(found.key), len(found.public_key)) == (32, 33)
    assert [len(link) for link in found.signature_chain] == [65, 0]
    other = client.get_key("wallet", "ed25519")
    assert (len(other.key), len(other.public_key)) == (32, 32)
    assert other.key != found.key
    assert client.get_key("wallet", "secp256k1") == found


def test_get_key_errors(client: DstackClient) -> None:
    """An empty algorithm is refused locally, other names by the server."""
    with pytest.raises(ValueError, match="algorithm is required") as caught:
        client.get_key("wallet", "")
    assert str(caught.value) == NO_ALGORITHM
    for name in ("k256", "secp256k1_prehashed", "Ed25519"):
        with pytest.raises(StatusError) as failed:
            client.get_key("wallet", name)
        text = f"unsupported algorithm `{name}`, use `secp256k1` or `ed25519`"
        assert str(failed.value) == f"HTTP 400: {text}"


def test_issue_cert(client: DstackClient) -> None:
    """A certificate with the defaults, and one with everything."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key, chain = client.issue_cert("a.example")
    assert key.startswith("-----BEGIN PRIVATE KEY-----\n")
    leaf, issuer = (x509.load_pem_x509_certificate(one.encode()) for one in chain)
    leaf.verify_directly_issued_by(issuer)
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH]
    other = client.issue_cert(
        "a.example",
        alt_names=["a.example", "10.0.0.1"],
        usage_ra_tls=True,
        usage_client_auth=True,
        not_before=1_700_000_000,
        not_after=4_102_444_800,
        with_app_info=True,
    )
    assert other.key != key
    leaf = x509.load_pem_x509_certificate(other.certificate_chain[0].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["a.example", "10.0.0.1"]
    assert leaf.not_valid_after_utc.timestamp() == 4_102_444_800
    private = {one.oid.dotted_string.removeprefix(_DSTACK) for one in leaf.extensions}
    assert {"8", "9"} <= private  # evidence and app information
    with pytest.raises(StatusError, match="HTTP 400: not_before must be earlier than not_after"):
        client.issue_cert(not_before=2, not_after=1)


def test_attest(client: DstackClient) -> None:
    """Evidence over the padded report data."""
    for report_data in (b"n", bytes(range(64))):
        found = client.attest(report_data, include_boottime_gpu_evidence=True)
        evidence = Attestation.from_bytes(found.attestation)
        assert evidence.encoding == "v1"
        assert evidence.report_data == report_data.ljust(64, b"\0")
        assert found.boottime_gpu_evidence == []
    for wrong in (b"", bytes(65)):
        with pytest.raises(ValueError, match="1 to 64"):
            client.attest(wrong)


def test_key_is_attested_by_the_app_itself(client: DstackClient) -> None:
    """The documented recipe: the public key in the report data of Attest."""
    key = client.get_key("wallet", "ed25519")
    evidence = Attestation.from_bytes(client.attest(key.public_key).attestation)
    assert evidence.report_data[:32] == key.public_key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    signature = Ed25519PrivateKey.from_private_bytes(key.key).sign(b"data")
    verify_signature(key.public_key, signature, b"data", algorithm="ed25519")


def test_attest_gpu_is_not_available(client: DstackClient) -> None:
    """A status of 501 is shown with its text."""
    with pytest.raises(StatusError) as caught:
        client.attest_gpu(bytes(32))
    assert caught.value.status == 501
    text = "GPU attestation failed: GPU attestation is not available in this image"
    assert str(caught.value) == f"HTTP 501: {text}"


def test_info_and_version(client: DstackClient, server: Server) -> None:
    """Identity and version; every required field is there."""
    info = client.info()
    assert all(info[name] for name in ("app_id", "compose_hash", "instance_id", "device_id"))
    assert info["app_compose"].startswith("{")
    assert client.version() == ("0.6.0", "unknown")
    assert get(server.url, "/prpc/v1/Info").json() == info


def test_probe_tells_generations(client: DstackClient, tmp_path: Path) -> None:
    """The probe distinguishes this server from an agent with v0 only, and from another server."""
    assert client.is_v1()
    answers = {
        b'{\n  "error": "Service not found: Version"\n}': None,
        b"<!DOCTYPE html><title>404 Not Found</title>": False,
        b'{\n  "error": "No such path: /v1/Version"\n}': False,
    }
    for number, (body, expected) in enumerate(answers.items()):
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path := str(tmp_path / str(number)))
            listening.listen()
            thread = threading.Thread(target=_answer, args=(listening, body))
            thread.start()
            assert DstackClient(path, timeout=PATIENCE).is_v1() is expected
            thread.join()


def _answer(listening: socket.socket, body: bytes) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(65536)
        head = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)


def test_endpoint_order(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument precedes the variable; a missing socket fails at construction."""
    monkeypatch.setenv(ENDPOINT, server.dstack)
    assert DstackClient().version() == ("0.6.0", "unknown")
    with pytest.raises(FileNotFoundError):
        DstackClient(str(tmp_path / "missing.sock"))


def test_error_on_missing_mount_is_shown(client: DstackClient) -> None:
    """A 404 of a path without a mount is shown with its text."""
    status, body = client._request("GET", "/v2/Version", None)
    assert (status, b"No such path: /v2/Version" in body) == (404, True)
