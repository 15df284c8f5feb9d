"""Client of the service of reference integrity manifests (RIMs) (nvidia-gpu.md, section 4.1).

The service is untrusted: a RIM is verified after it was fetched.
"""

import hmac
import re
from typing import Any, Final

from attestkit._crypto.hashes import sha256
from attestkit._formats.strict_json import from_base64, from_hex, read_object, string
from attestkit._reasons import CollateralReason
from attestkit._sanitize import shown
from attestkit.collateral.responses import Getter, read_body
from attestkit.errors import CollateralError, FormatError
from attestkit.gpu.rim.document import MAX_SIZE
from attestkit.gpu.service_key import KEY_REQUIRED

NVIDIA_RIM_URL: Final = "https://rim.attestation.nvidia.com"
"""NVIDIA's service."""

MAX_ANSWER: Final = 1 << 20
"""Maximum size of an answer in bytes: JSON with the RIM in base64."""

IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Identifier of a RIM."""

_SHA256_SIZE: Final = 32
_ADVICE: Final = {401: KEY_REQUIRED, 403: KEY_REQUIRED}


def fetch_rim(identifier: str, getter: Getter, url: str = NVIDIA_RIM_URL) -> bytes:
    """Fetch a RIM; it is not verified.

    Args:
        identifier: Such as `NV_GPU_DRIVER_GH100_550.90.07`, from a report whose signature is
            verified.
        getter: Function that gets a URL, such as `HttpGetter`.
        url: Base URL of the service, for a mirror.

    Returns:
        The XML document.

    Raises:
        CollateralError: If there is no such RIM (`missing`), the service cannot be reached or
            returned an error (`fetch_failed`), or its answer is invalid (`malformed`,
            `too_large`).
    """
    if not IDENTIFIER.fullmatch(identifier):
        # Versions in a report are text of the device.
        problem = "not an identifier: letters, digits, '_', '-' and '.' are allowed"
        raise _error(shown(identifier), problem, "missing")
    response = getter(f"{url.rstrip('/')}/v1/rim/{identifier}")
    if response.status == 404:
        problem = "HTTP status 404; check that NVIDIA has released this version"
        raise _error(identifier, problem, "missing")
    body = read_body(response, f"RIM {identifier}", MAX_ANSWER, _ADVICE)
    try:
        return _read_answer(identifier, body)
    except FormatError as error:
        problem = f"invalid answer of the RIM service: {error.message}"
        reason: CollateralReason = "too_large" if error.reason == "too_large" else "malformed"
        raise _error(identifier, problem, reason) from error


def _read_answer(identifier: str, body: bytes) -> bytes:
    """Return the RIM of an answer."""
    fields: dict[str, Any] = read_object(body, "answer")
    named = string(fields, "id")
    if named != identifier:
        raise FormatError(f"id: is {shown(named)}", reason="inconsistent")
    kind = string(fields, "rim_format", "TCG")
    if kind != "TCG":
        raise FormatError(f"rim_format: must be TCG: {shown(kind)}", reason="unsupported")
    rim = from_base64(fields.get("rim"), "rim")
    if len(rim) > MAX_SIZE:
        raise FormatError(f"rim: {len(rim)} bytes, more than {MAX_SIZE}", reason="too_large")
    digest = from_hex(fields.get("sha256"), "sha256", _SHA256_SIZE)
    if not hmac.compare_digest(sha256(rim), digest):
        raise FormatError("sha256: is not that of the RIM", reason="inconsistent")
    return rim


def _error(identifier: str, problem: str, reason: CollateralReason) -> CollateralError:
    return CollateralError(f"RIM {identifier}: {problem}", reason=reason)
