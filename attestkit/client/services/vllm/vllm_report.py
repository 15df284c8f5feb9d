"""One attestation report of vllm-proxy or its derivatives, of Phala, NEAR AI and others.

The report names a signing key, and in version 2 also a TLS key; the report data commit to both and
to the nonce of the client.
"""

import hmac
import json
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from attestkit._crypto.ed25519 import ed25519_has_prime_order
from attestkit._crypto.hashes import sha256
from attestkit._crypto.k256_agreement import ethereum_address, require_k256_point
from attestkit._formats import strict_json
from attestkit._sanitize import shown
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import td_body
from attestkit.client.services import dstack_evidence
from attestkit.client.services.service import Binding, Machine
from attestkit.client.strict_answer import AnswerObject
from attestkit.errors import FormatError, ServiceError, UsageError
from attestkit.gpu.bindings import read_vllm_proxy
from attestkit.gpu.bindings.answer_formats import vllm_proxy_report_data
from attestkit.gpu.evidence import GpuBinding

SigningAlgorithm = Literal["ecdsa", "ed25519"]
"""Algorithm of a signing key: ECDSA over secp256k1 as of Ethereum, or Ed25519."""

_ADDRESS_SIZES: Final[Mapping[str, int]] = {"ecdsa": 20, "ed25519": 32}
_ECHOES: Final = ("request_nonce", "nonce")
_QUOTES: Final = ("intel_quote", "quote")
_HASH_SIZE: Final = 32


class VllmReport(NamedTuple):
    """A decoded report of vllm-proxy, of which only the format is verified."""

    machine: Machine
    algorithm: SigningAlgorithm
    address: bytes  # that the report data have: 20 bytes of ECDSA, the key of Ed25519
    # Ed25519: 32 bytes. ECDSA: uncompressed SEC1, 65 bytes; None if the report has only an address.
    public_key: bytes | None
    fingerprint: bytes | None  # SHA-256 of the SPKI of the TLS key, 32 bytes; version 2 only
    model: str | None  # name of the model, as stated

    def quote(self) -> bytes:
        """Return the raw TDX quote in the evidence of the machine."""
        evidence = self.machine.evidence
        if isinstance(evidence, bytes):
            return evidence
        return evidence.quote.raw if evidence.quote is not None else b""


def read_vllm_report(members: AnswerObject, nonce: bytes, role: str) -> VllmReport:
    """Decode a report of vllm-proxy.

    Args:
        members: Decoded members of the report.
        nonce: Nonce of the request, 32 bytes.
        role: Role of the machine, as in `Machine`.

    Raises:
        FormatError: If it is malformed, or its parts contradict each other.
        ServiceError: If it has no quote (reason `no_attestation`), or states a different nonce
            (`nonce_echo`).
    """
    check_nonce_echo(members, nonce)
    quote = _quote(members)
    algorithm = _algorithm(members)
    address = members.prefixed_hex("signing_address", _ADDRESS_SIZES[algorithm])
    fingerprint = None
    if members.has("tls_cert_fingerprint"):
        fingerprint = members.prefixed_hex("tls_cert_fingerprint", _HASH_SIZE)
    machine = Machine(
        role,
        _evidence(members, quote),
        vllm_proxy_report_data(address, nonce, fingerprint),
        _gpu(members, nonce),
    )
    return VllmReport(
        machine,
        algorithm,
        address,
        _public_key(members, algorithm, address),
        fingerprint,
        members.optional_text("model_name"),
    )


def check_nonce_echo(members: AnswerObject, nonce: bytes) -> None:
    """Check that a nonce which an answer states, if any, is that of the request.

    The stated nonce proves nothing, unlike that in the report data; a different one is refused.

    Args:
        members: Members of the answer.
        nonce: Nonce of the request, 32 bytes.

    Raises:
        FormatError: If it is not hex.
        ServiceError: If it differs (reason `nonce_echo`).
    """
    for name in _ECHOES:
        if not members.has(name):
            continue
        stated = strict_json.from_hex(members[name], f"{members.what}: {name}")
        if not hmac.compare_digest(stated, nonce):
            message = (
                f"{members.what}: {name}: must be the nonce of the request, {nonce.hex()}, not "
                f"{stated.hex()[:64]}: the evidence is not fresh"
            )
            raise ServiceError(message, reason="nonce_echo")


