"""Fetching of endorsements of GPUs: RIMs, OCSP answers, and tokens of NVIDIA's service.

Up to eight requests run at a time, and equal requests are sent once. The services are untrusted:
RIMs and answers are verified after they were fetched. `_crypto.x509.ocsp.request` encodes OCSP
requests, which are sent as in RFC 6960, appendix A.
"""

import hmac
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.ocsp.answer import MAX_ANSWER, read_ocsp_answer
from attestkit._crypto.x509.ocsp.request import OcspHash, cert_id, write_ocsp_request
from attestkit._formats.strict_json import from_base64, from_hex, read_object, string
from attestkit._outcomes.reasons import CollateralReason
from attestkit._sanitize import shown
from attestkit.collateral.responses import Getter, Poster, read_body
from attestkit.errors import CollateralError, FormatError, UsageError
from attestkit.gpu.architectures import DeviceLabel
from attestkit.gpu.device.device_chain import DeviceChain, read_device_chain
from attestkit.gpu.device.report import Report
from attestkit.gpu.evidence import DeviceEvidence, GpuEvidence, verify_device
from attestkit.gpu.nras.client import (
    KEY_REQUIRED,
    NVIDIA_NRAS_URL,
    NrasVersion,
    fetch_keys,
    key_header,
    request_tokens,
)
from attestkit.gpu.rim.document import MAX_SIZE
from attestkit.gpu.rim.manifest import IDENTIFIER, Rim
from attestkit.gpu.roots import GpuRoots
from attestkit.simulated_roots import SimulatedRoots

if TYPE_CHECKING:
    from attestkit.gpu.architectures import Architecture

NVIDIA_RIM_URL: Final = "https://rim.attestation.nvidia.com"
"""URL of NVIDIA's RIM service."""
MAX_RIM_ANSWER: Final = 1 << 20
"""Maximum size of an answer in bytes: JSON with the RIM in base64."""
_SHA256_SIZE: Final = 32
_RIM_ADVICE: Final = {401: KEY_REQUIRED, 403: KEY_REQUIRED}
NVIDIA_OCSP_URL: Final = "https://ocsp.ndis.nvidia.com/"
"""URL of NVIDIA's OCSP responder."""
_OCSP_HEADERS: Final = {
    "Accept": "application/ocsp-response",
    "Content-Type": "application/ocsp-request",
}
MAX_REQUESTS: Final = 8
"""Maximum number of simultaneous requests."""
_ASKED: Final = (
    3  # certificates of a chain: of a device from the BROM's on, of a RIM from the first
)
_T = TypeVar("_T")
_R = TypeVar("_R")


def fetch_rim(identifier: str, getter: Getter, url: str = NVIDIA_RIM_URL) -> bytes:
    """Fetch a RIM; it is not verified.

    Args:
        identifier: Such as `NV_GPU_DRIVER_GH100_550.90.07`, from a report whose signature is
            verified.
        getter: Function that gets a URL and returns a `Response`, such as an `HttpGetter`.
        url: Base URL of the service, for a mirror.

    Returns:
        The XML document.

    Raises:
        CollateralError: If the service lacks this RIM, or `identifier` has other characters than
            letters, digits, `_`, `-` and `.` (`missing`), the service cannot be reached or returned
            an error (`fetch_failed`), or its answer is invalid (`malformed`, `too_large`).
    """
    if not IDENTIFIER.fullmatch(identifier):
        # Versions in a report are text of the device.
        problem = "identifier must be letters, digits, '_', '-' and '.'"
        raise _rim_error(shown(identifier), problem, "missing")
    response = getter(f"{url.rstrip('/')}/v1/rim/{identifier}")
    if response.status == 404:
        problem = "HTTP status 404; check that NVIDIA has released this version"
        raise _rim_error(identifier, problem, "missing")
    body = read_body(response, f"RIM {identifier}", MAX_RIM_ANSWER, _RIM_ADVICE)
    try:
        return _read_answer(identifier, body)
    except FormatError as error:
        problem = f"invalid answer of the RIM service: {error.message}"
        reason: CollateralReason = "too_large" if error.reason == "too_large" else "malformed"
        raise _rim_error(identifier, problem, reason) from error


def _read_answer(identifier: str, body: bytes) -> bytes:
    """Return the RIM (XML) in `body`, the service's answer (JSON) for a RIM's identifier.

    FormatError if identifier, format, size or hash in the answer are not those of the RIM.
    """
    fields: dict[str, Any] = read_object(body, "answer")
    named = string(fields, "id")
    if named != identifier:
        raise FormatError(f"id: must be {identifier!r}, not {shown(named)}", reason="inconsistent")
    kind = string(fields, "rim_format", "TCG")
    if kind != "TCG":
        raise FormatError(f"rim_format: must be 'TCG', not {shown(kind)}", reason="unsupported")
    rim = from_base64(fields.get("rim"), "rim")
    if len(rim) > MAX_SIZE:
        raise FormatError(f"rim: {len(rim)} bytes, at most {MAX_SIZE}", reason="too_large")
    digest = from_hex(fields.get("sha256"), "sha256", _SHA256_SIZE)
    if not hmac.compare_digest(sha256(rim), digest):
        text = f"sha256: must be that of the RIM, {sha256(rim).hex()}, not {digest.hex()}"
        raise FormatError(text, reason="inconsistent")
    return rim


