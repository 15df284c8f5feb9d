"""Attempts on evidence of GPUs that a message (CMW) or a bundle encloses."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from attestkit._formats.compact_jws import from_base64url, to_base64url
from attestkit.errors import CollateralError, FormatError, GpuEvidenceError, PolicyError
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.gpu.evidence import GpuEvidence
from attestkit.verifier.result import AttestationResult
from tests.attacks.attempts import Surfaces, bound
from tests.gpu.simulated_machine import machine
from tests.verifier.gpu import test_gpu_join as join
from tests.verifier.platforms import intel

attacks = Surfaces("gpu")
NONCE: Final = join.CHALLENGE
TEXT: Final = join.bound().to_bytes("json").decode()
LABEL: Final = '"gpu_evidence"'
RECORD: Final = json.dumps(json.loads(TEXT)["gpu_evidence"])
DATA: Final = from_base64url(json.loads(TEXT)["gpu_evidence"][1], "record")


def verified(text: str, **options: Any) -> AttestationResult:
    """Verify a message whose GPUs are required and bound by the report data."""
    rules = {"required": True, "binding": "report_data"}
    return join.with_rules(**rules).verify(text.encode(), **{"nonce": NONCE, **options})


assert verified(TEXT).gpu
MEDIA: Final = "application/vnd.attestkit.gpu-evidence+json"
OTHER: Final = join.GPUS.evidence(bytes(32)).raw


def with_members(**changes: Any) -> Callable[[], AttestationResult]:
    """Return a verification of the message with other members; None removes one."""
    found = {**json.loads(TEXT), **changes}
    kept = {name: value for name, value in found.items() if value is not None}
    return bound(verified, json.dumps(kept))


def record(data: bytes, media: str = MEDIA, indicator: int = 4) -> list[object]:
    """Return a record."""
    return [media, to_base64url(data), indicator]


MESSAGES: Final[dict[str, tuple[Callable[[], object], type[Any], tuple[str, ...]]]] = {
    "twice": (
        bound(verified, TEXT.replace(LABEL, f"{LABEL}:{RECORD},{LABEL}")),
        FormatError,
        ("duplicate",),
    ),
    "twice, once with an escaped letter": (
        bound(
            verified,
            TEXT.replace('"gpu_evidence"', f'"gpu\\u005fevidence":{RECORD},"gpu_evidence"'),
        ),
        FormatError,
        ("duplicate",),
    ),
    "of another type": (
        with_members(gpu_evidence=record(DATA, "application/json")),
        FormatError,
        ("wrong_value",),
    ),
    "as an endorsement": (
        with_members(gpu_evidence=record(DATA, indicator=2)),
        FormatError,
        ("inconsistent",),
    ),
    "as a result": (
        with_members(gpu_evidence=record(DATA, indicator=8)),
        FormatError,
        ("inconsistent",),
    ),
    "in the place of the configuration": (
        with_members(config=record(DATA)),
        FormatError,
        ("wrong_value",),
    ),
    "under a label in capitals": (
        with_members(gpu_evidence=None, GPU_EVIDENCE=record(DATA)),
        PolicyError,
        ("report_data",),
    ),
    "in a collection of its own": (
        with_members(gpu_evidence={"__cmwc_t": "urn:x:y", "gpu_evidence": record(DATA)}),
        FormatError,
        ("wrong_type",),
    ),
    "with padding": (
        with_members(gpu_evidence=[MEDIA, to_base64url(DATA) + "=", 4]),
        FormatError,
        ("encoding",),
    ),
    "that is empty": (with_members(gpu_evidence=record(b"")), FormatError, ("syntax",)),
    "that is no JSON": (with_members(gpu_evidence=record(b"\xff")), FormatError, ("encoding",)),
    "of an earlier nonce": (
        with_members(gpu_evidence=record(OTHER)),
        PolicyError,
        ("report_data",),
    ),
    "with a space more": (
        with_members(gpu_evidence=record(DATA + b" ")),
        PolicyError,
        ("report_data",),
    ),
    "removed": (with_members(gpu_evidence=None), PolicyError, ("report_data",)),
}
for _name, (_run, _error, _reasons) in MESSAGES.items():
    attacks.add("confuse", f"message with GPUs {_name}", _run, _error, *_reasons)


# -- endorsements of the sender ----------------------------------------------------------------


def sent(endorsements: GpuEndorsements | None, **rules: Any) -> AttestationResult:
    """Verify with endorsements of the sender, as of a request or a bundle."""
    from attestkit.gpu.rules import GpuRules
    from attestkit.verifier import AppraisalPolicy

    policy = AppraisalPolicy.default().replace(gpu=GpuRules(**rules))
    own = join.verifier(policy=policy, gpu_endorsements=None)
    return own.with_gpu_endorsements(endorsements).verify(join.bound(), nonce=NONCE)


GOOD: Final = join.gpu_endorsements()
assert sent(GOOD).gpu
NOW: Final = intel.NOW.timestamp()
STRANGER: Final = machine(2, "rim-other-root").endorsements(NOW)


@attacks.attempt("forge", GpuEvidenceError, "driver_rim_chain")
def manifests_of_the_sender_under_a_root_of_its_own() -> AttestationResult:
    """Roots are the verifier's, whatever is sent."""
    return sent(replace(GOOD, rims=STRANGER.rims))


@attacks.attempt("forge", CollateralError, "missing")
def keys_of_the_service_by_the_sender() -> AttestationResult:
    """Keys that nothing signs are the verifier's own, or missing."""
    from attestkit.report_data import gpu_nonce

    tokens = join.GPUS.endorsements(NOW, gpu_nonce(NONCE))
    assert tokens.jwks
    return sent(tokens, nras="instead")


@attacks.attempt("confuse", CollateralError, "missing")
def no_endorsements_by_the_sender() -> AttestationResult:
    """Missing endorsements are an error, not a passed check."""
    return sent(None)


@attacks.attempt("exhaust", FormatError, "too_large", "too_many")
def devices_whose_json_exceeds_its_limit() -> AttestationResult:
    """A message may be larger than the evidence of GPUs in it."""
    raw = b"[" + b" " * (4 << 20) + GpuEvidence(join.own_evidence().devices).raw[1:]
    return with_members(gpu_evidence=record(raw))()
