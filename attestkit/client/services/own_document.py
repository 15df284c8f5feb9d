"""attestkit's own servers: the document of attested TLS, version 1; see `client.document`."""

import hmac
from typing import ClassVar, Final, final

from attestkit.attestation import Attestation
from attestkit.client.document import PATH, AttestedDocument, read_document
from attestkit.client.services.service import Binding, Claims, Machine, Question, Where
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import FormatError, ServiceError, UsageError

_SERVER: Final = "server"


@final
class OwnDocument:
    """Servers with the middleware of `attestkit.client.asgi` or `attestkit.client.wsgi`."""

    name: ClassVar[str] = "attestkit"
    where: ClassVar[Where] = "wire"

    def recognizes(self, host: str) -> bool:
        """Return False, whatever `host` is: any host may be such a server."""
        return False

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return the request for evidence, `GET /.well-known/attestkit?nonce=N`.

        Args:
            nonce: Nonce of the client, 32 bytes.
            model: Must be None: such a server has no models to choose from.

        Raises:
            UsageError: If a model is named.
        """
        if model is not None:
            message = "model: must be left out: servers of attestkit have none"
            raise UsageError(message, reason="not_applicable")
        headers = (("Accept", "application/json"),)
        return (Question(f"{PATH}?nonce={nonce.hex()}", headers),)

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims of the answer, a document; its evidence is verified later.

        Args:
            answers: Body of the only answer.
            nonce: Nonce that was sent, 32 bytes.
            seen: TLS peer of the connection, whose key must be one of those in the document; None:
                the key is not compared.
            model: Not used.

        Raises:
            FormatError: If document or evidence is malformed.
            ServiceError: If the document does not have the nonce (reason `nonce_echo`), or does not
                name the TLS key of the connection (`other_key`).
        """
        document = read_document(answers[0], nonce)
        statement = document.statement
        machine = Machine(
            role=_SERVER,
            evidence=_read_evidence(document),
            report_data=statement.report_data,
            snp_certificates=document.certificates,
        )
        # The first key of an algorithm counts.
        keys = {f"signing-{algorithm}": key for algorithm, key in reversed(statement.signing)}
        if statement.hpke is not None:
            keys["hpke"] = statement.hpke
        return Claims((machine,), _bindings(statement.tls, seen), "nonce", keys=keys)


def _bindings(tls: tuple[bytes, ...], seen: ObservedPeer | None) -> tuple[Binding, ...]:
    """Return bindings to the TLS keys of the server, that of the connection first.

    Args:
        tls: SHA-256 of the SubjectPublicKeyInfo of each key.
        seen: TLS peer of the connection, whose key must be one of them; None: the order is that of
            `tls`.

    Raises:
        ServiceError: If the key of the connection is not one of them (reason `other_key`).
    """
    if seen is not None:
        observed = seen.spki_sha256
        if not any(hmac.compare_digest(key, observed) for key in tls):
            message = f"document: must name the TLS key of this connection, {observed.hex()}"
            raise ServiceError(message, reason="other_key")
        tls = (observed, *(key for key in tls if key != observed))
    return tuple([Binding("tls-spki", key, _SERVER) for key in tls])


def _read_evidence(document: AttestedDocument) -> Attestation:
    attestation = Attestation.from_bytes(document.evidence)
    if document.certificates and attestation.snp_report is None:
        message = "document: certificates: must be left out for evidence that is not of SEV-SNP"
        raise FormatError(message, reason="inconsistent")
    return attestation


SERVICES: Final = (OwnDocument(),)
