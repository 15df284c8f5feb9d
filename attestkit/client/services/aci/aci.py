"""Attested Confidential Inference, `aci/1`: gateways and servers."""

import hmac
from collections.abc import Callable, Iterable
from typing import Final, Literal
from urllib.parse import quote

from attestkit._sanitize import shown
from attestkit._system.bounded_cache import BoundedCache
from attestkit.attestation import Attestation
from attestkit.client.sealing.aci_e2ee import AciConstraint, AciSealing
from attestkit.client.services.aci import aci_keyset
from attestkit.client.services.dstack_evidence import (
    app_id_of,
    check_app_compose,
    read_dstack_evidence,
)
from attestkit.client.services.service import (
    AnswerRecord,
    Binding,
    Claims,
    Machine,
    Question,
    Signer,
    Where,
)
from attestkit.client.strict_answer import AnswerObject, read_answer_object
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import FormatError, ServiceError

API_VERSION: Final = "aci/1"

RECEIPT_KEY: Final = "receipt:"
"""Prefix of the names of signing keys in `Claims.keys`; the key id follows."""

KEYSET_DIGEST: Final = "keyset-digest"
"""Name of the keyset's SHA-256 in `Claims.keys`."""

MAX_RESTORED: Final = 1000
"""Sealed requests whose hashes are kept for receipts; the oldest are forgotten."""

_WHAT: Final = "ACI report"
_E2EE_VERSION: Final = "2"
_MAX_VERSIONS: Final = 64


class AciService:
    """A service of Attested Confidential Inference (ACI): gateway to AI models, or server of one.

    Its keyset, the list of its public keys, is attested on the connection that carries requests.

    Args:
        kms_roots: Root keys of trusted KMSs (secp256k1, compressed, 33 bytes): then the report must
            show that one of them derived the signing key. Empty: nothing is checked about the
            origin of the signing key.
    """

    name: Final = "aci"
    where: Final[Where] = "wire"

    def __init__(self, *, kms_roots: Iterable[bytes] = ()) -> None:
        self._kms_roots = tuple(kms_roots)
        # SHA-256 of the restored body, which the receipt has, by that of the sealed one.
        self._restored: BoundedCache[bytes, bytes] = BoundedCache(MAX_RESTORED)

    def recognizes(self, host: str) -> bool:
        """Return False: such a service may have any host name."""
        return False

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return the request for the report, which has `nonce` (32 bytes) in hex.

        `model` is not used: one report is for all models.
        """
        return (Question(f"/v1/aci/attestation?nonce={nonce.hex()}"),)

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims of a report; its evidence is verified later.

        Digest and statement are computed from the keyset; those in the report are only compared.

        Args:
            answers: Body of the only answer.
            nonce: Nonce that was sent, 32 bytes.
            seen: TLS peer of the connection, whose key must be in the keyset, if that has TLS keys;
                None: the key is not compared.
            model: Not used.

        Raises:
            FormatError: If the report is malformed.
            ServiceError: If the report is not for this nonce and TLS key, names no key, or with
                `kms_roots` does not show that a trusted KMS derived the signing key.
            UsageError: If a key in `kms_roots` is malformed.
        """
        report = read_answer_object(answers[0], _WHAT)
        report.constant("api_version", API_VERSION)
        attestation = report.object("attestation")
        keyset = aci_keyset.read_keyset(attestation.object("workload_keyset"))
        report_data = _check_restated(report, attestation, keyset, nonce)
        evidence = attestation.object("evidence")
        found = _read_evidence(attestation, evidence)
        if self._kms_roots:
            aci_keyset.check_custody(evidence, keyset, app_id_of(found, _WHAT), self._kms_roots)
        versions, serving = _capabilities(report)
        # `serving` is not measured; only the attested key of the connection authenticates it.
        is_direct = serving == "direct" and seen is not None and bool(keyset.tls_keys)
        is_of = "server" if is_direct else "gateway"
        bindings = _tls_bindings(keyset, seen, is_of)
        if _E2EE_VERSION in versions:
            keys = keyset.e2ee_keys.values()
            bindings += tuple(Binding("fields", key, is_of) for key in keys)
        if not bindings:
            message = f"{_WHAT}: the keyset must have a TLS key, or a key to encrypt to"
            raise ServiceError(message, reason="no_channel")
        receipt_keys = {f"{RECEIPT_KEY}{name}": key for name, key in keyset.receipt_keys.items()}
        return Claims(
            machines=(Machine(is_of, found, report_data),),
            bindings=bindings,
            freshness="nonce",
            not_proven=self._not_proven(attestation, found, is_of),
            valid_until=keyset.not_after,
            keys={KEYSET_DIGEST: keyset.digest, **receipt_keys},
        )

    def sealing(
        self,
        claims: Claims,
        binding: Binding,
        model: str | None,
        *,
        changed: Callable[[], object] = lambda: None,
    ) -> AciSealing:
        """Return the Sealing that encrypts requests to the key of `binding`.

        Args:
            claims: Claims of the newest proof.
            binding: Key of kind "fields", X25519 or secp256k1.
            model: The only model that requests may name; None for any.
            changed: As for `amending`.
        """
        constraint = self.amending(claims, changed)
        note = self._restored.put
        return AciSealing(binding.key, model=model, note=note, constraint=constraint)

    def amending(self, claims: Claims | None, changed: Callable[[], object]) -> AciConstraint:
        """Return the Sealing that adds `provider.aci_verified` to requests, and encrypts nothing.

        Args:
            claims: Claims of the newest proof; None without a valid one.
            changed: Called if an answer shows that the service has a different keyset now, so that
                it has to be verified again.
        """
        digest = None if claims is None else f"sha256:{claims.keys[KEYSET_DIGEST].hex()}"
        return AciConstraint(digest, changed)

    def signature_question(self, answer: AnswerRecord, model: str | None) -> Question:
        """Return the request for the receipt of an answer; it needs the API key of the request.

        Args:
            answer: Identifier and hashes of the answer.
            model: Not used.
        """
        return Question(f"/v1/aci/receipts/{quote(answer.identifier, safe='')}")

    def check_signature(
        self, document: bytes, answer: AnswerRecord, claims: Claims, model: str | None
    ) -> Signer:
        """Check the receipt of an answer; return its signer, `model` or `gateway`.

        The receipt of a gateway must state that the serving machine was verified. Errors are those
        of `check_receipt`.

        Args:
            document: The receipt, JSON.
            answer: Identifier and hashes of the answer and its request.
            claims: Claims with the keys of the service, whose evidence was accepted.
            model: The AI model that must have answered; None for any.
        """
        keys = {
            name.removeprefix(RECEIPT_KEY): key
            for name, key in claims.keys.items()
            if name.startswith(RECEIPT_KEY)
        }
        request = self._restored.find(answer.request_sha256) or answer.request_sha256
        expected = aci_keyset.ExpectedAnswer(
            keys,
            claims.keys[KEYSET_DIGEST],
            request,
            answer.response_sha256,
            answer.identifier,
            model,
            is_behind_gateway=claims.bindings[0].is_of == "gateway",
        )
        aci_keyset.check_receipt(document, expected)
        return "gateway" if expected.is_behind_gateway else "model"

    def _not_proven(
        self, attestation: AnswerObject, evidence: Attestation | bytes, is_of: str
    ) -> tuple[str, ...]:
        found = []
        if is_of == "gateway":
            found.append("the machine behind the gateway that serves a model; receipts name it")
        if not self._kms_roots:
            found.append("that a trusted KMS has the service's keys (kms_roots)")
        if isinstance(evidence, bytes):
            found.append("the app: the report has no event log")
        if attestation.has("source_provenance"):
            found.append("the source that the report names, beyond the measured app")
        found.append("GPUs: the report has no evidence of them")
        return tuple(found)


