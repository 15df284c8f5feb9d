"""NEAR AI Cloud: its gateway with the models behind it, and models directly.

The gateway's TLS key is in the gateway's evidence, so that the channel ends there. A model is
reached through it by sealing to the model's key (attested-client.md, 2.3).
"""

import hmac
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._sanitize import shown
from attestkit.client.sealing.fields import FieldSealing
from attestkit.client.services.service import (
    MAX_MACHINES,
    AnswerRecord,
    Binding,
    Claims,
    Machine,
    ObservedPeer,
    Question,
    Signer,
    Where,
)
from attestkit.client.services.strict_answer import (
    list_member,
    object_member,
    only_answer,
    read_answer_object,
    text_of,
)
from attestkit.client.services.vllm.answer_signatures import (
    check_answer_signature,
    signature_question,
)
from attestkit.client.services.vllm.compose_manager import read_compose_manager
from attestkit.client.services.vllm.field_sealing import NEARS, seal_fields
from attestkit.client.services.vllm.ohttp_key import read_ohttp_key
from attestkit.client.services.vllm.vllm_proxy import (
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
    VllmReport,
    read_vllm_report,
    report_bindings,
    signing_keys,
)
from attestkit.errors import FormatError, ServiceError

_WHAT: Final = "attestation report"
_PATH: Final = "/v1/attestation/report"
_SIGNATURE: Final = "/v1/signature/{id}"
_CLOUD: Final = "cloud-api.near.ai"
_DIRECT: Final = ".completions.near.ai"
_ROUTING: Final = (
    "that the model answers which was asked for: the gateway chooses it",
    "that answers and the evidence of gateway and model are of one request",
)


