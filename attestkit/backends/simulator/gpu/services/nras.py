"""Simulated NRAS: appraises evidence of simulated GPUs, and signs tokens (section 5).

The key is derived from the seed and the day; its certificate is in the key set, because NVIDIA's
Python SDK takes the key from there (section 5.2). The issuer is the real service's name, which
verifiers require; what they trust is the key set.
"""

import json
import re
from base64 import b64encode
from collections.abc import Callable
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
from attestkit._verification_steps import GpuReason
from attestkit.backends.simulator.gpu.deviations import NrasFault
from attestkit.backends.simulator.gpu.services.nras_claims import device_claims, error_claims
from attestkit.backends.simulator.gpu.services.tokens import (
    encode_token,
    overall_claims,
    token_digests,
)
from attestkit.backends.simulator.pki import cloud_root
from attestkit.backends.simulator.service_response import ServiceResponse, json_response
from attestkit.errors import AttestKitError, FormatError, GpuEvidenceError
from attestkit.gpu import DeviceEvidence, GpuEvidence, Report
from attestkit.gpu.device.device_chain import read_device_chain
from attestkit.gpu.evidence import read_devices

Appraise = Callable[[GpuEvidence, bytes, datetime], object]
"""Verifies evidence of one device over a nonce at a time; raises AttestKitError."""

ISSUER: Final = "https://nras.attestation.nvidia.com"
_LIFETIME: Final = timedelta(hours=1)
_DAY: Final = 86400  # seconds
_PATH: Final = re.compile(r"/v([234])/attest/(gpu|switch)")
_SUBJECT: Final = "NRAS request"
_MISMATCH: Final[GpuReason] = "measurements"


class _Request(NamedTuple):
    """A request."""

    nonce: bytes  # 32 bytes
    version: str  # of claims
    kind: str  # GPU or SWITCH
    devices: tuple[DeviceEvidence, ...]

    @classmethod
    def read(cls, body: bytes, *, switches: bool) -> "_Request":
        """Read a request (JSON) about switches or GPUs; FormatError if it is malformed."""
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
            text = f"{_SUBJECT}: arch: not of this kind of device"
            raise FormatError(text, reason="wrong_value")
        return cls(nonce, version, "SWITCH" if switches else "GPU", devices)


class SimulatedNras:
    """NRAS that appraises with attestkit's own verifier.

    Args:
        derive: Returns secret bytes for a label.
        appraise: Verifies evidence of a device.
        fault: Deviation of the tokens.
    """

    def __init__(
        self, derive: cloud_root.Derive, appraise: Appraise, fault: NrasFault | None = None
    ) -> None:
        self._derive, self._appraise, self._fault = derive, appraise, fault
        name = "attestkit simulated NRAS CA"
        self._ca = cloud_root.make_root(
            derive, "nras/ca", name, cloud_root.p384_key(derive, "nras/ca")
        )

    def jwks(self, now: datetime) -> bytes:
        """Return the key set (JSON): the keys of today and yesterday."""
        day = int(now.timestamp()) // _DAY
        return json.dumps({"keys": [self._jwk(one) for one in (day, day - 1)]}).encode()

    def attest(self, path: str, body: bytes, now: datetime) -> ServiceResponse:
        """Return the answer to a POST of a request (JSON), with tokens."""
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
        """Return the claims about a device."""
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
        """Return the detached EAT bundle with the fault of the service."""
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
        """Return a compact JWT with the claims and its times."""
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
        return cloud_root.p384_key(self._derive, f"nras/{day}")

    def _jwk(self, day: int) -> dict[str, Any]:
        key = self._key(day)
        point = key.spki[len(P384_SPKI_HEAD) :]
        leaf = issue_cloud_leaf(
            (encode_name(CN="Simulated Attestation Service GPU", O=SIMULATED_MARK), key.spki),
            self._ca.authority,
            serial=cloud_root.serial_number(self._derive, f"nras/{day}"),
            validity=cloud_root.VALIDITY,
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
