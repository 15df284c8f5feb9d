"""Tokens of NVIDIA's service count only if all signatures, times, nonces and hashes hold."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestkit.errors import AttestKitError, FormatError, GpuEvidenceError, UsageError
from attestkit.gpu.nras.detached_eat import DetachedEat, read_detached_eat
from attestkit.gpu.nras.tokens import CLOCK_SKEW, NRAS_ISSUER, NrasResult, verify_tokens
from tests.gpu.nras.nras_tokens import (
    HEADER,
    KEY_ID,
    NONCE,
    NOW,
    answer,
    b64,
    bundle,
    chain,
    common_claims,
    device_claims,
    jwk,
    jwks,
    overall_claims,
    sign,
)
from tests.pki.ocsp_pki import key_of
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import limited
from tests.vectors import HAVE_SHARED, data, needs_shared

FOLDER = "gpu/eat/nras-hopper"
EXPECTED: dict[str, Any] = (
    json.loads(data("gpu/expected.json"))["eat"]["eat/nras-hopper/detached_eat.json"]
    if HAVE_SHARED
    else {}
)
ISSUED = datetime.fromtimestamp(1749601858, timezone.utc)
REAL_NONCE = bytes.fromhex("931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb")
SECOND = timedelta(seconds=1)


def verify(found: bytes | DetachedEat, **options: Any) -> NrasResult:
    """Verify an answer of the tests' service."""
    arguments = {"jwks": jwks(), "nonce": NONCE, "now": NOW + SECOND, **options}
    return verify_tokens(found, **arguments)


def real(now: datetime = ISSUED, nonce: bytes = REAL_NONCE) -> NrasResult:
    """Verify the real answer, with the key that was computed from its signatures."""
    keys = data(f"{FOLDER}/recovered-jwks.json")
    return verify_tokens(data(f"{FOLDER}/detached_eat.json"), keys, nonce, now)


@needs_shared
def test_verify_tokens_real_answer_has_expected_values() -> None:
    """Every claim of NVIDIA's answer is that of the vectors, which another program decoded."""
    found = real()
    overall, claims = EXPECTED["overall"], EXPECTED["device_claims"]["GPU-0"]
    assert {**found.claims} == {**overall, "submods": EXPECTED["submods"]}
    assert (found.version, found.key_id) == ("3.0", EXPECTED["headers"]["overall"]["kid"])
    assert found.key_id == EXPECTED["recovered_key"]["kid"]
    assert (found.issued_at, found.expires_at) == (ISSUED, ISSUED + timedelta(hours=1))
    (device,) = found.devices
    assert {**device.claims} == claims == json.loads(data(f"{FOLDER}/decoded.json"))["GPU-0"]
    assert (device.name, device.kind, device.version) == ("GPU-0", "gpu", "3.0")
    assert device.nonce == bytes.fromhex(claims["eat_nonce"])
    texts = (device.hardware_model, device.ueid, device.oem_id, device.debug_status)
    assert texts == tuple(claims[name] for name in ("hwmodel", "ueid", "oemid", "dbgstat"))
    assert device.driver_version == claims["x-nvidia-gpu-driver-version"]
    assert device.vbios_version == claims["x-nvidia-gpu-vbios-version"]
    assert device.problems() == ()
    assert (device.warning, device.mismatches, device.error) == (None, None, None)
    for name, chain_claims in {
        "attestation-report": device.certificates,
        "driver-rim": device.driver_rim and device.driver_rim.certificates,
        "vbios-rim": device.vbios_rim.certificates,
    }.items():
        stated = claims[f"x-nvidia-gpu-{name}-cert-chain"]
        assert chain_claims is not None
        assert chain_claims.expires_at is not None
        values = (
            chain_claims.status,
            chain_claims.ocsp_status,
            f"{chain_claims.expires_at:%Y-%m-%dT%H:%M:%SZ}",
            chain_claims.revocation_reason,
        )
        assert values == tuple(stated.values())


