"""Services with the reports of vllm-proxy: Phala's proxy itself, RedPill, NanoGPT and Venice.

A proxy beside the model has evidence of its own machine, and with `version=2` also of its TLS key.
A relay passes such an answer on: TLS then ends at the relay, and only what is encrypted to the
model's key is protected.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

from attestkit._argument_checks import require_bytes, require_size, wrong_type
from attestkit._sanitize import shown
from attestkit.client.sealing import field_protocols
from attestkit.client.sealing.fields import FieldProtocol, FieldSealing
from attestkit.client.services.service import (
    MAX_MACHINES,
    NONCE_SIZE,
    AnswerRecord,
    Binding,
    Claims,
    Question,
    Signer,
    Where,
)
from attestkit.client.services.vllm import vllm_report
from attestkit.client.services.vllm.answer_signatures import (
    check_answer_signature,
    signature_question,
)
from attestkit.client.strict_answer import AnswerObject, only_answer, read_answer_object
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import ServiceError, UsageError

ProtocolsByKey = Mapping[int, FieldProtocol]
"""Encryption protocols of a service by the size of its key in bytes: 32 Ed25519, 65 secp256k1."""

VERSION_1: Final[ProtocolsByKey] = {32: field_protocols.ED25519_V1, 65: field_protocols.ECDSA_V1}
VENICES: Final[ProtocolsByKey] = {65: field_protocols.VENICE}
NEARS: Final[ProtocolsByKey] = {32: field_protocols.NEAR_ED25519, 65: field_protocols.NEAR_ECDSA}
PHALAS: Final[ProtocolsByKey] = {32: field_protocols.PHALA_ED25519, 65: field_protocols.PHALA_ECDSA}


MAX_MODEL: Final = 256
"""Maximum number of characters of a model's name."""

_MAX_REPLICAS: Final = MAX_MACHINES - 2  # beside the first report and a compose manager
_WHAT: Final = "attestation report"
_GPUS: Final = "that the GPUs are part of the machine: their evidence has only the same nonce"
_WEIGHTS: Final = "the model's weights"


class ReportService:
    """Common base of services with vllm-proxy's reports: encrypted requests, signed answers."""

    name: str
    relay: bool = False  # whether TLS ends at a machine in front of the model's
    algorithm: vllm_report.SigningAlgorithm = "ecdsa"  # of the signing key that is requested
    signature: str = "/v1/signature/{id}"  # path of the signature of an answer
    protocols: ProtocolsByKey = PHALAS  # that encrypt fields to the model's key

    @property
    def where(self) -> Where:
        """How evidence is sent: `wire`, on the connection that carries requests.

        `apart` for a relay, whose TLS key is not in the evidence.
        """
        return "apart" if self.relay else "wire"

    def sealing(
        self,
        claims: Claims,
        binding: Binding,
        model: str | None,
        allow_open: frozenset[str] = frozenset(),
    ) -> FieldSealing:
        """Return the Sealing that encrypts fields of requests to the key of `binding`, the model's.

        Args:
            claims: Not used.
            binding: Key of kind "fields": Ed25519, 32 bytes, or secp256k1, 65 bytes.
            model: The only model that requests may name; None for any.
            allow_open: Patterns of fields, such as `user`, that may be unencrypted.

        Raises:
            ServiceError: If the service has no encryption protocol for such a key (reason
                `sealing`).
        """
        protocol = self.protocols.get(len(binding.key))
        if binding.kind != "fields" or protocol is None:
            message = f"{self.name}: cannot encrypt to a {len(binding.key)}-byte {binding.kind} key"
            raise ServiceError(message, reason="sealing")
        return FieldSealing(protocol, binding.key, model=model, allow_open=allow_open)

    def signature_question(self, answer: AnswerRecord, model: str | None) -> Question:
        """Return the request for the signature of an answer.

        Args:
            answer: Identifier and hashes of the answer.
            model: Name of the AI model; None names none.

        Raises:
            ServiceError: If the answer has no valid identifier (reason `signature`).
        """
        query = {} if model is None else {"model": model}
        return signature_question(self.signature, answer, {**query, "signing_algo": self.algorithm})

    def check_signature(
        self, document: bytes, answer: AnswerRecord, claims: Claims, model: str | None
    ) -> Signer:
        """Check the signature of an answer by a key in `claims`; return the key's owner.

        The signed text must name `model`; a relay has names of its own, which are not compared.
        A gateway signs the streams that it changes; that does not show which model answered.

        Raises:
            FormatError: If `document`, which has the signature, is malformed.
            ServiceError: If it is not a valid signature of this answer (reason `signature`).
        """
        # A relay has names of its own for models.
        return check_answer_signature(document, answer, claims, None if self.relay else model)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