def _check_restated(
    report: AnswerObject, attestation: AnswerObject, keyset: aci_keyset.Keyset, nonce: bytes
) -> bytes:
    """Return the report data of keyset and nonce, 64 bytes; compare what the report states.

    Raises:
        FormatError: If the stated digest is not that of the keyset.
        ServiceError: If the stated report data are not of keyset and nonce (reason `nonce_echo`).
    """
    stated = report.text("workload_keyset_digest")
    if not hmac.compare_digest(stated.encode(), keyset.digest_text.encode()):
        message = f"{_WHAT}: workload_keyset_digest: must be {keyset.digest_text}, as of its keyset"
        raise FormatError(message, reason="inconsistent")
    expected = keyset.report_data(nonce)
    if not hmac.compare_digest(attestation.hex("report_data", 32), expected[:32]):
        message = f"{_WHAT}: report_data: must be that of its keyset and the nonce that was sent"
        raise ServiceError(message, reason="nonce_echo")
    return expected


def _read_evidence(attestation: AnswerObject, evidence: AnswerObject) -> Attestation | bytes:
    """Return the evidence, which must be of a dstack guest: ACI defines no other format.

    Args:
        attestation: Member `attestation` of the report.
        evidence: Member `evidence` of that.

    Returns:
        TDX quote with event log, or the raw quote alone if there is no log.

    Raises:
        FormatError: If a member is malformed, or the app-compose document is not the measured one.
    """
    attestation.constant("tee_type", "tdx")
    raw = evidence.hex("quote")
    found = read_dstack_evidence(raw, evidence.get("event_log"), evidence.get("vm_config"), _WHAT)
    check_app_compose(found, evidence.get("app_compose"), _WHAT)
    return found


def _capabilities(report: AnswerObject) -> tuple[list[object], Literal["direct", "gateway"]]:
    """Return the supported versions of field encryption, and the kind of the service.

    The kind is "direct" if the service itself runs the model, else "gateway".

    Args:
        report: The report, which states both.
    """
    capabilities = report.object("service_capabilities")
    versions = capabilities.array("supported_e2ee_versions", _MAX_VERSIONS)
    # Any other value counts as an aggregator.
    serving = capabilities.text("serving")
    return versions, "direct" if serving == "direct" else "gateway"


def _tls_bindings(
    keyset: aci_keyset.Keyset, seen: ObservedPeer | None, is_of: str
) -> tuple[Binding, ...]:
    """Return the binding to the observed TLS key; empty if the keyset has no TLS keys.

    Args:
        keyset: The keyset of the service.
        seen: TLS peer of the connection; None: the result has all TLS keys of the keyset.
        is_of: Owner of the keys, as in `Binding`.

    Raises:
        ServiceError: If the keyset has TLS keys, but not the observed one for its host (reason
            `other_key`).
    """
    if seen is None:
        return tuple(Binding("tls-spki", key.spki_sha256, is_of) for key in keyset.tls_keys)
    host, found = seen.host.lower(), seen.spki_sha256
    for key in keyset.tls_keys:
        if key.domain in (None, host) and hmac.compare_digest(key.spki_sha256, found):
            return (Binding("tls-spki", found, is_of),)
    if keyset.tls_keys:
        message = f"{_WHAT}: keyset must list the TLS key {found.hex()} for the host {shown(host)}"
        raise ServiceError(message, reason="other_key")
    return ()


SERVICES: Final = (AciService(),)
