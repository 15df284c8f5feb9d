"""The HTTP endpoint `/.well-known/attestkit`, common to the ASGI and WSGI middlewares.

It answers with a document: a statement of the server's keys, and evidence over that statement. A
document is made for one request and never cached, because it contains the client's nonce. At most
four are made at once, in threads, and 16 requests wait; further ones are refused with 503.

The keys of the server's TLS certificates come from PEM files that are read again when they change.
"""

import inspect
import json
import logging
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeAlias, TypeVar

from attestkit._argument_checks import wrong_type
from attestkit._crypto.der import BIT_STRING, SEQUENCE, DerReader
from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import CERTIFICATE_LABEL, split_pem
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._system.clock import current_time
from attestkit._system.untrusted_files import read_regular
from attestkit.attestation import Attestation
from attestkit.attestation.evidence_maker import EvidenceMaker
from attestkit.client.document import (
    MAX_KEYS,
    SigningKey,
    encode_document,
    encode_statement,
    statement_report_data,
)
from attestkit.errors import FormatError, UsageError

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import UsageReason

AnyPath: TypeAlias = str | os.PathLike[str]

TlsSource: TypeAlias = AnyPath | Sequence[AnyPath | bytes]
"""A PEM file; or several PEM files, keys in DER (SubjectPublicKeyInfo) and their SHA-256 hashes."""

MAX_FILE: Final = 1 << 20
"""Maximum size of a PEM file in bytes."""

_HASH_SIZE: Final = 32
_PUBLIC_KEY: Final = "PUBLIC KEY"
_NO_EXPIRY: Final = 0.0  # of a key without certificate: it is listed while the file has it


class TlsKeys:
    """SHA-256 hashes of a server's TLS keys (SubjectPublicKeyInfo), kept up to date. Thread-safe.

    Of a PEM file the first certificate counts, and all blocks `PUBLIC KEY`, which are keys of
    certificates to come. The file is read again when it changes. The key of the certificate that
    was replaced stays listed until that certificate expires, because the server may still use it.

    Args:
        tls: Path of a PEM file; or a list of such paths, keys (SubjectPublicKeyInfo in DER) and
            SHA-256 hashes of keys (32 bytes).
        clock: Returns the time in seconds since 1970.

    Raises:
        UsageError: If there is no key, there are more than 16, a file cannot be read, or a value is
            neither a path, a key nor a hash.
        FormatError: If a file has neither a certificate nor a public key, or is malformed.
    """

    def __init__(self, tls: TlsSource, clock: Callable[[], float] = current_time) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._fixed: list[bytes] = []
        self._files: list[_PemFile] = []
        for source in _sources(tls):
            if isinstance(source, bytes):
                self._fixed.append(_key_hash(source))
            else:
                self._files.append(_PemFile(source))
        found = {*self._fixed, *(key for file in self._files for key in file.keys)}
        if not 1 <= len(found) <= MAX_KEYS:
            reason: UsageReason = "too_many" if found else "missing"
            raise UsageError(f"tls: {len(found)} keys, must be 1 to {MAX_KEYS}", reason=reason)

    def current(self) -> tuple[bytes, ...]:
        """Return the SHA-256 hashes of 1 to 16 keys; those of replaced certificates are last."""
        now = self._clock()
        with self._lock:
            for file in self._files:
                file.refresh(now)
            keys = [*self._fixed, *(key for file in self._files for key in file.keys)]
            keys += [key for file in self._files for key in file.replaced]
        return tuple(dict.fromkeys(keys))[:MAX_KEYS]


class _PemFile:
    """A PEM file: its current keys, and those of replaced certificates until they expire."""

    def __init__(self, path: AnyPath) -> None:
        self._path = os.fspath(path)
        self.keys: dict[bytes, float]  # end of validity, in seconds since 1970, by hash
        self.replaced: dict[bytes, float] = {}
        try:
            self._stamp = _stamp(self._path)
            self.keys = _read_file(self._path)
        except OSError as error:
            message = f"tls: {self._path}: cannot be read: {error.strerror}"
            raise UsageError(message, reason="cannot_read") from error
        except FormatError as error:
            message = f"tls: {self._path}: {error.message}"
            raise FormatError(message, reason=error.reason) from error

    def refresh(self, now: float) -> None:
        """Read the file again if it has changed; if that fails, its last keys remain.

        Keys of replaced certificates that have expired at `now`, seconds since 1970, are dropped.
        """
        try:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                keys = _read_file(self._path)
                known = self.keys | self.replaced
                self.replaced = {key: known[key] for key in known if key not in keys}
                self.keys, self._stamp = keys, stamp
        except (OSError, FormatError) as error:
            _logger.warning("%s: cannot be read, its last keys remain: %s", self._path, error)
        self.replaced = {key: end for key, end in self.replaced.items() if end > now}


def _sources(tls: object) -> Iterable[AnyPath | bytes]:
    if isinstance(tls, (str, os.PathLike)):
        return (tls,)
    if not isinstance(tls, (list, tuple)):
        raise wrong_type("tls", "a path, or a list of paths, keys and hashes", tls)
    for source in tls:
        if not isinstance(source, (str, bytes, os.PathLike)):
            raise wrong_type("tls", "a list of paths, keys and hashes", source)
    return tls


