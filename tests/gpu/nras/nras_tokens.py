"""Tokens of a simulated attestation service, signed with a key of the tests."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from attestkit.gpu.nras.tokens import NRAS_ISSUER
from tests.pki.ocsp_pki import certificate_of, der, key_of

NOW = datetime(2026, 8, 1, tzinfo=timezone.utc)
NONCE = bytes(range(32))
KEY_ID = "test-key-1"
RIM_FLAGS = ("fetched", "schema-validated", "signature-verified", "measurements-available")


def b64(data: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(header: Mapping[str, Any], claims: Mapping[str, Any], key: str = "nras") -> str:
    """Return a token that is signed with a P-384 key, whatever its header says."""
    signed = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    r, s = decode_dss_signature(key_of(key).sign(signed.encode(), ec.ECDSA(SHA384())))
    return f"{signed}.{b64(r.to_bytes(48, 'big') + s.to_bytes(48, 'big'))}"


def jwk(key: str = "nras", kid: str = KEY_ID, *, x5c: bool = True) -> dict[str, Any]:
    """Return the JWK of a key, with a certificate."""
    numbers = key_of(key).public_key().public_numbers()
    found: dict[str, Any] = {"kty": "EC", "crv": "P-384", "kid": kid}
    found |= {"x": b64(numbers.x.to_bytes(48, "big")), "y": b64(numbers.y.to_bytes(48, "big"))}
    if x5c:
        leaf, issuer = certificate_of(key, "issuer"), certificate_of("issuer", "issuer", serial=7)
        found["x5c"] = [base64.b64encode(der(each)).decode() for each in (leaf, issuer)]
    return found


def jwks(*keys: dict[str, Any]) -> bytes:
    """Return a key set."""
    return json.dumps({"keys": keys or [jwk()]}).encode()


def common_claims() -> dict[str, Any]:
    """Return the claims of every token."""
    issued = int(NOW.timestamp())
    return {
        "iss": NRAS_ISSUER,
        "eat_nonce": NONCE.hex(),
        "iat": issued,
        "nbf": issued,
        "exp": issued + 3600,
        "jti": "5c7c1b5e-0000-4000-8000-000000000000",
    }


def chain(**changes: Any) -> dict[str, Any]:
    """Return the claims about a certificate chain, of version 3.0."""
    return {
        "x-nvidia-cert-status": "valid",
        "x-nvidia-cert-ocsp-status": "good",
        "x-nvidia-cert-expiration-date": "2028-04-23T05:31:21Z",
        "x-nvidia-cert-revocation-reason": None,
        **{f"x-nvidia-cert-{name.replace('_', '-')}": value for name, value in changes.items()},
    }


def device_claims(version: str = "3.0", kind: str = "gpu", nonce: bytes = NONCE) -> dict[str, Any]:
    """Return the claims about a device in good state."""
    prefix, bios = f"x-nvidia-{kind}-", "bios" if kind == "switch" else "vbios"
    rims = [f"{bios}-rim"] if kind == "switch" else ["driver-rim", "vbios-rim"]
    report = "attestation-report"
    flags = ["arch-check", f"{report}-parsed", f"{report}-nonce-match"]
    flags += [f"{report}-signature-verified", f"{bios}-index-no-conflict"]
    flags += [f"{rim}-{flag}" for rim in rims for flag in RIM_FLAGS]
    objects: list[str] = []
    if version == "2.0":
        flags += [f"{report}-cert-chain-validated", *(f"{rim}-cert-validated" for rim in rims)]
    else:
        flags += [f"{report}-cert-chain-fwid-match", *(f"{rim}-version-match" for rim in rims)]
        objects = [f"{name}-cert-chain" for name in (report, *rims)]
    return {
        **common_claims(),
        "eat_nonce": nonce.hex(),
        "measres": "success",
        "secboot": True,
        "dbgstat": "disabled",
        "hwmodel": "GH100 A01 GSP BROM",
        "ueid": "478176379286082186618948445787393647364802107249",
        "oemid": None if kind == "switch" else "5703",
        "x-nvidia-attestation-warning": None,
        f"{prefix}driver-version": "550.90.07",
        f"{prefix}{bios}-version": "96.00.9F.00.01",
        **{prefix + flag: True for flag in flags},
        **{prefix + name: chain() for name in objects},
    }


def overall_claims(devices: Mapping[str, str], **changes: Any) -> dict[str, Any]:
    """Return the claims of the overall token."""
    digests = {
        name: ["DIGEST", ["SHA-256", hashlib.sha256(token.encode()).hexdigest()]]
        for name, token in devices.items()
    }
    return {
        **common_claims(),
        "sub": "NVIDIA-PLATFORM-ATTESTATION",
        "x-nvidia-ver": "3.0",
        "x-nvidia-overall-att-result": True,
        "submods": digests,
        **changes,
    }


HEADER = {"kid": KEY_ID, "alg": "ES384"}
Change = Callable[[dict[str, Any]], object]


def bundle(overall: str, devices: Mapping[str, str]) -> bytes:
    """Return a detached EAT bundle."""
    return json.dumps([["JWT", overall], devices]).encode()


def answer(*claims: dict[str, Any], **changes: Any) -> bytes:
    """Return an answer about GPUs with these claims; `changes` are of the overall claims."""
    found = claims or (device_claims(),)
    devices = {f"GPU-{at}": sign(HEADER, each) for at, each in enumerate(found)}
    return bundle(sign(HEADER, overall_claims(devices, **changes)), devices)