def _rim_error(identifier: str, problem: str, reason: CollateralReason) -> CollateralError:
    return CollateralError(f"RIM {identifier}: {problem}", reason=reason)


def fetch_ocsp(
    certificate: bytes,
    issuer: bytes,
    poster: Poster,
    url: str = NVIDIA_OCSP_URL,
    *,
    hash_name: OcspHash = "sha384",
    nonce: bytes | None = None,
) -> bytes:
    """Request an OCSP answer about a certificate; the answer's signature is not verified.

    Args:
        certificate: The certificate in DER.
        issuer: The certificate of the issuer in DER.
        poster: Function that posts a body with headers to a URL, such as `HttpGetter().post`.
        url: URL of the responder.
        hash_name: Hash that identifies the certificate.
        nonce: 1 to 128 bytes, which the answer must contain; None sends no nonce.

    Returns:
        The answer in DER, about this certificate.

    Raises:
        FormatError: If a certificate is malformed.
        UsageError: If the hash is not supported, or the nonce is empty or over 128 bytes.
        CollateralError: If the responder cannot be reached or returned an error (`fetch_failed`),
            or its answer is too large, malformed, not about this certificate, or without the nonce.
    """
    request = write_ocsp_request(certificate, issuer, hash_name=hash_name, nonce=nonce)
    asked = cert_id(read_path_certificate(certificate), read_path_certificate(issuer), hash_name)
    body = read_body(poster(url, request, _OCSP_HEADERS), f"OCSP responder {url}", MAX_ANSWER)
    try:
        answer = read_ocsp_answer(body)
    except CollateralError as error:
        raise _ocsp_error(url, str(error), error.reason) from error
    except FormatError as error:
        raise _ocsp_error(url, f"{error}; check the URL", "malformed") from error
    if answer.cert_id != asked:
        raise _ocsp_error(url, "the answer is not about the certificate", "malformed")
    if nonce is not None and not hmac.compare_digest(answer.nonce or b"", nonce):
        raise _ocsp_error(url, "the answer lacks the nonce of the request", "malformed")
    return answer.der


def _ocsp_error(url: str, problem: str, reason: CollateralReason) -> CollateralError:
    return CollateralError(f"OCSP responder {url}: {problem}", reason=reason)


class GpuServices(NamedTuple):
    """Services of NVIDIA, or mirrors, from which endorsements are fetched.

    Service keys (`nras_key`, `rim_key`) of a customer of NVIDIA are optional; each is sent to its
    service only. With your own `getter`, `rim_key` is not allowed: let the getter send it. `proxy`
    is the URL of an HTTP proxy for requests without `getter` or `poster`.
    """

    getter: Getter | None = None  # None is an HttpGetter, as for `poster`
    poster: Poster | None = None
    rim_url: str = NVIDIA_RIM_URL
    ocsp_url: str = NVIDIA_OCSP_URL
    # Returns the nonce of an OCSP request; None sends no nonces.
    create_nonce: Callable[[], bytes] | None = partial(secrets.token_bytes, 32)
    nras_url: str = NVIDIA_NRAS_URL
    nras_version: NrasVersion = 3
    nras_key: str | None = None
    rim_key: str | None = None
    proxy: str | None = None  # None: direct connections

    def open(self) -> tuple[Getter, Poster]:
        """Return `getter` and `poster`; a missing one is that of a new HttpGetter.

        Raises:
            UsageError: If the URL of the proxy is not valid.
        """
        if self.getter is not None and self.poster is not None:
            return self.getter, self.poster
        from attestkit.collateral.http_getter import HttpGetter  # lazy: loads http and ssl

        http = HttpGetter(proxy=self.proxy)
        return self.getter or http, self.poster or http.post

    def open_rim(self) -> Getter:
        """Return the function that gets URLs of the RIM service, with `rim_key` if given.

        Raises:
            UsageError: If both `rim_key` and `getter` are given, the key is empty or not printable
                ASCII, or the URL of the proxy is not valid.
        """
        if self.rim_key is None:
            return self.open()[0]
        if self.getter is not None:
            message = "rim_key: not allowed with a getter; let the getter send the key"
            raise UsageError(message, reason="conflict")
        from attestkit.collateral.http_getter import HttpGetter  # lazy: loads http and ssl

        return partial(HttpGetter(proxy=self.proxy), headers=key_header(self.rim_key))

    def __repr__(self) -> str:  # without the keys
        urls = f"rim_url={self.rim_url!r}, ocsp_url={self.ocsp_url!r}, nras_url={self.nras_url!r}"
        return f"GpuServices({urls})"


