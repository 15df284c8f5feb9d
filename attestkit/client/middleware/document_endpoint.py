"""The document's HTTP endpoint, independent of the server's interface (ASGI, WSGI).

A document is made for one request and never cached: its evidence is over the client's nonce. At
most four are made at once, in threads, and 16 requests wait; further ones are refused with 503.
"""

import inspect
import json
import logging
import re
import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final, Generic, NamedTuple, TypeVar

from attestkit._argument_checks import wrong_type
from attestkit.attestation import Attestation
from attestkit.attestation.evidence_maker import EvidenceMaker
from attestkit.client.document import (
    SigningKey,
    encode_document,
    encode_statement,
    statement_report_data,
)
from attestkit.client.middleware.tls_keys import TlsKeys, TlsSource

AT_ONCE: Final = 4
"""Maximum number of quotes that are made at once."""

WAITING: Final = 16
"""Maximum number of requests that wait for their quote."""

_NONCE: Final = re.compile(rb"nonce=([0-9a-f]{64})")
_RETRY_SECONDS: Final = 1
App = TypeVar("App")
"""Application of the server's interface."""

_logger = logging.getLogger("attestkit.client")


class Reply(NamedTuple):
    """An HTTP response, with headers in lower case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class DocumentEndpoint(Generic[App]):
    """Base of the middlewares, which answers requests for the document. Thread-safe.

    Args:
        app: The application.
        tee: The TEE; the caller keeps it open.
        tls: Certificates or keys of the server, see `TlsKeys`.
        name: Name of the server in the statement.
        hpke: X25519 public key in the statement.
        signing: Keys of signatures in the statement.

    Raises:
        UsageError: If an argument is not valid, or a file of `tls` cannot be read.
        FormatError: If a file of `tls` is malformed.
    """

    def __init__(
        self,
        app: App,
        tee: EvidenceMaker,
        *,
        tls: TlsSource,
        name: str | None = None,
        hpke: bytes | None = None,
        signing: Sequence[SigningKey] = (),
    ) -> None:
        attest = getattr(tee, "attest", None)
        if not callable(attest) or inspect.iscoroutinefunction(attest):
            raise wrong_type("tee", "an Attester", tee)
        self._app, self._tee = app, tee
        self._keys = TlsKeys(tls)
        self._name, self._hpke, self._signing = name, hpke, tuple(signing)
        self._admitted = threading.BoundedSemaphore(AT_ONCE + WAITING)
        self._at_once = threading.BoundedSemaphore(AT_ONCE)
        self._statement(bytes(32))  # raises for arguments that are not valid

    def _answer(self, method: str, query: bytes) -> "Reply | Future[Reply]":
        """Answer a request; a document is made in a thread.

        Cancelling the future of a request that waits gives its place to another.
        """
        nonce = self._admit(method, query)
        if isinstance(nonce, Reply):
            return nonce
        future: Future[Reply] = Future()
        # A daemon, so that a quote that never ends does not keep the program from ending.
        thread = threading.Thread(
            target=self._work, args=(future, nonce), name="attestkit-document", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no more threads
            self._admitted.release()
            return _overloaded()
        return future

    def _answer_blocking(self, method: str, query: bytes) -> Reply:
        """Answer a request in the calling thread."""
        nonce = self._admit(method, query)
        if isinstance(nonce, Reply):
            return nonce
        future: Future[Reply] = Future()
        self._work(future, nonce)
        return future.result()

    def _admit(self, method: str, query: bytes) -> Reply | bytes:
        """Return the nonce of a request that may have a document, else the answer."""
        if method != "GET":
            return _error(405, "use GET", ("allow", "GET"))
        given = [part for part in query.split(b"&") if part.partition(b"=")[0] == b"nonce"]
        found = _NONCE.fullmatch(given[0]) if len(given) == 1 else None
        if found is None:
            return _error(400, "nonce: must be 64 lower-case hex digits, once")
        if not self._admitted.acquire(blocking=False):
            return _overloaded()
        return bytes.fromhex(found[1].decode())

    def _work(self, future: "Future[Reply]", nonce: bytes) -> None:
        """Make the document of an admitted request, unless it was cancelled."""
        try:
            with self._at_once:
                if future.set_running_or_notify_cancel():
                    future.set_result(self._document(nonce))
        finally:
            self._admitted.release()

    def _document(self, nonce: bytes) -> Reply:
        try:
            statement = self._statement(nonce)
            evidence = self._tee.attest(report_data=statement_report_data(statement))
            body = encode_document(statement, evidence.to_bytes(), snp_certificates(evidence))
        except Exception:
            # The client gets the identifier only: an error may describe the machine.
            identifier = secrets.token_hex(8)
            _logger.exception("document %s: no evidence", identifier)
            return _unavailable("evidence is not available", id=identifier)
        return _reply(200, body)

    def _statement(self, nonce: bytes) -> bytes:
        keys = self._keys.current()
        return encode_statement(
            keys, nonce, hpke=self._hpke, signing=self._signing, name=self._name
        )


def snp_certificates(evidence: Attestation) -> tuple[bytes, ...]:
    """Return the certificates of SEV-SNP evidence in DER: signing key, its issuer, root.

    Empty on other platforms, and if the guest has none.

    Raises:
        FormatError: If a certificate is malformed.
    """
    chain: tuple[bytes, ...] = getattr(evidence.evidence.platform, "cert_chain", ())
    if not chain:
        return ()
    from attestkit.verifier.platforms.snp.chain import read_endorsements  # lazy: only on SEV-SNP

    found = sorted(read_endorsements(chain), key=lambda item: item.key is None)
    return tuple([item.certificate.der for item in found])


def _overloaded() -> Reply:
    return _unavailable("too many requests for evidence")


def _unavailable(problem: str, **details: str) -> Reply:
    return _error(503, problem, ("retry-after", str(_RETRY_SECONDS)), **details)


def _error(status: int, problem: str, *headers: tuple[str, str], **details: str) -> Reply:
    return _reply(status, json.dumps({"error": problem, **details}).encode(), *headers)


def _reply(status: int, body: bytes, *headers: tuple[str, str]) -> Reply:
    always = (
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
    )
    return Reply(status, (*always, *headers), body)