@dataclass(eq=False, repr=False)
class VllmProxy(ReportService):
    """A vllm-proxy or derivative beside a model, or a relay of its answers. Immutable.

    Args:
        name: Name of the service.
        host: Host name by which it is detected, in lower case; empty if it is never detected.
        path: Path of the report.
        relay: Whether TLS ends at a machine in front of the model's.
        algorithm: Algorithm of the requested signing key.
        signature: Path of the signature of an answer, with `{id}` for its identifier.
        protocols: Protocols that encrypt fields of requests to the model's key.
    """

    name: str
    host: str = ""
    path: str = "/v1/attestation/report"
    relay: bool = False
    algorithm: vllm_report.SigningAlgorithm = "ecdsa"
    signature: str = "/v1/signature/{id}"
    protocols: ProtocolsByKey = field(default_factory=lambda: PHALAS)

    def recognizes(self, host: str) -> bool:
        """Return whether `host` is the service's `host`; False if that is empty."""
        return bool(host) and host.lower() == self.host

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return the request for the report; a relay has many models, so it needs a name.

        Args:
            nonce: Nonce of the client, 32 bytes.
            model: Name of the AI model; None is an error for a relay.

        Raises:
            UsageError: If a relay gets no model, or the name of the model or the nonce is not
                valid.
        """
        query = {"nonce": check_nonce(nonce).hex(), "signing_algo": self.algorithm}
        if self.relay or model is not None:
            query["model"] = check_model(model, self.name)
        if not self.relay:
            query["version"] = "2"
        return (Question(f"{self.path}?{urlencode(query)}"),)

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims of a report; its evidence is verified later.

        Args:
            answers: Body of the only answer.
            nonce: Nonce that was sent, 32 bytes.
            seen: TLS peer of the connection, whose key must be in the report, unless the service is
                a relay; None: the key is not compared.
            model: Not used: relays rename models.

        Raises:
            FormatError: If the report is malformed.
            ServiceError: If the evidence is not of vllm-proxy, or not for this nonce or the
                observed TLS key.
            UsageError: If there is not exactly one answer, or the nonce is not 32 bytes.
        """
        check_nonce(nonce)
        members = read_answer_object(only_answer(answers), _WHAT)
        check_kind(members, nonce)
        reports = read_reports(members, nonce)
        manager = vllm_report.read_compose_manager(members, reports[0], nonce)
        bindings = [
            *([] if self.relay else tls_bindings(reports, seen, "model")),
            *vllm_report.report_bindings(reports[0], "model"),
        ]
        return Claims(
            machines=(
                *(report.machine for report in reports),
                *((manager.machine,) if manager is not None else ()),
            ),
            bindings=tuple(bindings),
            freshness="nonce",
            not_proven=(
                *self._not_proven(reports, bindings),
                *((manager.limit(),) if manager is not None else ()),
            ),
            keys=vllm_report.signing_keys(reports),
        )

    def _not_proven(
        self, reports: list[vllm_report.VllmReport], bindings: list[Binding]
    ) -> tuple[str, ...]:
        found = list(model_limits(reports))
        if self.relay:
            found.append(f"what {self.name} does with anything that is not sealed to the model")
        else:
            found += channel_limits(bindings)
        return tuple(found)


SERVICES: Final = (
    VllmProxy("vllm-proxy"),
    VllmProxy("redpill", "api.redpill.ai", relay=True),
    VllmProxy(
        "nano-gpt",
        "nano-gpt.com",
        path="/api/v1/tee/attestation",
        relay=True,
        signature="/api/v1/tee/signature/{id}",
        protocols=VERSION_1,
    ),
    VllmProxy(
        "venice",
        "api.venice.ai",
        path="/api/v1/tee/attestation",
        relay=True,
        signature="/api/v1/tee/signature?request_id={id}",
        protocols=VENICES,
    ),
)
"""The services by name; the first one is any proxy that a user names."""


