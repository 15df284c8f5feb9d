"""Answers of a service that signs them, or has receipts of them: `SignedAnswers`.

Transports record the hashes, which are of the bytes on the wire. The identifier of an answer only
finds its signature, which is refused unless it is for this request and answer. An identifier alone,
or an object of a client, names an answer only if no other has it, later or among the 1,000 before:
otherwise a forged answer could have the identifier of a genuine one.
"""

import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

from attestkit._argument_checks import wrong_type
from attestkit._sanitize import shown
from attestkit._system.bounded_cache import BoundedCache
from attestkit._system.fork_safety import call_now_and_after_fork
from attestkit.client.services.service import AnswerRecord, Claims, Question, Service, Signer
from attestkit.client.wire.exchange import WireRecord, record_of
from attestkit.errors import FormatError, ServiceError, UsageError

if TYPE_CHECKING:
    from attestkit.client.proofs.proof import Proof

MAX_ANSWERS: Final = 1000
"""Answers whose hashes are kept; the oldest are forgotten."""

MAX_SIGNATURE: Final = 1 << 20
"""Maximum size of a signature or receipt in bytes."""

MAX_SEEN: Final = 65_536
"""Identifiers that are kept to detect one that several answers have.

If `MAX_ANSWERS` successive answers have more of them, no identifier names an answer any more.
"""

TRIES: Final = 5
"""Requests for one signature, which exists only a moment after the answer."""

_PAUSE: Final = 0.2  # seconds before the second request, then twice as much each time
_IDENTIFIER: Final = re.compile(rb'"id"\s*:\s*"([!#-\[\]-~]{1,200})"')  # printable, no escapes
_RECEIPT: Final = "x-receipt-id"
_ENCODING: Final = "content-encoding"
_NOT_FOUND: Final = 404


class SignatureReply(NamedTuple):
    """Response of the service to the request for a signature."""

    status: int
    body: bytes  # at most one piece of the connection more than `MAX_SIGNATURE`


@runtime_checkable
class SigningService(Protocol):
    """A service that signs its answers, or issues signed receipts of them."""

    def signature_question(self, answer: AnswerRecord, model: str | None) -> Question:
        """Return the request for the signature of an answer.

        Args:
            answer: Identifier and hashes of the answer.
            model: Name of the AI model; None if the caller named none.
        """
        ...

    def check_signature(
        self, document: bytes, answer: AnswerRecord, claims: Claims, model: str | None
    ) -> Signer:
        """Check the signature of an answer, and return its signer.

        Args:
            document: Body of the answer to `signature_question`.
            answer: Hashes of the answer and its request.
            claims: Claims with the keys of the service, whose evidence was accepted.
            model: The AI model that must have answered; None for any.

        Raises:
            FormatError: If the signature is malformed.
            ServiceError: If it is not valid for this answer.
        """
        ...


def require_signing(service: Service) -> None:
    """Raise ServiceError unless a service signs its answers."""
    if not isinstance(service, SigningService):
        message = (
            f"{service.name}: does not sign its answers; leave out "
            "Require(response_signatures=True)"
        )
        raise ServiceError(message, reason="no_signatures")