class _NearAi:
    """Common base of the services of gateway and models. Immutable."""

    request_headers: Final = (("X-No-Aliasing", "true"),)
    """Headers for every request: the model that was asked for answers, or none."""

    @property
    def where(self) -> Where:
        """On the wire."""
        return "wire"

    def sealing(
        self,
        claims: Claims,
        binding: Binding,
        model: str | None,
        allow_open: frozenset[str] = frozenset(),
    ) -> FieldSealing:
        """Return what seals the fields of requests to the model's key; `allow_open` as there.

        Raises:
            ServiceError: If the key is of another kind (`sealing`).
        """
        return seal_fields(NEARS, binding, "NEAR AI", model, allow_open)

    def signature_question(self, answer: AnswerRecord, model: str | None) -> Question:
        """Return the request for the signature of an answer.

        Raises:
            ServiceError: If the answer has no valid identifier (`signature`).
        """
        query = {} if model is None else {"model": model}
        return signature_question(_SIGNATURE, answer, {**query, "signing_algo": "ed25519"})

    def check_signature(
        self, document: bytes, answer: AnswerRecord, claims: Claims, model: str | None
    ) -> Signer:
        """Check the signature of an answer, and return whose it is: the model's or the gateway's.

        A gateway that changes a stream signs it itself; that does not show which model answered.

        Raises:
            FormatError: If the document is malformed.
            ServiceError: If it is not a valid signature of this answer (`signature`).
        """
        return check_answer_signature(document, answer, claims, model)

    def _question(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        query = {
            "nonce": check_nonce(nonce).hex(),
            "signing_algo": "ed25519",  # the only one that also attests keys of OHTTP
            "include_tls_fingerprint": "true",
        }
        if model is not None:
            query["model"] = model
        return (Question(f"{_PATH}?{urlencode(query)}"),)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class NearAiCloud(_NearAi):
    """The gateway of NEAR AI Cloud, and the models behind it."""

    name: Final = "near-ai"

    def recognizes(self, host: str) -> bool:
        """Return whether the host is the gateway."""
        return host.lower() == _CLOUD

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return the request for the reports of the gateway and of a model.

        Raises:
            UsageError: If no model is named, or its name is not valid.
        """
        return self._question(nonce, check_model(model, self.name))

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims of the gateway and the models.

        Raises:
            FormatError: If a report is malformed.
            ServiceError: If no model is attested (`ends_at_gateway`), or evidence is of another
                model, nonce or TLS key.
        """
        check_nonce(nonce)
        members = read_answer_object(only_answer(answers), _WHAT)
        if members.get("gateway_attestation") is None:
            message = f"{_WHAT}: has no evidence of the gateway"
            raise ServiceError(message, reason="no_attestation")
        what = "gateway_attestation"
        own = object_member(members, what, _WHAT)
        check_kind(own, nonce)
        gateway = read_vllm_report(own, nonce, "gateway", what)
        _check_certificate(members, gateway)
        models, parts = _read_models(members, nonce, check_model(model, self.name))
        ohttp = read_ohttp_key(members, gateway, _WHAT)
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

    name: Final = "near-ai-direct"

    def recognizes(self, host: str) -> bool:
        """Return whether the host is of a model."""
        label, end = host.lower().removesuffix("."), _DIRECT
        return label.endswith(end) and "." not in label[: -len(end)] and len(label) > len(end)

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return the request for the report; the host has one model, so its name is optional.

        Raises:
            UsageError: If the name of the model is not valid.
        """
        return self._question(nonce, None if model is None else check_model(model, self.name))

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims of the model and its replicas.

        Raises:
            FormatError: If a report is malformed.
            ServiceError: If evidence is of another model, nonce or TLS key.
        """
        check_nonce(nonce)
        members = read_answer_object(only_answer(answers), _WHAT)
        check_kind(members, nonce)
        reports = read_reports(members, nonce, "model")
        for report in reports:
            _check_model_name(report, model)
        parts = _Parts()
        parts.add(members, reports[0], nonce, _WHAT)
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
    """Parts beside the reports of models: compose managers, and keys of OHTTP."""

    def __init__(self) -> None:
        self.machines: list[Machine] = []
        self.limits: list[str] = []
        self.keys: dict[str, bytes] = {}

    def add(self, members: Mapping[str, Any], report: VllmReport, nonce: bytes, what: str) -> None:
        """Read the parts beside one report."""
        manager = read_compose_manager(members, report, nonce, what)
        if manager is not None:
            self.machines.append(manager.machine)
            self.limits.append(manager.limit())
        config = read_ohttp_key(members, report, what)
        if config is not None:
            self.keys.setdefault("ohttp", config)


def _read_models(
    members: Mapping[str, Any], nonce: bytes, model: str
) -> tuple[list[VllmReport], _Parts]:
    items = list_member(members, "model_attestations", _WHAT, (MAX_MACHINES - 1) // 2)
    if not items:
        message = (
            f"{_WHAT}: has no evidence of a machine of {shown(model)}: another provider, which is "
            "not attested, serves it behind the gateway"
        )
        raise ServiceError(message, reason="ends_at_gateway")
    found: list[VllmReport] = []
    parts = _Parts()
    for at, item in enumerate(items):
        what = f"model_attestations[{at}]"
        if not isinstance(item, dict):
            raise FormatError(f"{what}: must be an object", reason="wrong_type")
        check_kind(item, nonce)
        report = read_vllm_report(item, nonce, "model", what)
        _check_model_name(report, model)
        if any(same_machine(report, one) for one in found):
            continue
        found.append(report)
        parts.add(item, report, nonce, what)
    return found, parts


def _check_model_name(report: VllmReport, model: str | None) -> None:
    """Check the name of the model that a report states, if both are known.

    Raises:
        ServiceError: If it is another one (`no_attestation`).
    """
    if model is None or report.model is None or report.model == model:
        return
    message = (
        f"{_WHAT}: is of the model {shown(report.model)}, not of {shown(model)}; pass its own name "
        "as model"
    )
    raise ServiceError(message, reason="no_attestation")


def _check_certificate(members: Mapping[str, Any], gateway: VllmReport) -> None:
    """Check that the stated certificate of the gateway, if any, has the key of its report."""
    if members.get("tls_certificate") is None or gateway.fingerprint is None:
        return
    subject = f"{_WHAT}: tls_certificate"
    try:
        leaf = read_path_certificate(split_pem(text_of(members, "tls_certificate", _WHAT))[0])
    except FormatError as error:
        raise FormatError(f"{subject}: {error}", reason=error.reason) from error
    if not hmac.compare_digest(sha256(leaf.spki), gateway.fingerprint):
        message = f"{subject}: does not have the key of tls_cert_fingerprint"
        raise FormatError(message, reason="inconsistent")


SERVICES: Final = (NearAiCloud(), NearAiDirect())
"""Both services of NEAR AI."""