@needs_shared
def test_verify_tokens_real_answer_only_in_its_hour_and_for_its_nonce() -> None:
    """NVIDIA's tokens hold for an hour."""
    assert real(ISSUED - CLOCK_SKEW).version == "3.0"
    assert real(ISSUED + timedelta(hours=1) + CLOCK_SKEW - SECOND).version == "3.0"
    for now in (ISSUED - CLOCK_SKEW - SECOND, ISSUED + timedelta(hours=1) + CLOCK_SKEW):
        with raises(GpuEvidenceError, "nras_time"):
            real(now)
    with raises(GpuEvidenceError, "nras_nonce", device=None):
        real(nonce=NONCE)


@needs_shared
@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["overall", "GPU-0"])
def test_verify_tokens_any_changed_character_of_real_tokens_is_refused(
    name: str, step: int
) -> None:
    """A change of any character of a token is refused, in header, claims and signature."""
    found = read_detached_eat(data(f"{FOLDER}/detached_eat.json"))
    keys = data(f"{FOLDER}/recovered-jwks.json")
    token = found.overall if name == "overall" else found.devices[name]
    assert verify_tokens(found, keys, REAL_NONCE, ISSUED).version == "3.0"
    for at in limited(range(0, len(token), step)):
        altered = token[:at] + (b"A" if token[at] != 65 else b"B") + token[at + 1 :]
        changed = (
            found._replace(overall=altered)
            if name == "overall"
            else found._replace(devices={name: altered})
        )
        with pytest.raises(AttestKitError):
            verify_tokens(changed, keys, REAL_NONCE, ISSUED)


def test_verify_tokens_of_several_devices() -> None:
    """An answer about several devices has the claims of all, in the order of their numbers."""
    claims = [device_claims() | {"ueid": str(at)} for at in range(12)]
    found = verify(answer(*claims))
    assert [device.ueid for device in found.devices] == [str(at) for at in range(12)]
    assert [device.name for device in found.devices] == [f"GPU-{at}" for at in range(12)]


def test_verify_tokens_of_claims_2_and_of_switches() -> None:
    """Claims of version 2.0, and those of a switch, have the same form."""
    (device,) = verify(answer(device_claims("2.0"), **{"x-nvidia-ver": "2.0"})).devices
    assert (device.version, device.problems()) == ("2.0", ())
    tokens = {"SWITCH-0": sign(HEADER, device_claims(kind="switch"))}
    (switch,) = verify(bundle(sign(HEADER, overall_claims(tokens)), tokens)).devices
    assert (switch.kind, switch.driver_rim, switch.problems()) == ("switch", None, ())


def _with(overall: dict[str, Any] | None = None, device: dict[str, Any] | None = None) -> bytes:
    """Return an answer with other claims; a claim of None is left out."""
    claims = {**device_claims(), **(device or {})}
    stated = {name: value for name, value in claims.items() if value is not ...}
    devices = {"GPU-0": sign(HEADER, stated)}
    changed = overall_claims(devices, **(overall or {}))
    kept = {name: value for name, value in changed.items() if value is not ...}
    return bundle(sign(HEADER, kept), devices)


START = int(NOW.timestamp())
CLAIM_ATTACKS = [
    ({"iss": "https://nras.example"}, "nras_key"),
    ({"iss": ...}, "nras_key"),
    ({"iss": NRAS_ISSUER + "/"}, "nras_key"),
    ({"eat_nonce": (b"\1" * 32).hex()}, "nras_nonce"),
    ({"exp": START - 61}, "nras_time"),
    ({"exp": START}, "nras_time"),
    ({"exp": START - 61, "iat": START - 3661, "nbf": START - 3661}, "nras_time"),
    ({"iat": START + 3600, "exp": START + 7200}, "nras_time"),
    ({"nbf": START + 3600, "exp": START + 7200}, "nras_time"),
]