def check_model(model: str | None, service: str) -> str:
    """Return `model`, the name of an AI model, if it is valid; errors name `service`.

    Raises:
        UsageError: If it is missing, too long, or has unprintable characters.
    """
    if model is None:
        message = f"model: missing; {service} attests models, so pass model=NAME"
        raise UsageError(message, reason="missing")
    if not isinstance(model, str):
        raise wrong_type("model", "text", model)
    if not (0 < len(model) <= MAX_MODEL and model.isprintable()):
        message = f"model: must be 1 to {MAX_MODEL} printable characters, not {shown(model)}"
        raise UsageError(message, reason="wrong_value")
    return model


def check_nonce(nonce: bytes) -> bytes:
    """Return `nonce`; UsageError unless it is 32 bytes."""
    require_bytes("nonce", nonce)
    require_size("nonce", nonce, NONCE_SIZE)
    return nonce


def check_kind(members: AnswerObject, nonce: bytes) -> None:
    """Refuse an answer with `attestation_type`: it has evidence that is not of vllm-proxy.

    Raises:
        FormatError: If it has that member, and its nonce is malformed.
        ServiceError: If it has that member: with reason `nonce_echo` if its nonce is not `nonce`,
            else `no_attestation`.
    """
    kind = members.get("attestation_type")
    if kind is None:
        return
    vllm_report.check_nonce_echo(members, nonce)
    message = f"{_WHAT}: attestation_type {shown(str(kind))}: not of vllm-proxy; use that service"
    raise ServiceError(message, reason="no_attestation")


def read_reports(members: AnswerObject, nonce: bytes) -> list[vllm_report.VllmReport]:
    """Decode a report and those of its replicas in `all_attestations`, which may repeat the first.

    Args:
        members: Decoded members of the first report.
        nonce: Nonce of the request, 32 bytes.

    Raises:
        FormatError: If a report is malformed, or there are more than 62 replicas.
        ServiceError: As `read_vllm_report`.
    """
    found = [vllm_report.read_vllm_report(members, nonce, "model")]
    if not members.has("all_attestations"):
        return found
    for item in members.objects("all_attestations", _MAX_REPLICAS):
        report = vllm_report.read_vllm_report(item, nonce, "model")
        if all(not same_machine(report, one) for one in found):
            found.append(report)
    return found


def same_machine(report: vllm_report.VllmReport, other: vllm_report.VllmReport) -> bool:
    """Return whether two reports have the same quote and keys."""
    same_data = report.machine.report_data == other.machine.report_data
    return same_data and report.quote() == other.quote()


def tls_bindings(
    reports: list[vllm_report.VllmReport], seen: ObservedPeer | None, is_of: str
) -> list[Binding]:
    """Return bindings to the TLS keys that reports name, the observed one first.

    Args:
        reports: Decoded reports; those of version 1 name no TLS key.
        seen: Peer of the connection; None without one.
        is_of: Owner of the keys, as in `Binding`.

    Raises:
        ServiceError: If reports name keys, and none is the observed one (reason `other_key`).
    """
    keys = list(dict.fromkeys(r.fingerprint for r in reports if r.fingerprint is not None))
    if keys and seen is not None:
        if not any(seen.has_key(key) for key in keys):
            message = (
                f"{_WHAT}: names the TLS key {keys[0].hex()}, and the connection has "
                f"{seen.spki_sha256.hex()}: TLS ends elsewhere, or the key has just changed"
            )
            raise ServiceError(message, reason="other_key")
        keys.sort(key=lambda key: not seen.has_key(key))
    return [Binding("tls-spki", key, is_of) for key in keys]


def channel_limits(bindings: Sequence[Binding]) -> tuple[str, ...]:
    """Return what is not verified, in words, if `bindings` do not begin with a TLS key."""
    if bindings[0].kind == "tls-spki":
        return ()
    return ("that the connection ends in the machine: the report names no TLS key",)


def model_limits(reports: list[vllm_report.VllmReport]) -> tuple[str, ...]:
    """Return what the reports of a model leave unverified, in words for `Claims.not_proven`."""
    has_gpus = any(report.machine.gpu is not None for report in reports)
    return (*([_GPUS] if has_gpus else []), _WEIGHTS)
