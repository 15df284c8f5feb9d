"""Client of NVIDIA's attestation service.

`verify_tokens` verifies an answer. The service's keys are trusted because they are fetched over
TLS. They are valid for two days: store them with the answer.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit

from attestkit._argument_checks import require_size, wrong_type
from attestkit._formats import strict_json
from attestkit._outcomes.reasons import UsageReason
from attestkit._sanitize import one_line
from attestkit.collateral.responses import Getter, Poster, Response, read_body
from attestkit.errors import CollateralError, FormatError, UsageError
from attestkit.gpu.architectures import Architecture
from attestkit.gpu.evidence import DeviceEvidence
from attestkit.gpu.nras.claims import ClaimsVersion
from attestkit.gpu.nras.detached_eat import MAX_BUNDLE, MAX_DEVICES, read_detached_eat
from attestkit.gpu.nras.tokens import MAX_JWKS, read_jwks

KEY_REQUIRED: Final = "the service requires a key; set its key in GpuServices"
"""Remedy in errors about the HTTP statuses 401 and 403."""
NVIDIA_NRAS_URL: Final = "https://nras.attestation.nvidia.com"
"""URL of NVIDIA's attestation service."""

NrasVersion = Literal[2, 3, 4]
"""Version of the service's HTTP interface, in the path `/vN/attest`."""

_JWKS_PATH: Final = "/.well-known/jwks.json"
_NONCE_SIZE: Final = 32
_THIS_MACHINE: Final = ("127.0.0.1", "::1")
_NOT_IN_URL: Final = frozenset(" @?#\\")  # user, query, fragment, and what parsers read differently
_MAX_ADVICE: Final = 200  # characters of the service's text in an error
_ADVICE: Final = {
    400: "check that the nonce is that of the evidence",
    401: KEY_REQUIRED,
    403: KEY_REQUIRED,
}


def key_header(service_key: str) -> dict[str, str]:
    """Return the header field, Authorization, that sends a service key.

    Raises:
        UsageError: If the key is empty, or not printable ASCII text.
    """
    if not service_key.isascii() or not service_key.isprintable() or not service_key:
        message = "NVIDIA service: the key must be printable ASCII text, and not empty"
        raise UsageError(message, reason="encoding")
    return {"Authorization": f"Bearer {service_key}"}


def fetch_keys(getter: Getter, url: str = NVIDIA_NRAS_URL) -> bytes:
    """Fetch the keys of the service, and return them: a JWK set (JSON), checked by `read_jwks`.

    Args:
        getter: Function that gets a URL and returns a `Response`, such as an `HttpGetter`.
        url: Base URL of the service; https, because nothing else authenticates the keys.

    Raises:
        UsageError: If the URL is neither https nor http of this machine (127.0.0.1, ::1).
        CollateralError: If the service cannot be reached or returned an error (`fetch_failed`), or
            its answer is malformed or too large.
    """
    where = _base(url) + _JWKS_PATH
    return _body(getter(where), where, MAX_JWKS, read_jwks)


def request_tokens(
    devices: Sequence[DeviceEvidence],
    architecture: Architecture,
    nonce: bytes,
    poster: Poster,
    url: str = NVIDIA_NRAS_URL,
    *,
    version: NrasVersion = 3,
    claims_version: ClaimsVersion | None = "3.0",
    service_key: str | None = None,
    allow_hold: bool = False,
) -> bytes:
    """Send evidence to the service, which verifies it; return its answer, which is not verified.

    Args:
        devices: Evidence of 1 to 64 devices of one architecture.
        architecture: Architecture of all these devices.
        nonce: The nonce of all reports, 32 bytes.
        poster: Function that posts a body with headers to a URL, such as `HttpGetter().post`.
        url: Base URL of the service.
        version: Version of the service's interface.
        claims_version: Version of the claims; None leaves it to the service.
        service_key: Key of a customer of NVIDIA; None sends none.
        allow_hold: Whether the service accepts certificates on hold.

    Returns:
        The detached EAT bundle, JSON.

    Raises:
        UsageError: If the size of the nonce, the number of devices, the architecture, a version,
            the URL or the key is not valid.
        CollateralError: If the service cannot be reached or returned an error (`fetch_failed`), or
            its answer is malformed or too large.
    """
    require_size("nonce", nonce, _NONCE_SIZE)
    _check_arguments(devices, architecture, version, claims_version)
    kind = "switch" if architecture == "LS10" else "gpu"
    where = f"{_base(url)}/v{version}/attest/{kind}"
    body = encode_request(devices, architecture, nonce, claims_version)
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if service_key is not None:
        headers |= key_header(service_key)
    if allow_hold:
        headers["X-NVIDIA-OCSP-ALLOW-CERT-HOLD"] = "true"
    return _body(poster(where, body, headers), where, MAX_BUNDLE, read_detached_eat)