@every_case(("claims", "reason"), CLAIM_ATTACKS)
@every_case("place", ["overall", "device"])
def test_verify_tokens_with_other_issuer_nonce_or_time_is_refused(
    claims: dict[str, Any], reason: str, place: str
) -> None:
    """Issuer, nonce and times of the overall token and of each device's token are checked."""
    with raises(GpuEvidenceError, reason, device=None if place == "overall" else 0):
        verify(_with(**{place: claims}))


@every_case(
    "claims",
    [
        {"eat_nonce": ...},
        {"eat_nonce": "ab"},
        {"eat_nonce": [NONCE.hex()]},
        {"exp": ...},
        {"iat": ...},
        {"nbf": ...},
        {"exp": "soon"},
        {"exp": START + 3600.5},
        {"exp": True},
        {"exp": -1},
        {"exp": 1 << 62},
    ],
)
@every_case("place", ["overall", "device"])
def test_verify_tokens_with_malformed_claim_raises_format_error(
    claims: dict[str, Any], place: str
) -> None:
    """A nonce or a time that is missing or malformed is refused."""
    with raises(FormatError, "missing", "wrong_size", "wrong_type", "wrong_value"):
        verify(_with(**{place: claims}))


@every_case(
    ("header", "reason"),
    [
        ({"alg": "none", "kid": KEY_ID}, "nras_signature"),
        ({"alg": "ES256", "kid": KEY_ID}, "nras_signature"),
        ({"alg": "es384", "kid": KEY_ID}, "nras_signature"),
        ({"alg": "HS256", "kid": KEY_ID}, "nras_signature"),
        ({"alg": ["ES384"], "kid": KEY_ID}, "nras_signature"),
        ({"kid": KEY_ID}, "nras_signature"),
        ({"alg": "ES384", "kid": KEY_ID, "crit": ["b64"], "b64": False}, "nras_signature"),
        ({"alg": "ES384", "kid": KEY_ID, "jwk": jwk()}, "nras_signature"),
        ({"alg": "ES384", "kid": KEY_ID, "typ": "at+jwt"}, "nras_signature"),
        ({"alg": "ES384", "kid": "other"}, "nras_key"),
        ({"alg": "ES384", "kid": ""}, "nras_key"),
        ({"alg": "ES384", "kid": 1}, "nras_key"),
        ({"alg": "ES384"}, "nras_key"),
    ],
)
def test_verify_tokens_with_other_header_is_refused(header: dict[str, Any], reason: str) -> None:
    """The algorithm is ES384, the key is one of the set, and no header field changes that."""
    devices = {"GPU-0": sign(HEADER, device_claims())}
    with raises(GpuEvidenceError, reason, device=None):
        verify(bundle(sign(header, overall_claims(devices)), devices))
    devices = {"GPU-0": sign(header, device_claims())}
    with raises(GpuEvidenceError, reason, device=0):
        verify(bundle(sign(HEADER, overall_claims(devices)), devices))


def test_verify_tokens_with_typ_is_accepted() -> None:
    """The type JWT may be stated."""
    devices = {"GPU-0": sign(HEADER | {"typ": "JWT"}, device_claims())}
    assert verify(bundle(sign(HEADER, overall_claims(devices)), devices)).version == "3.0"


def _unsigned(claims: dict[str, Any]) -> str:
    header = b64(json.dumps({"alg": "none"}).encode())
    return f"{header}.{b64(json.dumps(claims).encode())}."


def _hs256(secret: bytes, claims: dict[str, Any]) -> str:
    header = json.dumps({"alg": "HS256", "kid": KEY_ID}).encode()
    signed = f"{b64(header)}.{b64(json.dumps(claims).encode())}"
    return f"{signed}.{b64(hmac.digest(secret, signed.encode(), 'sha256'))}"


def _secrets() -> list[bytes]:
    """Return what attackers take as the secret of HS256: the public key in several forms."""
    public = key_of("nras").public_key()
    spki = PublicFormat.SubjectPublicKeyInfo
    return [
        b"secret",
        public.public_bytes(Encoding.PEM, spki),
        public.public_bytes(Encoding.DER, spki),
        jwks(),
    ]