def report_bindings(report: VllmReport, is_of: str) -> list[Binding]:
    """Return the bindings to the report's signing key, which is of `is_of`, such as "model".

    One for encrypted fields, if the report has the public key, and one for signatures of answers.
    """
    found = []
    if report.public_key is not None:
        found.append(Binding("fields", report.public_key, is_of))
    return [*found, Binding("signature", report.address, is_of)]


def signing_keys(reports: list[VllmReport]) -> dict[str, bytes]:
    """Return the signing keys of reports by purpose: `signing-ed25519`, `signing-ed25519[1]` ...

    Each value is the `signing_address` of a report: an Ethereum address (20 bytes), or an Ed25519
    key.
    """
    found: dict[str, bytes] = {}
    for report in reports:
        name = f"signing-{report.algorithm}"
        known = [key for key in found if key.split("[")[0] == name]
        if all(found[key] != report.address for key in known):
            found[f"{name}[{len(known)}]" if known else name] = report.address
    return found


def _quote(members: AnswerObject) -> bytes:
    texts = {members[name] for name in _QUOTES if isinstance(members.get(name), str)}
    if not texts:
        for name in _QUOTES:
            members.optional_text(name)
        raise ServiceError(
            f"{members.what}: must have a TDX quote as intel_quote or quote",
            reason="no_attestation",
        )
    if len(texts) > 1:
        raise members.error(_QUOTES[0], f"must be the same as {_QUOTES[1]}", "inconsistent")
    quote = strict_json.from_hex(texts.pop().removeprefix("0x"), f"{members.what}: {_QUOTES[0]}")
    try:
        td_body(quote)
    except FormatError as error:
        raise FormatError(f"{members.what}: {error}", reason=error.reason) from error
    return quote


def _algorithm(members: AnswerObject) -> SigningAlgorithm:
    name = members.text("signing_algo").lower()
    if name == "ecdsa":
        return "ecdsa"
    if name == "ed25519":
        return "ed25519"
    problem = f"must be ecdsa or ed25519, not {shown(name)}"
    raise members.error("signing_algo", problem, "unsupported_algorithm")


def _public_key(members: AnswerObject, algorithm: SigningAlgorithm, address: bytes) -> bytes | None:
    name = "signing_public_key"
    stated = members.has(name)
    if algorithm == "ed25519":
        if not ed25519_has_prime_order(address):
            problem = "must be an Ed25519 key of prime order"
            raise members.error("signing_address", problem, "wrong_value")
        if stated and members.prefixed_hex(name, 32) != address:
            problem = "must be the same as signing_address"
            raise members.error(name, problem, "inconsistent")
        return address
    if not stated:
        return None
    key = members.prefixed_hex(name, 64, 65)
    key = b"\4" + key if len(key) == 64 else key
    try:
        require_k256_point(key)
    except UsageError as error:
        problem = "must be an uncompressed point of secp256k1"
        raise members.error(name, problem, "wrong_value") from error
    if not hmac.compare_digest(ethereum_address(key), address):
        problem = "must be the key whose hash is signing_address"
        raise members.error(name, problem, "inconsistent")
    return key


def _evidence(members: AnswerObject, quote: bytes) -> Attestation | bytes:
    """Return quote and event log, after checking that the app-compose document is the measured one.

    Args:
        members: Members of the report.
        quote: The raw TDX quote.

    Raises:
        FormatError: If the document is not the measured one, or a part is malformed.
    """
    info, tcb_info = _information(members)
    config = members["vm_config"] if members.has("vm_config") else info.get("vm_config")
    log = members["event_log"] if members.has("event_log") else tcb_info.get("event_log")
    evidence = dstack_evidence.read_dstack_evidence(quote, log, config, members.what)
    dstack_evidence.check_app_compose(evidence, tcb_info.get("app_compose"), members.what)
    return evidence


