"""Simulated NVIDIA Remote Attestation Service (NRAS): appraises evidence, and signs tokens.

Tokens are JWTs, with those of the devices in a detached EAT bundle. The key is derived from the
seed and the day; its certificate is in the key set, because NVIDIA's Python SDK takes the key from
there. The issuer is the real service's name, which verifiers require; they trust the key set.
"""

import json
import re
import uuid
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit._crypto.p384 import P384_SPKI_HEAD, P384Key
from attestkit._crypto.x509.simulated.cloud_certificates import (
    SIMULATED_MARK,
    encode_name,
    issue_cloud_leaf,
)
from attestkit._formats.compact_jws import to_base64url
from attestkit._formats.strict_json import from_hex, read
from attestkit._outcomes.steps import GpuReason
from attestkit.backends.simulator.gpu.deviations import NrasFault
from attestkit.backends.simulator.pki import cloud_pki
from attestkit.backends.simulator.service_response import ServiceResponse, json_response
from attestkit.errors import AttestKitError, FormatError, GpuEvidenceError
from attestkit.gpu import DeviceEvidence, GpuEvidence, Report
from attestkit.gpu.device.device_chain import DeviceChain, read_device_chain
from attestkit.gpu.evidence import read_devices


def compact_json(value: object) -> bytes:
    """Return `value` as JSON without spaces, with members in the order of their names."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def encode_token(
    header: Mapping[str, str],
    claims: Mapping[str, Any],
    sign: Callable[[bytes], bytes] = lambda _: b"",
) -> str:
    """Return a compact JWT of `header` and `claims`; an identifier of the claims (`jti`) is added.

    `sign` returns the signature of encoded header and claims; by default it is empty.
    """
    content = dict(claims)
    content["jti"] = str(uuid.UUID(bytes=sha256(compact_json(content))[:16]))
    signed = f"{to_base64url(compact_json(header))}.{to_base64url(compact_json(content))}"
    return f"{signed}.{to_base64url(sign(signed.encode()))}"


def overall_claims(
    version: str, nonce: str, digests: Mapping[str, str], algorithm: str, *, accepted: bool
) -> dict[str, Any]:
    """Return the claims of NRAS's overall token, which lists the tokens of the devices.

    Args:
        version: Version that the token states: "2.0", "3.0" or "4.0".
        nonce: Nonce of the evidence in hex.
        digests: Digest of each device's token in hex, by the name of the device.
        algorithm: Name of the digests' algorithm, which service and nvattest write differently.
        accepted: Whether all devices were accepted.
    """
    return {
        "sub": "NVIDIA-PLATFORM-ATTESTATION",
        "x-nvidia-ver": version,
        "x-nvidia-overall-att-result": accepted,
        "eat_nonce": nonce,
        "submods": {name: ["DIGEST", [algorithm, digest]] for name, digest in digests.items()},
    }


def token_digests(tokens: Mapping[str, str]) -> dict[str, str]:
    """Return the SHA-256 of each token (JWT) in hex, by the same names as `tokens`."""
    return {name: sha256(token.encode()).hex() for name, token in tokens.items()}


_MANUFACTURER: Final = "5703"
_FAR: Final = "9999-12-31T23:59:59Z"
_RIM_CHECKS: Final = ("fetched", "schema-validated", "signature-verified", "measurements-available")
# Code of the service by the reason of the first check that fails.
_CODES: Final = {
    "nonce": (4010, "NONCE_NOT_MATCHING", "The nonce is not that of the evidence"),
    "report_signature": (4013, "SIGNATURE_INVALID", "The signature of the report is not valid"),
    "device_chain": (4007, "CERT_CHAIN_INVALID", "The certificate chain is not valid"),
    "device_ocsp": (4014, "CERT_REVOKED", "A certificate of the chain is not in good state"),
    "driver_rim_signature": (5013, "RIM_SIGNATURE_INVALID", "A RIM has no valid signature"),
    "vbios_rim_signature": (5013, "RIM_SIGNATURE_INVALID", "A RIM has no valid signature"),
}
_OTHER: Final = (4015, "EVIDENCE_INVALID", "The evidence is not valid")


def device_claims(
    report: Report, chain: DeviceChain, version: str, *, matches: bool
) -> dict[str, Any]:
    """Return NRAS's claims, by name, about a GPU or switch whose evidence is authentic.

    Args:
        report: The report of the device.
        chain: The certificates of the device.
        version: Version of the schema of the claims (`claims_version` of a request): "2.0" or
            "3.0".
        matches: Whether the measurements in the report are those of the RIMs.
    """
    is_switch = report.kind == "switch"
    prefix = f"x-nvidia-{'switch' if is_switch else 'gpu'}-"
    bios = "bios" if is_switch else "vbios"
    claims: dict[str, Any] = {
        "measres": "success" if matches else "fail",
        "hwmodel": chain.chip.name if version == "2.0" else chain.hardware_model,
        "ueid": chain.ueid,
        "oemid": None if is_switch else _MANUFACTURER,
        "eat_nonce": report.nonce.hex(),
        f"{prefix}{bios}-version": report.vbios_version,
        f"{prefix}arch-check": True,
        f"{prefix}attestation-report-parsed": True,
        f"{prefix}attestation-report-nonce-match": True,
        f"{prefix}attestation-report-signature-verified": True,
        f"{prefix}{bios}-index-no-conflict": True,
        "x-nvidia-attestation-warning": None,
    }
    if matches:
        claims |= {"secboot": True, "dbgstat": "disabled"}
    if not is_switch:
        claims[f"{prefix}driver-version"] = report.driver_version
    rims = (f"{bios}-rim",) if is_switch else ("driver-rim", f"{bios}-rim")
    for rim in rims:
        claims |= {f"{prefix}{rim}-{check}": True for check in _RIM_CHECKS}
    return claims | _certificate_claims(prefix, rims, version)


def _certificate_claims(prefix: str, rims: tuple[str, ...], version: str) -> dict[str, Any]:
    report = "attestation-report"
    if version == "2.0":
        claims: dict[str, Any] = {f"{prefix}{rim}-cert-validated": True for rim in rims}
        return claims | {f"{prefix}{report}-cert-chain-validated": True}
    chain = {
        "x-nvidia-cert-status": "valid",
        "x-nvidia-cert-ocsp-status": "good",
        "x-nvidia-cert-expiration-date": _FAR,
        "x-nvidia-cert-revocation-reason": None,
    }
    claims = {f"{prefix}{name}-cert-chain": chain for name in (report, *rims)}
    claims |= {f"{prefix}{rim}-version-match": True for rim in rims}
    return claims | {f"{prefix}{report}-cert-chain-fwid-match": True}


def error_claims(error: AttestKitError) -> dict[str, Any]:
    """Return NRAS's claims about a device whose evidence is not valid.

    They have NRAS's code and text for the reason of `error`, or those of other reasons (4015).
    """
    code, message, description = _CODES.get(error.reason, _OTHER)
    details = {
        "code": code,
        "message": message,
        "description": description,
        "fieldName": None,
        "httpStatus": 400,
    }
    return {"x-nvidia-error-details": details}


Appraise = Callable[[GpuEvidence, bytes, datetime], object]
"""Verifies evidence of one device over a nonce at a time; raises AttestKitError."""

ISSUER: Final = "https://nras.attestation.nvidia.com"
_LIFETIME: Final = timedelta(hours=1)
_DAY: Final = 86400  # seconds
_PATH: Final = re.compile(r"/v([234])/attest/(gpu|switch)")
_SUBJECT: Final = "NRAS request"
_MISMATCH: Final[GpuReason] = "measurements"


class _Request(NamedTuple):
    """A request to appraise evidence of GPUs, or of switches."""

    nonce: bytes  # 32 bytes
    version: str  # of claims
    kind: str  # GPU or SWITCH
    devices: tuple[DeviceEvidence, ...]

    @classmethod
    def read(cls, body: bytes, *, switches: bool) -> "_Request":
        """Read the `body` of a request, JSON; FormatError if it is malformed.

        `switches` is whether all devices must be switches; otherwise all must be GPUs.
        """
        request: Any = read(body, _SUBJECT)
        devices = read_devices(request)
        if not isinstance(request, dict):
            raise FormatError(f"{_SUBJECT}: must be an object", reason="wrong_type")
        nonce = from_hex(request.get("nonce"), f"{_SUBJECT}: nonce", 32)
        version = request.get("claims_version", "2.0")
        if not isinstance(version, str) or version not in {"2.0", "3.0"}:
            text = f"{_SUBJECT}: claims_version: must be 2.0 or 3.0"
            raise FormatError(text, reason="unsupported_version")
        if any((device.architecture == "LS10") != switches for device in devices):
            text = f"{_SUBJECT}: arch: must be LS10 for switches, and only for them"
            raise FormatError(text, reason="wrong_value")
        return cls(nonce, version, "SWITCH" if switches else "GPU", devices)


class SimulatedNras:
    """NRAS that appraises with attestkit's own verifier.

    Args:
        derive: Returns secret bytes for a label and a size.
        appraise: Verifies evidence of a device.
        fault: What to alter in the tokens; None: nothing.
    """

    def __init__(
        self, derive: cloud_pki.Derive, appraise: Appraise, fault: NrasFault | None = None
    ) -> None:
        self._derive, self._appraise, self._fault = derive, appraise, fault
        name = "attestkit simulated NRAS CA"
        self._ca = cloud_pki.make_root(
            derive, "nras/ca", name, cloud_pki.p384_key(derive, "nras/ca")
        )

    def jwks(self, now: datetime) -> bytes:
        """Return the key set (JWKS, JSON): the keys of the day of `now` and of the day before."""
        day = int(now.timestamp()) // _DAY
        return json.dumps({"keys": [self._jwk(one) for one in (day, day - 1)]}).encode()

    def attest(self, path: str, body: bytes, now: datetime) -> ServiceResponse:
        """Return the response to a POST of `body`, JSON: tokens, or an error of status 400 or 404.

        `path` is `/v2`, `/v3` or `/v4`, then `/attest/gpu` or `/attest/switch`.
        """
        match = _PATH.fullmatch(path)
        if match is None:
            return _refuse(404, "not found")
        try:
            request = _Request.read(body, switches=match[2] == "switch")
        except FormatError as error:
            return _refuse(400, error.message)
        claims = [self._device(device, request, now) for device in request.devices]
        stated = "4.0" if match[1] == "4" else request.version
        return json_response(self._bundle(claims, request, stated, now))

    def _device(self, device: DeviceEvidence, request: "_Request", now: datetime) -> dict[str, Any]:
        """Appraise the evidence of a device; return NRAS's claims about it."""
        matches = True
        try:
            self._appraise(GpuEvidence((device,)), request.nonce, now)
        except AttestKitError as error:
            if not (isinstance(error, GpuEvidenceError) and error.reason == _MISMATCH):
                return error_claims(error)
            matches = False
        report, chain = Report.parse(device.report), read_device_chain(device.certificates)
        return device_claims(report, chain, request.version, matches=matches)

    def _bundle(
        self, claims: list[dict[str, Any]], request: "_Request", version: str, now: datetime
    ) -> list[object]:
        """Return the signed tokens as a detached EAT bundle, altered by the fault, if any.

        Args:
            claims: Claims about each device of the request.
            request: The request: nonce and kind of the devices.
            version: Version that the overall token states.
            now: Time at which the tokens are issued.
        """
        nonce, kind = request.nonce.hex(), request.kind
        fault = self._fault
        if fault == "expired":
            now -= 2 * _LIFETIME
        if fault == "nonce":
            nonce = f"{int(nonce[0], 16) ^ 1:x}{nonce[1:]}"
        good = all(one.get("measres") == "success" for one in claims) and fault != "result-false"
        claims = [one | ({"eat_nonce": nonce} if "eat_nonce" in one else {}) for one in claims]
        tokens = {f"{kind}-{at}": self._sign(one, now) for at, one in enumerate(claims)}
        digests = token_digests(tokens)
        if fault == "digest":
            digests[f"{kind}-0"] = sha256(b"").hex()
        if fault == "device-absent":
            tokens.popitem()
        if fault == "device-added":
            tokens[f"{kind}-{len(tokens)}"] = tokens[f"{kind}-0"]
        stated = overall_claims(version, nonce, digests, "SHA-256", accepted=good)
        overall = self._sign(stated, now)
        if fault == "signature":
            overall = overall[:-2] + ("AA" if overall[-2:] != "AA" else "BA")
        return [["JWT", overall], tokens]

    # -- keys ----------------------------------------------------------------------------------

    def _sign(self, claims: dict[str, Any], now: datetime) -> str:
        """Return a compact JWT, signed by the key of the day, with claims, issuer and times."""
        issued = int(now.timestamp())
        day = issued // _DAY
        content = {
            **claims,
            "iss": ISSUER,
            "iat": issued,
            "nbf": issued,
            "exp": issued + int(_LIFETIME.total_seconds()),
        }
        kid = "unknown" if self._fault == "kid-unknown" else _kid(day)

        def sign(signed: bytes) -> bytes:
            r, s = self._key(day).sign(signed)
            return r.to_bytes(48, "big") + s.to_bytes(48, "big")

        return encode_token({"kid": kid, "alg": "ES384"}, content, sign)

    def _key(self, day: int) -> P384Key:
        return cloud_pki.p384_key(self._derive, f"nras/{day}")

    def _jwk(self, day: int) -> dict[str, Any]:
        key = self._key(day)
        point = key.spki[len(P384_SPKI_HEAD) :]
        leaf = issue_cloud_leaf(
            (encode_name(CN="Simulated Attestation Service GPU", O=SIMULATED_MARK), key.spki),
            self._ca.authority,
            serial=cloud_pki.serial_number(self._derive, f"nras/{day}"),
            validity=cloud_pki.VALIDITY,
        )
        return {
            "kty": "EC",
            "crv": "P-384",
            "kid": _kid(day),
            "x": to_base64url(point[:48]),
            "y": to_base64url(point[48:]),
            "x5c": [b64encode(der).decode() for der in (leaf, self._ca.der)],
        }


def _kid(day: int) -> str:
    return f"attestkit-simulated-eat-kid-{day}"


def _refuse(status: int, message: str) -> ServiceResponse:
    return json_response({"message": message, "httpStatus": status}, status)