def test_verify_tokens_with_alg_none_or_hs256_are_refused() -> None:
    """A token without signature, or with one by the public key as a secret, is refused."""
    makers: list[Callable[[dict[str, Any]], str]] = [_unsigned]
    makers += [partial(_hs256, secret) for secret in _secrets()]
    for make in makers:
        devices = {"GPU-0": make(device_claims())}
        with raises(GpuEvidenceError, "nras_signature", device=0):
            verify(bundle(sign(HEADER, overall_claims(devices)), devices))
        devices = {"GPU-0": sign(HEADER, device_claims())}
        with raises(GpuEvidenceError, "nras_signature", device=None):
            verify(bundle(make(overall_claims(devices)), devices))


def test_verify_tokens_signed_with_other_key_are_refused() -> None:
    """A signature by another key is refused, also under the identifier of a known key."""
    devices = {"GPU-0": sign(HEADER, device_claims(), "attacker")}
    with raises(GpuEvidenceError, "nras_signature", device=0):
        verify(bundle(sign(HEADER, overall_claims(devices)), devices))
    devices = {"GPU-0": sign(HEADER, device_claims())}
    with raises(GpuEvidenceError, "nras_signature", device=None):
        verify(bundle(sign(HEADER, overall_claims(devices), "attacker"), devices))
    keys = jwks(jwk(), jwk("attacker", "test-key-2"))
    with raises(GpuEvidenceError, "nras_signature", device=None):
        verify(bundle(sign(HEADER, overall_claims(devices), "attacker"), devices), jwks=keys)
    with raises(GpuEvidenceError, "nras_key"):
        verify(answer(), jwks=jwks(jwk("attacker", "test-key-2")))


@every_case("size", [0, 64, 95, 97, 192])
def test_verify_tokens_with_signature_of_other_size_is_refused(size: int) -> None:
    """A signature has 96 bytes."""
    devices = {"GPU-0": sign(HEADER, device_claims())}
    token = sign(HEADER, overall_claims(devices))
    padded = base64.urlsafe_b64decode(token.rpartition(".")[2]) + bytes(96)
    cut = f"{token.rpartition('.')[0]}.{b64(padded[:size])}"
    with raises(GpuEvidenceError, "nras_signature"):
        verify(bundle(cut, devices))


def test_verify_tokens_devices_must_be_those_of_the_overall_token() -> None:
    """A device's token that is added, left out, exchanged or altered is refused."""
    first, second = (sign(HEADER, device_claims() | {"ueid": ueid}) for ueid in ("1", "2"))
    both = {"GPU-0": first, "GPU-1": second}
    overall = sign(HEADER, overall_claims(both))
    assert len(verify(bundle(overall, both)).devices) == 2
    for devices in (
        {"GPU-0": first},
        {"GPU-1": second},
        {**both, "GPU-2": second},
        {"GPU-0": first, "GPU-2": second},
        {"GPU-0": first, "SWITCH-1": second},
    ):
        with raises(GpuEvidenceError, "nras_digest", device=None):
            verify(bundle(overall, devices))
    with raises(GpuEvidenceError, "nras_digest", device=0):
        verify(bundle(overall, {"GPU-0": second, "GPU-1": first}))
    with raises(GpuEvidenceError, "nras_digest", device=1):
        verify(bundle(overall, {"GPU-0": first, "GPU-1": first}))
    again = sign(HEADER, device_claims() | {"ueid": "1"})  # the same claims, signed anew
    with raises(GpuEvidenceError, "nras_digest", device=0):
        verify(bundle(overall, {"GPU-0": again, "GPU-1": second}))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@every_case(
    "change",
    [
        lambda digest: ["DIGEST", ["SHA-256", digest.upper()]],
        lambda digest: ["DIGEST", ["SHA-256", digest[:-2]]],
        lambda digest: ["DIGEST", ["SHA-256", f" {digest}"]],
        lambda digest: ["DIGEST", ["sha-256", digest]],
        lambda digest: ["DIGEST", ["SHA256", digest]],
        lambda digest: ["DIGEST", ["SHA-384", digest]],
        lambda digest: ["digest", ["SHA-256", digest]],
        lambda digest: ["DIGEST", ["SHA-256", digest, digest]],
        lambda _: ["DIGEST", ["SHA-256", 1]],
        lambda digest: ["DIGEST", digest],
        lambda digest: digest,
        lambda _: None,
    ],
)
def test_verify_tokens_with_malformed_digest_raises_format_error(
    change: Callable[[str], object],
) -> None:
    """A digest has exactly one form."""
    token = sign(HEADER, device_claims())
    overall = overall_claims({}, submods={"GPU-0": change(_digest(token))})
    with raises(FormatError, "encoding", "wrong_value"):
        verify(bundle(sign(HEADER, overall), {"GPU-0": token}))