def _information(members: AnswerObject) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the members `info` and `info.tcb_info` of a report, each empty if it is missing."""
    if not members.has("info"):
        return {}, {}
    info = dstack_evidence.object_of_text(members["info"], f"{members.what}: info")
    if not info.get("tcb_info"):  # missing, or empty text
        return info, {}
    return info, dstack_evidence.object_of_text(info["tcb_info"], f"{members.what}: tcb_info")


def _gpu(members: AnswerObject, nonce: bytes) -> GpuBinding | None:
    payload = members.get("nvidia_payload")
    if not payload:  # missing, or empty on a machine without GPUs
        return None
    if isinstance(payload, dict):
        payload = json.dumps(payload)
    try:
        return read_vllm_proxy({**members, "nvidia_payload": payload}, nonce=nonce)
    except FormatError as error:
        raise FormatError(f"{members.what}: {error}", reason=error.reason) from error


MAX_ACTIONS: Final = 16_384
"""Maximum number of actions, such as starts of programs, in evidence of a compose manager."""

_MEMBER: Final = "compose_manager_attestation"
_SAME: Final = ("mrtd", "mr_config_id", "rtmrs")  # of both quotes


class ComposeManager(NamedTuple):
    """Decoded evidence of a compose manager, the service of NEAR AI that starts the programs.

    Checked when decoded: format, nonce, hash of the actions, and that its quote is of the report's
    TD. The quote is verified later, as `machine`. No policy compares the actions.
    """

    machine: Machine
    actions: int  # number of them

    def limit(self) -> str:
        """Return what the evidence does not show, in words for `Claims.not_proven`."""
        return (
            f"the programs that the compose manager has started: its {self.actions} actions are in "
            "the evidence, and no policy compares them"
        )


def read_compose_manager(
    members: AnswerObject, report: VllmReport, nonce: bytes
) -> ComposeManager | None:
    """Decode the evidence of a compose manager beside a report; None if it is missing.

    A compose manager starts the programs of a TD, and logs its actions.

    Args:
        members: Decoded members of the report.
        report: The report.
        nonce: Nonce of the request, 32 bytes.

    Raises:
        FormatError: If it is malformed, not of the report's TD, or if its report data do not have
            the hash of the actions (reason `inconsistent`).
        ServiceError: If it states a different nonce (`nonce_echo`).
    """
    if not members.has(_MEMBER):
        return None
    found = members.object(_MEMBER)
    check_nonce_echo(found, nonce)
    quote = found.prefixed_hex("quote")
    actions = found.array("actions", MAX_ACTIONS)
    body, own_body = td_body(quote), td_body(report.quote())
    if any(getattr(body, name) != getattr(own_body, name) for name in _SAME):
        raise found.error("quote", "must be of the same TD as the report", "inconsistent")
    digest = _actions_hash(actions, body.report_data[:_HASH_SIZE], found)
    if found.has("actions_hash"):
        stated = found.prefixed_hex("actions_hash", _HASH_SIZE)
        if not hmac.compare_digest(stated, digest):
            raise found.error("actions_hash", "must be the hash of the actions", "inconsistent")
    log, config = found.get("event_log"), found.get("vm_config")
    evidence = dstack_evidence.read_dstack_evidence(quote, log, config, found.what)
    # The same TD as that of the report, so that the same policy applies.
    machine = Machine(report.machine.role, evidence, digest + nonce, is_further=True)
    return ComposeManager(machine, len(actions))


def _actions_hash(actions: list[Any], signed: bytes, found: AnswerObject) -> bytes:
    """Return `signed` if it is the SHA-256 of the actions in JSON, members sorted or not.

    Args:
        actions: Actions that the evidence lists, decoded.
        signed: Hash in the report data of the quote, 32 bytes.
        found: Evidence of the compose manager, which errors name.

    Raises:
        FormatError: If it is not (reason `inconsistent`).
    """
    for by_name in (True, False):
        text = json.dumps(actions, sort_keys=by_name, separators=(",", ":"), ensure_ascii=False)
        digest = sha256(text.encode())
        if hmac.compare_digest(digest, signed):
            return digest
    problem = "must have the hash that is in the report data of the quote"
    raise found.error("actions", problem, "inconsistent")
