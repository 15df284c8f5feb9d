"""NEAR AI Cloud: its gateway with the models behind it, and models directly.

The gateway's TLS key is in the gateway's evidence, so that the channel ends there. A model is
reached through it by encrypting to the model's key.
"""

import hmac
from typing import Final
from urllib.parse import urlencode

from attestkit._crypto.ed25519 import ed25519_verify_strict
from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._sanitize import shown
from attestkit.client.services.service import MAX_MACHINES, Claims, Machine, Question
from attestkit.client.services.vllm.vllm_proxy import (
    NEARS,
    ProtocolsByKey,
    ReportService,
    channel_limits,
    check_kind,
    check_model,
    check_nonce,
    model_limits,
    read_reports,
    same_machine,
    tls_bindings,
)
from attestkit.client.services.vllm.vllm_report import (
    SigningAlgorithm,
    VllmReport,
    read_compose_manager,
    read_vllm_report,
    report_bindings,
    signing_keys,
)
from attestkit.client.strict_answer import AnswerObject, only_answer, read_answer_object
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import FormatError, ServiceError

MAX_SUITES: Final = 8
"""Maximum number of pairs of KDF and AEAD in a key configuration."""

_X25519: Final = 0x0020  # DHKEM(X25519, HKDF-SHA256), RFC 9180
_KEY_SIZE: Final = 32
_HEAD: Final = 1 + 2 + _KEY_SIZE + 2  # key id, KEM, public key, bytes of the suites
_SIZES: Final = tuple(_HEAD + 4 * count for count in range(1, MAX_SUITES + 1))


def read_ohttp_key(members: AnswerObject, report: VllmReport) -> bytes | None:
    """Return the OHTTP key configuration (RFC 9458, section 3) that a report attests, or None.

    Args:
        members: Members with `ohttp_attestation` and `ohttp_key_config`, both optional.
        report: The report whose signing key must have signed it. Of an ECDSA report the key of the
            signature, which is an Ed25519 key, is not attested, and the result is None.

    Raises:
        FormatError: If a member is malformed, or the two configurations differ (reason
            `inconsistent`).
        ServiceError: If the signature of the configuration is not valid (reason `signature`).
    """
    if not members.has("ohttp_attestation"):
        return None
    found = members.object("ohttp_attestation")
    found.constant("signing_algo", "ed25519")
    key = found.prefixed_hex("signing_key", _KEY_SIZE)
    config = found.prefixed_hex("key_config", *_SIZES)
    _check_config(config, found)
    if not ed25519_verify_strict(key, found.prefixed_hex("signature", 64), config):
        message = f"{found.what}: signature: not valid for key_config and signing_key"
        raise ServiceError(message, reason="signature")
    if members.has("ohttp_key_config"):
        stated = members.prefixed_hex("ohttp_key_config", *_SIZES)
        if not hmac.compare_digest(stated, config):
            raise members.error("ohttp_key_config", "must be the signed one", "inconsistent")
    attested = report.algorithm == "ed25519" and hmac.compare_digest(key, report.address)
    return config if attested else None


def _check_config(config: bytes, found: AnswerObject) -> None:
    """Check KEM and sizes in an OHTTP key configuration, whose total size is one of `_SIZES`."""
    kem = int.from_bytes(config[1:3], "big")
    if kem != _X25519:
        problem = f"KEM {kem:#06x}, must be {_X25519:#06x} (X25519)"
        raise found.error("key_config", problem, "unsupported_algorithm")
    if int.from_bytes(config[_HEAD - 2 : _HEAD], "big") != len(config) - _HEAD:
        problem = "the stated size of the algorithms is not the number of remaining bytes"
        raise found.error("key_config", problem, "wrong_size")


_WHAT: Final = "attestation report"
_PATH: Final = "/v1/attestation/report"
_CLOUD: Final = "cloud-api.near.ai"
_DIRECT: Final = ".completions.near.ai"
_ROUTING: Final = (
    "that the model answers which was asked for: the gateway chooses it",
    "that answers and the evidence of gateway and model are of one request",
)