class _Question(NamedTuple):
    """A certificate whose OCSP status is requested, and the certificate of its issuer."""

    certificate: bytes  # in DER, as the next one
    issuer: bytes


def fetch_parts(
    evidence: GpuEvidence,
    services: GpuServices | None,
    now: datetime,
    roots: GpuRoots | SimulatedRoots | None,
) -> tuple[dict[str, bytes], tuple[bytes, ...]]:
    """Fetch RIMs and OCSP answers; return RIMs (XML) by identifier, and answers in DER.

    Raises as `GpuEndorsements.fetch`.

    Args:
        evidence: Evidence of the devices.
        services: Where to fetch from; None is NVIDIA's services.
        now: Time of the verification of the device chains, aware.
        roots: Trusted roots, or those of a simulated machine; None is NVIDIA's.
    """
    services = services or GpuServices()
    poster, get_rim = services.open()[1], services.open_rim()
    root = GpuRoots.select(roots).device
    identifiers: dict[str, None] = {}  # as the next one: each once, in order
    questions: dict[_Question, None] = {}
    for index, device in enumerate(evidence.devices):
        label = DeviceLabel(device.kind, index)
        # Whether a NUL is accepted is a rule of the verification.
        report, chain = verify_device(device, label, root, now, strip_nul=True)
        with label.refused_as("report_signature"):
            report.verify_signature(chain.leaf_spki)
        identifiers |= dict.fromkeys(_rim_identifiers(report, chain))
        questions |= dict.fromkeys(_questions(chain.certificates[1:]))
    names = tuple(identifiers)
    found = _each(lambda name: fetch_rim(name, get_rim, services.rim_url), names)
    rims = dict(zip(names, found, strict=True))
    for name, rim in rims.items():
        questions |= dict.fromkeys(_questions(_rim_certificates(name, rim)))

    def fetch_status(question: _Question) -> bytes:
        nonce = services.create_nonce() if services.create_nonce else None
        return fetch_ocsp(*question, poster, services.ocsp_url, nonce=nonce)

    return rims, tuple(_each(fetch_status, tuple(questions)))


def fetch_answers(
    evidence: GpuEvidence, nonce: bytes, services: GpuServices | None, *, allow_hold: bool
) -> tuple[tuple[bytes, ...], bytes]:
    """Request tokens of NVIDIA's attestation service; return its answers and its JWK set, JSON.

    There is one answer, a detached EAT bundle, for each architecture of the evidence. Raises as
    `GpuEndorsements.fetch_tokens`.

    Args:
        evidence: Evidence of the devices.
        nonce: The nonce of all reports, 32 bytes.
        services: Service to send the evidence to; None is NVIDIA's.
        allow_hold: Whether the service accepts certificates on hold.
    """
    services = services or GpuServices()
    getter, poster = services.open()
    groups: dict[Architecture, list[DeviceEvidence]] = {}
    for device in evidence.devices:
        # That of the chain: `arch` in evidence is not authenticated.
        architecture = read_device_chain(device.certificates).chip.architecture
        groups.setdefault(architecture, []).append(device)
    answers = tuple(
        request_tokens(
            *(devices, architecture, nonce, poster, services.nras_url),
            version=services.nras_version,
            service_key=services.nras_key,
            allow_hold=allow_hold,
        )
        for architecture, devices in groups.items()
    )
    return answers, fetch_keys(getter, services.nras_url)


def _rim_identifiers(report: Report, chain: DeviceChain) -> Iterator[str]:
    if chain.chip.kind == "gpu":
        yield report.driver_rim_id(chain.chip)
    yield report.vbios_rim_id(chain.chip)


def _questions(chain: Sequence[bytes]) -> list[_Question]:
    """Return the first three certificates (DER) of a chain, each with the issuer's certificate."""
    return [_Question(*pair) for pair in pairwise(chain[: _ASKED + 1])]


def _rim_certificates(name: str, rim: bytes) -> tuple[bytes, ...]:
    try:
        return Rim.parse(rim).certificates
    except FormatError as error:
        text = str(error).removeprefix("RIM: ")
        raise CollateralError(f"RIM {name}: {text}", reason="malformed") from error


def _each(function: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """Return the results of a function for all items, in order; up to eight calls run at a time.

    No call starts after the first error, which is raised.
    """
    if not items:
        return []
    with ThreadPoolExecutor(min(MAX_REQUESTS, len(items))) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