@every_case("submods", [None, [], {}, {"GPU-A": []}])
def test_verify_tokens_without_submods_raises_format_error(submods: object) -> None:
    """The overall token names the devices."""
    token = sign(HEADER, device_claims())
    with raises(FormatError, "missing", "wrong_type", "wrong_value"):
        verify(bundle(sign(HEADER, overall_claims({}, submods=submods)), {"GPU-0": token}))


def test_verify_tokens_with_result_false_names_the_errors() -> None:
    """If the service did not accept the evidence, the error names its reasons."""
    error = {"code": 4010, "message": "NONCE_NOT_MATCHING", "description": "other nonce"}
    refused = common_claims() | {"x-nvidia-error-details": error, "eat_nonce": None}
    with raises(GpuEvidenceError, "nras_result", device=1, part="4010"):
        verify(answer(device_claims(), refused, **{"x-nvidia-overall-att-result": False}))
    with raises(GpuEvidenceError, "nras_result", device=None):
        verify(answer(**{"x-nvidia-overall-att-result": False}))
    with raises(GpuEvidenceError, "nras_result", device=1):
        verify(answer(device_claims(), refused))
    for value in (None, "true", 1):
        with raises(FormatError, "missing", "wrong_type"):
            verify(answer(**{"x-nvidia-overall-att-result": value}))


def test_verify_tokens_with_bad_claim_is_refused_despite_the_result() -> None:
    """The claims of each device must be good, too."""
    bad = device_claims() | {"secboot": False}
    with raises(GpuEvidenceError, "nras_result", device=1, part="GPU-1"):
        verify(answer(device_claims(), bad))


def test_verify_tokens_with_rim_on_hold() -> None:
    """A RIM's certificate on hold is accepted on request; a device's is not."""
    hold = chain(status="revoked", ocsp_status="revoked", revocation_reason="certificateHold")
    rim = device_claims() | {"x-nvidia-gpu-driver-rim-cert-chain": hold}
    with raises(GpuEvidenceError, "nras_result"):
        verify(answer(rim))
    assert verify(answer(rim), allow_hold=True).devices[0].driver_rim is not None
    device = device_claims() | {"x-nvidia-gpu-attestation-report-cert-chain": hold}
    with raises(GpuEvidenceError, "nras_result"):
        verify(answer(device), allow_hold=True)


def test_verify_tokens_with_other_version_raises_format_error() -> None:
    """Versions of tokens that are not known are refused."""
    versions: list[Any] = ["5.0", "3", None, 3.0, [], {}]
    for version in versions:
        with raises(FormatError, "unsupported_version"):
            verify(answer(**{"x-nvidia-ver": version}))
    assert verify(answer(**{"x-nvidia-ver": "4.0"})).version == "4.0"


def test_verify_tokens_with_nonce_of_wrong_size_raises_usage_error() -> None:
    """The nonce of a request has 32 bytes."""
    with raises(UsageError, "wrong_size"):
        verify(answer(), nonce=b"")
