"""Clients of a KMS over HTTPS with the certificates of the recorded requests, and a webhook."""

import http.client
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple

from attestkit import ra_tls
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_leaf
from attestkit.attestation import Attestation
from attestkit.kms import SimulatedKms
from attestkit.ra_tls.issuance import Issued, load_issued
from attestkit.report_data import ReportData
from tests.kms.replayed_kms import BOOT, VM_CONFIG, WINDOW
from tests.serve.client import Answer
from tests.verifier.platforms import intel

SECONDS: Final = 20.0
KEY: Final = P256Key.from_scalar(b"\x31" * 32)
_JSON: Final = {"Content-Type": "application/json"}


def evidence_of(key: P256Key, boot: Any = BOOT, config: str = VM_CONFIG) -> Attestation:
    """Return evidence of a simulated TD over a TLS key."""
    bound = ReportData.bind(ReportData.RATLS_CERT, key.spki_der)
    log = intel.log_of(boot)
    return Attestation.for_tdx(intel.quote_of(log, report_data=bound), log, config)


class Client(NamedTuple):
    """A client of one KMS; each call is a connection of its own."""

    port: int
    context: ssl.SSLContext

    def send(
        self,
        verb: str,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request."""
        connection = http.client.HTTPSConnection(
            "localhost", self.port, context=self.context, timeout=SECONDS
        )
        with closing(connection):
            connection.request(verb, target, body, dict(headers or {}))
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, named, response.read())

    def call(self, method: str, message: object = None) -> Answer:
        """Call a method with JSON."""
        body = json.dumps({} if message is None else message).encode()
        return self.send("POST", f"/prpc/{method}", body, _JSON)


class ServedKms(NamedTuple):
    """A KMS in another process."""

    url: str
    root_cert: str  # PEM


def anonymous(kms: SimulatedKms | ServedKms) -> Client:
    """Return a client without a certificate, which trusts the root of the KMS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=kms.root_cert)
    return Client(int(kms.url.rpartition(":")[2]), context)


def with_certificate(
    kms: SimulatedKms | ServedKms,
    extension: bytes | None,
    *,
    issuer: tuple[str, P256Key] | None = None,
) -> Client:
    """Return a client whose certificate, by default of the temporary CA, has this evidence."""
    client = anonymous(kms)
    if issuer is None:
        temp_ca = client.call("GetTempCaCert").json()
        issuer = temp_ca["temp_ca_cert"], P256Key.from_pem(temp_ca["temp_ca_key"])
    ca_cert, ca_key = issuer
    extensions = [] if extension is None else [(ra_tls.OID_ATTESTATION, extension)]
    leaf = issue_leaf(
        public_key=KEY,
        subject="x",
        ca_cert=ca_cert,
        ca_key=ca_key,
        extensions=extensions,
        not_before=WINDOW.not_before,
        not_after=WINDOW.not_after,
    )
    load_issued(client.context, Issued(KEY.pkcs8_pem, (certificate_pem(leaf),)))
    return client


def guest(kms: SimulatedKms, boot: Any = BOOT, config: str = VM_CONFIG) -> Client:
    """Return a client with evidence of its key."""
    return with_certificate(kms, evidence_of(KEY, boot, config).stripped().to_bytes())


class Webhook:
    """An authorization server that answers as a test says."""

    url: str

    def __init__(self) -> None:
        self.status, self.body = 200, b""
        self.authority = b"{}"
        self.requests: list[tuple[str, bytes]] = []


@contextmanager
def running_webhook() -> Iterator[Webhook]:
    """Run an authorization server during the block."""
    webhook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            webhook.requests.append((self.path, body))
            self._answer(webhook.status, webhook.body)

        def do_GET(self) -> None:
            self._answer(200, webhook.authority)

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        webhook.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield webhook
        finally:
            server.shutdown()
            thread.join(SECONDS)