def encode_request(
    devices: Sequence[DeviceEvidence],
    architecture: Architecture,
    nonce: bytes,
    claims_version: ClaimsVersion | None,
) -> bytes:
    """Return the JSON of a request to verify evidence of devices of one architecture.

    `nonce` has 32 bytes; `claims_version` is that of the requested claims, None leaves it to the
    service.
    """
    members: dict[str, Any] = {
        "nonce": nonce.hex(),
        "arch": architecture,
        "evidence_list": [
            {"certificate": members["certificate"], "evidence": members["evidence"]}
            for members in (device.to_object() for device in devices)
        ],
    }
    if claims_version is not None:
        members["claims_version"] = claims_version
    return json.dumps(members, separators=(",", ":")).encode("ascii")


def _check_arguments(
    devices: Sequence[DeviceEvidence], architecture: str, version: int, claims_version: str | None
) -> None:
    if not 0 < len(devices) <= MAX_DEVICES:
        problem = f"devices: must be 1 to {MAX_DEVICES}, not {len(devices)}"
        raise _misused(problem, "too_many" if devices else "missing")
    if architecture not in get_args(Architecture):
        raise _misused("architecture must be HOPPER, BLACKWELL or LS10", "wrong_value")
    if version not in get_args(NrasVersion):
        raise _misused(f"version of the service must be 2, 3 or 4, not {version}", "wrong_value")
    if claims_version not in {None, *get_args(ClaimsVersion)}:
        raise _misused("claims_version must be 2.0 or 3.0", "wrong_value")


def _base(url: str) -> str:
    """Return the base URL without a final slash; errors do not show it, as it may have a password.

    Raises:
        UsageError: If the URL is neither https nor http of this machine, or has a user.
    """
    if not isinstance(url, str):
        raise wrong_type("NRAS: URL", "str", url)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # an invalid port raises ValueError
    except ValueError:
        raise _misused("not a valid URL", "wrong_value") from None
    is_plain = url.isascii() and url.isprintable() and _NOT_IN_URL.isdisjoint(url)
    is_local = parts.scheme == "http" and host in _THIS_MACHINE
    if not is_plain or not host or not (parts.scheme == "https" or is_local):
        problem = "the URL must be https, or http of 127.0.0.1 or ::1, with a host and without user"
        raise _misused(f"{problem}, query and fragment", "wrong_value")
    return url.rstrip("/")


def _body(response: Response, where: str, most: int, read: Callable[[bytes], object]) -> bytes:
    """Return the body of a successful response, up to `most` bytes, after parsing it with `read`.

    `where` names the request in errors.
    """
    name = f"NRAS {where}"
    detail = "" if response.status == 200 else _message(response.body)
    body = read_body(response, name, most, _ADVICE, detail)
    try:
        read(body)
    except FormatError as error:
        raise CollateralError(f"{name}: {error}", reason="malformed") from error
    return body


def _message(body: bytes) -> str:
    """Return ": " and the error message in `body` (JSON) on one line; empty without one."""
    try:
        fields = strict_json.read_object(body[:65_536], "answer")
    except FormatError:
        return ""
    for name in ("errorMessage", "message", "error_description"):
        text = fields.get(name)
        if isinstance(text, str) and text:
            return f": {one_line(text, _MAX_ADVICE)}"
    return ""


def _misused(problem: str, reason: UsageReason) -> UsageError:
    return UsageError(f"NRAS: {problem}", reason=reason)