class _NearAi(ReportService):
    """Common base of NEAR AI's two services: gateway with models, and one model. Immutable."""

    request_headers: Final = (("X-No-Aliasing", "true"),)
    """Headers of every request: no other model may answer in place of the requested one."""

    algorithm: SigningAlgorithm = "ed25519"  # the only one that also attests keys of OHTTP
    protocols: ProtocolsByKey = NEARS

    def _question(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        query = {
            "nonce": check_nonce(nonce).hex(),
            "signing_algo": self.algorithm,
            "include_tls_fingerprint": "true",
        }
        if model is not None:
            query["model"] = model
        return (Question(f"{_PATH}?{urlencode(query)}"),)


class NearAiCloud(_NearAi):
    """The gateway of NEAR AI Cloud, and the models behind it."""

    name: str = "near-ai"

    def recognizes(self, host: str) -> bool:
        """Return whether the host is the gateway."""
        return host.lower() == _CLOUD

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return the request for the reports of the gateway and of a model.

        Args:
            nonce: Nonce of the client, 32 bytes.
            model: Name of the AI model; None is an error.

        Raises:
            UsageError: If no model is named, or its name is not valid.
        """
        return self._question(nonce, check_model(model, self.name))

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims of the gateway and the models; evidence is verified later.

        Args:
            answers: Body of the only answer.
            nonce: Nonce that was sent, 32 bytes.
            seen: TLS peer of the connection, whose key must be in the gateway's report; None: the
                key is not compared.
            model: Name of the AI model, which its reports must state if they state one.

        Raises:
            FormatError: If a report is malformed.
            ServiceError: If the answer has no evidence of a model (reason `ends_at_gateway`), or
                evidence is not for this model, nonce or TLS key.
            UsageError: If there is not exactly one answer, `model` is missing or not a valid name,
                or the nonce is not 32 bytes.
        """
        check_nonce(nonce)
        members = read_answer_object(only_answer(answers), _WHAT)
        if not members.has("gateway_attestation"):
            message = f"{_WHAT}: must have gateway_attestation, evidence of the gateway"
            raise ServiceError(message, reason="no_attestation")
        own = members.object("gateway_attestation")
        check_kind(own, nonce)
        gateway = read_vllm_report(own, nonce, "gateway")
        _check_certificate(members, gateway)
        models, parts = _read_models(members, nonce, check_model(model, self.name))
        ohttp = read_ohttp_key(members, gateway)
        bindings = [
            *tls_bindings([gateway], seen, "gateway"),
            *report_bindings(models[0], "model"),
        ]
        keys = signing_keys(models)
        keys |= {f"gateway-{name}": key for name, key in signing_keys([gateway]).items()}
        if ohttp is not None:
            keys["gateway-ohttp"] = ohttp
        return Claims(
            machines=(
                gateway.machine,
                *(report.machine for report in models),
                *parts.machines,
            ),
            bindings=tuple(bindings),
            freshness="nonce",
            not_proven=(
                *model_limits(models),
                *parts.limits,
                *channel_limits(bindings),
                *_ROUTING,
            ),
            keys=keys | parts.keys,
        )


class NearAiDirect(_NearAi):
    """A model of NEAR AI at its own host, NAME.completions.near.ai."""

    name: str = "near-ai-direct"

    def recognizes(self, host: str) -> bool:
        """Return whether the host is of a model."""
        label, end = host.lower().removesuffix("."), _DIRECT
        return label.endswith(end) and "." not in label[: -len(end)] and len(label) > len(end)

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return the request for the report; the host has one model, so its name is optional.

        Args:
            nonce: Nonce of the client, 32 bytes.
            model: Name of the AI model; None names none.

        Raises:
            UsageError: If the name of the model is not valid.
        """
        return self._question(nonce, None if model is None else check_model(model, self.name))

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims of the model and its replicas; evidence is verified later.

        Args:
            answers: Body of the only answer.
            nonce: Nonce that was sent, 32 bytes.
            seen: TLS peer of the connection, whose key must be in a report; None: the key is not
                compared.
            model: Name of the AI model, which reports must state if they state one; None for any.

        Raises:
            FormatError: If a report is malformed.
            ServiceError: If evidence is not for this model, nonce or TLS key.
            UsageError: If there is not exactly one answer, or the nonce is not 32 bytes.
        """
        check_nonce(nonce)
        members = read_answer_object(only_answer(answers), _WHAT)
        check_kind(members, nonce)
        reports = read_reports(members, nonce)
        for report in reports:
            _check_model_name(report, model)
        parts = _Parts()
        parts.add(members, reports[0], nonce)
        bindings = (
            *tls_bindings(reports, seen, "model"),
            *report_bindings(reports[0], "model"),
        )
        return Claims(
            machines=(*(report.machine for report in reports), *parts.machines),
            bindings=bindings,
            freshness="nonce",
            not_proven=(*model_limits(reports), *parts.limits, *channel_limits(bindings)),
            keys=signing_keys(reports) | parts.keys,
        )


class _Parts:
    """Collector of optional parts of reports: evidence of compose managers, and keys of OHTTP."""

    def __init__(self) -> None:
        self.machines: list[Machine] = []
        self.limits: list[str] = []
        self.keys: dict[str, bytes] = {}

    def add(self, members: AnswerObject, report: VllmReport, nonce: bytes) -> None:
        """Add compose manager and OHTTP key beside one report, if there are any.

        Args:
            members: Object of the answer that may have them.
            report: The report of the same object.
            nonce: Nonce of the request, 32 bytes.
        """
        manager = read_compose_manager(members, report, nonce)
        if manager is not None:
            self.machines.append(manager.machine)
            self.limits.append(manager.limit())
        config = read_ohttp_key(members, report)
        if config is not None:
            self.keys.setdefault("ohttp", config)


def _read_models(
    members: AnswerObject, nonce: bytes, model: str
) -> tuple[list[VllmReport], _Parts]:
    items = members.objects("model_attestations", (MAX_MACHINES - 1) // 2)
    if not items:
        message = (
            f"{_WHAT}: has no evidence of a machine of {shown(model)}: another provider, which is "
            "not attested, serves it behind the gateway"
        )
        raise ServiceError(message, reason="ends_at_gateway")
    found: list[VllmReport] = []
    parts = _Parts()
    for item in items:
        check_kind(item, nonce)
        report = read_vllm_report(item, nonce, "model")
        _check_model_name(report, model)
        if any(same_machine(report, one) for one in found):
            continue
        found.append(report)
        parts.add(item, report, nonce)
    return found, parts


def _check_model_name(report: VllmReport, model: str | None) -> None:
    """Check the name of the model that a report states, if both are known.

    Raises:
        ServiceError: If they differ (reason `no_attestation`).
    """
    if model is None or report.model is None or report.model == model:
        return
    message = (
        f"{_WHAT}: model must be {shown(model)}, not {shown(report.model)}; pass its own name as "
        "model"
    )
    raise ServiceError(message, reason="no_attestation")


def _check_certificate(members: AnswerObject, gateway: VllmReport) -> None:
    """Check that the stated certificate of the gateway, if any, has the key of its report."""
    if not members.has("tls_certificate") or gateway.fingerprint is None:
        return
    try:
        leaf = read_path_certificate(split_pem(members.text("tls_certificate"))[0])
    except FormatError as error:
        raise members.error("tls_certificate", str(error), error.reason) from error
    if not hmac.compare_digest(sha256(leaf.spki), gateway.fingerprint):
        problem = "must have the key of tls_cert_fingerprint"
        raise members.error("tls_certificate", problem, "inconsistent")


SERVICES: Final = (NearAiCloud(), NearAiDirect())
"""Both services of NEAR AI."""
