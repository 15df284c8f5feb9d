"""A TLS server with the certificates of a KMS, whose answers a test chooses, and its guests."""

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from attestkit._crypto.ecdsa import P256Key
from attestkit.attestation import Attestation
from attestkit.kms import KmsClient, KmsRoot
from attestkit.kms.https_call import TimeLimits
from attestkit.kms.release.certificates import (
    ValidityPeriod,
    issue_root,
    issue_rpc,
    issue_temp_ca,
)
from attestkit.kms.release.roots import KmsRoots, release_app_keys
from attestkit.ra_tls.issuance import Issued, load_issued
from tests.verifier.platforms import intel

APP_ID: Final = bytes.fromhex("5bb4ff9a3837357f19dc176407a5709c62eb6c56")
INSTANCE_ID: Final = bytes.fromhex("1691ed1b47506cad7d08834668691d88246f5b1f")
IMAGE_HASH: Final = b"\xbb" * 32
VM_CONFIG: Final = json.dumps({"os_image_hash": IMAGE_HASH.hex()})
BOOT: Final = (
    ("system-preparing", b""),
    ("app-id", APP_ID),
    ("compose-hash", intel.COMPOSE_HASH),
    ("instance-id", INSTANCE_ID),
    ("boot-mr-done", b""),
)
WINDOW: Final = ValidityPeriod(157_766_400, 4_000_000_000)
LIMITS: Final = TimeLimits(connect=5.0, call=20.0)


def make_roots(ca: int | bytes, k256: int | bytes) -> KmsRoots:
    """Return the keys of a KMS with these scalars."""
    ca_scalar, k256_scalar = (
        value.to_bytes(32, "big") if isinstance(value, int) else value for value in (ca, k256)
    )
    return KmsRoots(
        ca_key=P256Key.from_scalar(ca_scalar),
        k256_secret=k256_scalar,
        temp_ca_key=P256Key.from_scalar(b"\x11" * 32),
        rpc_key=P256Key.from_scalar(b"\x12" * 32),
    )


def root_of(roots: KmsRoots) -> KmsRoot:
    """Return the pin of a KMS."""
    return KmsRoot(roots.ca_key.spki_der, roots.k256_key.public_key)


class Guest:
    """A simulated TD that has just measured its boot events."""

    def __init__(self, boot: Sequence[tuple[str, bytes]] = BOOT) -> None:
        self._boot = boot
        self.requests: list[bytes] = []

    def attest(self, *, report_data: bytes) -> Attestation:
        """Return evidence over 64 bytes."""
        self.requests.append(report_data)
        return intel.evidence(self._boot, report_data=report_data)


class Request(NamedTuple):
    """A request that the server received."""

    method: str
    body: Any  # JSON
    certificate: bytes | None  # of the client, DER


Reply = tuple[int, bytes]
Respond = Callable[[Request], Reply | Callable[[ssl.SSLSocket], None]]


class ReplayedKms:
    """A server that answers each request as a function says, one request a connection."""

    def __init__(self, roots: KmsRoots, respond: Respond, **certificate: Any) -> None:
        self.roots = roots
        self.requests: list[Request] = []
        self.refused: list[ssl.SSLError] = []
        root_pem = issue_root(roots, WINDOW)
        fields = {"domain": "127.0.0.1", "window": WINDOW, **certificate}
        issued_by = fields.pop("issued_by", roots)
        chain = fields.pop("chain", None)  # PEM, instead of the usual certificate
        if chain is None:
            chain = (issue_rpc(issued_by, issue_root(issued_by, WINDOW), **fields),)
        self._respond = respond
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.verify_mode = ssl.CERT_OPTIONAL
        self._context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self._context.load_verify_locations(cadata=issue_temp_ca(roots, WINDOW))
        load_issued(self._context, Issued(issued_by.rpc_key.pkcs8_pem, chain))
        self.root_pem = root_pem
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def present(self, issued: Issued) -> None:
        """Present another certificate from now on."""
        load_issued(self._context, issued)

    def close(self) -> None:
        """Stop, and wait for the threads."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(20)

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._talk, args=(plain,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _talk(self, plain: socket.socket) -> None:
        plain.settimeout(20)
        with plain, contextlib.suppress(OSError):
            try:
                sock = self._context.wrap_socket(plain, server_side=True)
            except ssl.SSLError as error:
                self.refused.append(error)
                return
            with sock:
                request = _read_request(sock)
                if request is None:
                    return
                self.requests.append(request)
                reply = self._respond(request)
                if not isinstance(reply, tuple):
                    reply(sock)
                    return
                status, body = reply
                head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n"
                sock.sendall(head.encode() + body)


def _read_request(sock: ssl.SSLSocket) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (piece := sock.recv(65536)):
            return None
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    [size] = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")]
    while len(body) < size:
        body += sock.recv(65536)
    target = head.split(b" ")[1].decode()
    assert target.startswith("/prpc/")
    assert target.endswith("?json")
    method = target.removeprefix("/prpc/").removesuffix("?json")
    return Request(method, json.loads(body), sock.getpeercert(binary_form=True))


def json_reply(value: object) -> Reply:
    """Return a successful answer."""
    return 200, json.dumps(value).encode()


def temp_ca_of(roots: KmsRoots, **changes: Any) -> dict[str, Any]:
    """Return the answer to GetTempCaCert."""
    return {
        "temp_ca_cert": issue_temp_ca(roots, WINDOW),
        "temp_ca_key": roots.temp_ca_key.pkcs8_pem,
        "ca_cert": issue_root(roots, WINDOW),
        **changes,
    }


def keys_of(roots: KmsRoots, app_id: bytes = APP_ID, **changes: Any) -> dict[str, Any]:
    """Return the answer to GetAppKey."""
    keys = release_app_keys(roots, app_id, INSTANCE_ID)
    return {
        "ca_cert": issue_root(roots, WINDOW),
        "disk_crypt_key": keys.disk_crypt_key.hex(),
        "env_crypt_key": keys.env_crypt_key.hex(),
        "k256_key": keys.k256_key.hex(),
        "k256_signature": keys.k256_signature.hex(),
        "tproxy_app_id": "any",
        "gateway_app_id": "any",
        "os_image_hash": IMAGE_HASH.hex(),
        **changes,
    }


def sound(roots: KmsRoots, **changes: Any) -> Respond:
    """Return the answers of a sound KMS, except of these methods: values, replies or functions."""
    answers: dict[str, Any] = {"GetTempCaCert": temp_ca_of(roots), "GetAppKey": keys_of(roots)}
    answers |= changes

    def respond(request: Request) -> Any:
        answer = answers.get(request.method, (400, b'{"error":"Service not found"}'))
        return json_reply(answer) if isinstance(answer, dict) else answer

    return respond


@contextlib.contextmanager
def running(roots: KmsRoots, respond: Respond, **certificate: Any) -> Iterator[ReplayedKms]:
    """Run a server."""
    server = ReplayedKms(roots, respond, **certificate)
    try:
        yield server
    finally:
        server.close()


def client_of(server: ReplayedKms, **changes: Any) -> KmsClient:
    """Return a client of a server that pins both of its roots."""
    fields: dict[str, Any] = {
        "roots": [root_of(server.roots)],
        "attester": Guest(),
        "vm_config": VM_CONFIG,
        "limits": LIMITS,
        **changes,
    }
    return KmsClient(fields.pop("urls", server.url), **fields)