def _stamp(path: str) -> tuple[int, ...]:
    """Return device, inode, size and modification time (ns) of the file `path`, to detect edits."""
    found = Path(path).stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read_file(path: str) -> dict[bytes, float]:
    # Behind a link, too, it must be a regular file: a pipe would block all documents.
    data = read_regular(os.path.realpath(path), MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise FormatError(f"over the limit of {MAX_FILE} bytes", reason="too_large")
    return read_pem_keys(data)


def read_pem_keys(data: bytes) -> dict[bytes, float]:
    """Return the keys in a PEM file: that of the first certificate, and all blocks `PUBLIC KEY`.

    Args:
        data: Content of the file. A private key in it is not decoded.

    Returns:
        End of the certificate's validity in seconds since 1970, or 0 for a public key, by the
        SHA-256 of the key's SubjectPublicKeyInfo.

    Raises:
        FormatError: If the file has neither a certificate nor a public key, or one is malformed.
    """
    text = data.decode("ascii", "replace")
    keys: dict[bytes, float] = {}
    if f"-----BEGIN {_PUBLIC_KEY}-----" in text:
        keys = {_spki_hash(spki): _NO_EXPIRY for spki in split_pem(text, (_PUBLIC_KEY,))}
        if f"-----BEGIN {CERTIFICATE_LABEL}-----" not in text:
            return keys
    certificate = read_certificate(split_pem(text)[0])
    return {sha256(certificate.spki_der): certificate.valid_until.timestamp(), **keys}


def _key_hash(value: bytes) -> bytes:
    """Return the SHA-256 of `value`, a SubjectPublicKeyInfo in DER; or `value`, if it is 32 bytes.

    Raises:
        UsageError: If `value` is neither.
    """
    if len(value) == _HASH_SIZE:
        return value
    try:
        return _spki_hash(value)
    except FormatError as error:
        message = f"tls: a key must be SubjectPublicKeyInfo in DER, or a hash of {_HASH_SIZE} bytes"
        raise UsageError(message, reason="wrong_value") from error


def _spki_hash(spki: bytes) -> bytes:
    """Return the SHA-256 of `spki`, a SubjectPublicKeyInfo in DER (RFC 5280, 4.1).

    Raises:
        FormatError: If `spki` is malformed.
    """
    outer = DerReader(spki)
    fields = outer.enter(SEQUENCE)
    outer.finish()
    fields.whole(SEQUENCE)
    fields.whole(BIT_STRING)
    fields.finish()
    return sha256(spki)


AT_ONCE: Final = 4
"""Maximum number of quotes that are made at once."""

WAITING: Final = 16
"""Maximum number of requests that wait for their quote."""

_NONCE: Final = re.compile(rb"nonce=([0-9a-f]{64})")
_RETRY_SECONDS: Final = 1
App = TypeVar("App")
"""An ASGI or WSGI application."""

_logger = logging.getLogger("attestkit.client")


class Reply(NamedTuple):
    """An HTTP response; names of headers are in lower case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class DocumentEndpoint(Generic[App]):
    """Base of the ASGI and WSGI middlewares: answers `/.well-known/attestkit`. Thread-safe.

    Args:
        app: The application that gets all other requests.
        tee: The TEE that makes evidence; the caller keeps it open.
        tls: Certificates or keys of the server, as for `TlsKeys`: a path, or a list of paths, keys
            and hashes.
        name: Name of the server for people, in the statement; None: no name.
        hpke: X25519 public key of the server in the statement, 32 bytes; None: no such key.
        signing: Public keys in the statement that verify the server's signatures.

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
        """Return the Reply that rejects a request for evidence, or a Future of one with evidence.

        Evidence is made in a new thread. Cancelling the future frees a place in the queue, as long
        as the request waits there.

        Args:
            method: Method of the request.
            query: Its query string, percent-encoded, without "?".
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
        """Return the Reply to a request for evidence, which is made in the calling thread.

        Arguments are those of `_answer`: the method, and the query string without "?".
        """
        nonce = self._admit(method, query)
        if isinstance(nonce, Reply):
            return nonce
        future: Future[Reply] = Future()
        self._work(future, nonce)
        return future.result()

    def _admit(self, method: str, query: bytes) -> Reply | bytes:
        """Return the nonce of an admitted request, 32 bytes, or the Reply that rejects it.

        The status is 405 unless the method is GET, 400 unless the query has one `nonce` of 64
        lower-case hex digits, and 503 if too many requests wait.

        Args:
            method: Method of the request.
            query: Its query string, percent-encoded, without "?".
        """
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
        """Complete `future` with the document for a nonce, unless it was cancelled in the queue.

        Args:
            future: Future of the Reply.
            nonce: Nonce of the client, 32 bytes.
        """
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

    Empty for evidence of other platforms, and if the evidence has no certificates.

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
