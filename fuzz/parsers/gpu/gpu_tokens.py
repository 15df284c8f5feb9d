"""Targets: tokens and keys of NVIDIA's attestation service, output of nvattest, endorsements."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any, Final

from attestkit._crypto.hashes import sha256
from attestkit._crypto.p384 import P384_SPKI_HEAD, P384Key, P384PublicKey
from attestkit._formats.compact_jws import to_base64url
from attestkit._formats.strict_json import read_object
from attestkit.errors import CollateralError, FormatError, GpuEvidenceError
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.gpu.nras.claims import DeviceClaims, read_claims
from attestkit.gpu.nras.detached_eat import DetachedEat, read_detached_eat
from attestkit.gpu.nras.nvattest_output import LOCAL_ISSUER, NvattestOutput, read_nvattest_output
from attestkit.gpu.nras.tokens import NRAS_ISSUER, read_jwks, verify_tokens
from fuzz.parsers.contract import ParserTarget, check, obeys, tried

_NOW: Final = datetime(2026, 6, 1, tzinfo=timezone.utc)
_NONCE: Final = bytes(range(32))
_KEY_ID: Final = "k"
_GPU: Final = "x-nvidia-gpu-"


@cache
def _key() -> P384Key:
    return P384Key(27)


def _jwks() -> bytes:
    point = _key().spki[len(P384_SPKI_HEAD) :]
    x, y = to_base64url(point[:48]), to_base64url(point[48:])
    return _json({"keys": [{"kty": "EC", "crv": "P-384", "kid": _KEY_ID, "x": x, "y": y}]})


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _token(claims: Mapping[str, Any], *, signed: bool) -> str:
    header = {"alg": "ES384", "kid": _KEY_ID} if signed else {"alg": "none"}
    text = f"{to_base64url(_json(header))}.{to_base64url(_json(claims))}"
    if not signed:
        return f"{text}."
    r, s = _key().sign(text.encode())
    return f"{text}.{to_base64url(r.to_bytes(48, 'big') + s.to_bytes(48, 'big'))}"


def _common(issuer: str) -> dict[str, Any]:
    issued = int(_NOW.timestamp())
    times = {"iat": issued, "nbf": issued, "exp": issued + 3600}
    return {"iss": issuer, "eat_nonce": _NONCE.hex(), **times}


def _device() -> dict[str, Any]:
    """Return claims of each kind."""
    chain = {
        "x-nvidia-cert-status": "valid",
        "x-nvidia-cert-ocsp-status": "good",
        "x-nvidia-cert-expiration-date": "2028-04-23T05:31:21Z",
        "x-nvidia-cert-revocation-reason": None,
    }
    return {
        "measres": "success",
        "secboot": True,
        "dbgstat": "disabled",
        "ueid": "4781",
        f"{_GPU}driver-version": "550.90.07",
        f"{_GPU}arch-check": True,
        f"{_GPU}attestation-report-cert-chain": chain,
        f"{_GPU}vbios-rim-fetched": False,
        "x-nvidia-mismatch-measurement-records": [],
        "x-nvidia-error-details": {"code": 4010, "message": "NONCE", "description": "other"},
    }


def _bundle(issuer: str, device: Mapping[str, Any], *, signed: bool) -> list[Any]:
    tokens = {"GPU-0": _token({**_common(issuer), **device}, signed=signed)}
    digest = sha256(tokens["GPU-0"].encode()).hex()
    overall = {
        **_common(issuer),
        "x-nvidia-ver": "3.0",
        "x-nvidia-overall-att-result": True,
        "submods": {"GPU-0": ["DIGEST", ["SHA-256", digest]]},
    }
    return [["JWT", _token(overall, signed=signed)], tokens]


def _answers() -> list[bytes]:
    return [_json(_bundle(NRAS_ISSUER, device, signed=True)) for device in (_device(), {})]


def _read(raw: bytes, found: DetachedEat) -> None:
    check("its tokens", found.overall in raw or b"\\" in raw)
    tried(
        lambda: verify_tokens(found, _jwks(), _NONCE, _NOW + timedelta(seconds=1)),
        None,
        *(FormatError, GpuEvidenceError),
    )


def _keys(raw: bytes, found: Mapping[str, P384PublicKey]) -> None:
    check("a key for each name", 0 < len(found) <= len(raw))
    check("keys", all(type(key) is P384PublicKey for key in found.values()))


def _outputs() -> list[bytes]:
    found = []
    for device in (_device(), {}):
        nonce = {"eat_nonce": _NONCE.hex()}
        fields = {
            "claims": [{**nonce, **device}],
            "detached_eat": _bundle(LOCAL_ISSUER, device, signed=False),
            "result_code": 0,
            "result_message": "Ok",
        }
        found.append(_json(fields))
    return found


def _claimed(_raw: bytes, found: NvattestOutput) -> None:
    check("not authenticated", found.is_authenticated is False)
    tried(lambda: found.check(1, _NONCE), None, GpuEvidenceError)


def _claims(raw: bytes) -> DeviceClaims:
    """Read claims alone: hashes and signatures keep changed ones from the other targets."""
    return read_claims(read_object(raw, "claims"), "SWITCH-0" if b"switch" in raw else "GPU-0")


def _stated(_raw: bytes, found: DeviceClaims) -> None:
    problems = (*found.problems(), *found.problems(allow_hold=True))
    check("short texts", all(text.isprintable() and len(text) < 300 for text in problems))


def _claim_samples() -> list[bytes]:
    switch = {name.replace(_GPU, "x-nvidia-switch-"): value for name, value in _device().items()}
    old = {f"{_GPU}attestation-report-cert-chain-validated": True, "secboot": False}
    return [_json(claims) for claims in (_device(), switch, old)]


def _endorsed(_raw: bytes, found: GpuEndorsements) -> None:
    check("the same again", GpuEndorsements.from_json(found.to_json()) == found)


def _endorsements() -> list[bytes]:
    full = GpuEndorsements({"NV_GPU_DRIVER_GH100_1": b"<rim/>"}, (b"answer",), _jwks(), (b"[]",))
    return [full.to_json(), GpuEndorsements().to_json()]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    return [
        ParserTarget(
            "nras_answer",
            obeys(read_detached_eat, FormatError, accepted=_read),
            _answers,
            "json.dict",
        ),
        ParserTarget(
            "jwks",
            obeys(read_jwks, FormatError, accepted=_keys, said=list),
            lambda: [_jwks()],
            "json.dict",
        ),
        ParserTarget(
            "nras_claims",
            obeys(_claims, FormatError, accepted=_stated),
            _claim_samples,
            "json.dict",
        ),
        ParserTarget(
            "nvattest_output",
            obeys(
                read_nvattest_output, FormatError, GpuEvidenceError, accepted=_claimed, grows=True
            ),
            _outputs,
            "json.dict",
        ),
        ParserTarget(
            "gpu_endorsements",
            obeys(GpuEndorsements.from_json, CollateralError, accepted=_endorsed),
            _endorsements,
            "json.dict",
        ),
    ]