class SignedAnswers:
    """The hashes of the last 1,000 answers of one endpoint; thread-safe.

    Raises:
        ServiceError: If the service does not sign its answers (reason `no_signatures`).
    """

    def __init__(self, service: Service, model: str | None) -> None:
        require_signing(service)
        self._service, self._model = service, model
        self._records: BoundedCache[str, AnswerRecord] = BoundedCache(MAX_ANSWERS)
        # Whether several answers have an identifier, and the number of the last; oldest first.
        self._seen: dict[str, tuple[bool, int]] = {}
        self._count = 0  # of all answers
        self._hidden = False  # whether an answer may have any identifier
        call_now_and_after_fork(self._create_lock)

    def _create_lock(self) -> None:
        """Create the lock; after a fork anew, because another thread may have held it."""
        self._lock = threading.Lock()

    def note(self, record: WireRecord) -> None:
        """Store the identifiers of an answer, and its hashes if it was read to its end."""
        found = _describe(record)
        names = set(record.identifiers.found)
        names |= {text for name, text in record.headers if name.lower() == _RECEIPT}
        with self._lock:
            self._hidden = self._hidden or _hides(record)
            self._count += 1
            for name in names:
                again = self._seen.pop(name, None) is not None  # so that it moves to the end
                self._seen[name] = again, self._count
            if found is not None:
                self._records.put(found.identifier, found)
            while len(self._seen) > MAX_SEEN:
                self._forget(next(iter(self._seen)))

    def _forget(self, name: str) -> None:
        """Remove an identifier, with its answer; the caller holds the lock."""
        _, number = self._seen.pop(name)
        self._records.discard(name)
        self._hidden = self._hidden or self._count - number < MAX_ANSWERS

    def find(self, answer: object) -> AnswerRecord:
        """Return the hashes of an answer.

        Args:
            answer: A response of httpx, httpx2 or requests, an object of `openai` with an `id`, or
                the id.

        Raises:
            UsageError: If the answer has no id or was not read to its end, or an id, or the id of
                an object, is not of one of the last 1,000 answers of this endpoint.
            ServiceError: If several answers have, or may have, its id (reason `signature`).
        """
        record = record_of(answer)
        if record is not None:
            found = _describe(record)
            if found is None:
                message = "answer: must have an id, and be read to its end"
                raise UsageError(message, reason="not_ready")
            return found
        identifier = answer if isinstance(answer, str) else getattr(answer, "id", None)
        if not isinstance(identifier, str):
            raise wrong_type("answer", "a response, an object with an id, or an id", answer)
        with self._lock:
            known = self._records.find(identifier)
            is_unique = not self._hidden and not self._seen.get(identifier, (True, 0))[0]
        if known is None:
            message = f"answer {shown(identifier)}: not a recent answer to this endpoint's clients"
            raise UsageError(message, reason="unknown_name")
        if not is_unique:
            message = (
                f"{self._service.name}: several answers have, or may have, the id "
                f"{shown(identifier)}, so that it does not identify one of them; pass the "
                "response itself"
            )
            raise ServiceError(message, reason="signature")
        return known

    def verify(
        self,
        answer: object,
        proof: "Proof",
        get: Callable[[Question], SignatureReply],
        sleep: Callable[[float], object] = time.sleep,
    ) -> Signer:
        """Fetch and check the signature of an answer; return its signer, `model` or `gateway`.

        Args:
            answer: A response of httpx, httpx2 or requests, an object of `openai`, or its id.
            proof: Proof with the service's keys.
            get: Sends a request to the attested server, and returns the response.
            sleep: Waits for a number of seconds, before a request is repeated.

        Raises:
            ServiceError: If the signature is missing (reason `no_signatures`), or not valid, or is
                of other bytes (`signature`); or as `find`.
            FormatError: If the signature is malformed.
            UsageError: As `find`.
        """
        record, service = self.find(answer), self._service
        assert isinstance(service, SigningService)
        question = service.signature_question(record, self._model)
        found = get(question)
        for attempt in range(1, TRIES):
            if found.status != _NOT_FOUND:
                break
            sleep(_PAUSE * 2 ** (attempt - 1))
            found = get(question)
        if found.status != 200:
            message = (
                f"{service.name}: no signature of the answer {shown(record.identifier)}, HTTP "
                f"status {found.status}; if the service needs an API key, pass it in headers="
            )
            raise ServiceError(message, reason="no_signatures")
        if len(found.body) > MAX_SIGNATURE:
            message = f"{service.name}: signature: over {MAX_SIGNATURE} bytes"
            raise FormatError(message, reason="too_large")
        return service.check_signature(found.body, record, proof.claims, self._model)


def _hides(record: WireRecord) -> bool:
    """Return whether an HTTP client may find an id of the answer that was not found in its bytes.

    It may if the answer has a Content-Encoding, or an id that is not written plainly.
    """
    encodings = {text.lower() for name, text in record.headers if name.lower() == _ENCODING}
    return record.identifiers.hides or not encodings <= {"identity"}


def _describe(record: WireRecord) -> AnswerRecord | None:
    """Return the values that a signature covers; None if the answer has no id or did not end."""
    if record.response_sha256 is None:
        return None
    identifier = next((text for name, text in record.headers if name.lower() == _RECEIPT), None)
    if identifier is None:
        found = _IDENTIFIER.search(record.beginning)
        if found is None:
            return None
        identifier = found[1].decode("ascii")
    return AnswerRecord(record.request_sha256, record.response_sha256, identifier, record.headers)
