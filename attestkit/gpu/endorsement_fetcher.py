"""Fetches endorsements for evidence: a few requests at a time, each question once."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from attestkit.collateral.responses import Getter, Poster
from attestkit.errors import CollateralError, FormatError, UsageError
from attestkit.gpu.device.device_chain import DeviceChain, read_device_chain
from attestkit.gpu.device.report import Report
from attestkit.gpu.device_label import DeviceLabel
from attestkit.gpu.evidence import DeviceEvidence, GpuEvidence, verify_device
from attestkit.gpu.nras.client import NVIDIA_NRAS_URL, NrasVersion, fetch_keys, request_tokens
from attestkit.gpu.ocsp_client import NVIDIA_OCSP_URL, fetch_ocsp
from attestkit.gpu.rim.manifest import Rim
from attestkit.gpu.rim.rim_client import NVIDIA_RIM_URL, fetch_rim
from attestkit.gpu.roots import GpuRoots
from attestkit.gpu.service_key import key_header
from attestkit.simulated_roots import SimulatedRoots

if TYPE_CHECKING:
    from attestkit.gpu.architectures import Architecture

MAX_REQUESTS: Final = 8
"""Maximum number of simultaneous requests."""

_ASKED: Final = (
    3  # certificates of a chain: of a device from the BROM's on, of a RIM from the first
)
_T = TypeVar("_T")
_R = TypeVar("_R")


class GpuServices(NamedTuple):
    """Services that endorsements are fetched from.

    Keys are of a customer of NVIDIA, and optional. Each is sent to its service alone; a getter of
    your own sends that of the RIM service itself.
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

    def open(self) -> tuple[Getter, Poster]:
        """Return the two functions."""
        if self.getter is not None and self.poster is not None:
            return self.getter, self.poster
        from attestkit.collateral.http_getter import HttpGetter  # lazy: loads http and ssl

        http = HttpGetter()
        return self.getter or http, self.poster or http.post

    def open_rim(self) -> Getter:
        """Return the function for the RIM service.

        Raises:
            UsageError: If there is a key besides a getter, or it is not printable ASCII text.
        """
        if self.rim_key is None:
            return self.open()[0]
        if self.getter is not None:
            message = "rim_key: not used with a getter; let the getter send the key"
            raise UsageError(message, reason="conflict")
        from attestkit.collateral.http_getter import HttpGetter  # lazy: loads http and ssl

        return partial(HttpGetter(), headers=key_header(self.rim_key))

    def __repr__(self) -> str:  # without the keys
        urls = f"rim_url={self.rim_url!r}, ocsp_url={self.ocsp_url!r}, nras_url={self.nras_url!r}"
        return f"GpuServices({urls})"


class _Question(NamedTuple):
    """A certificate to ask about."""

    certificate: bytes  # in DER, as the next one
    issuer: bytes


def fetch_parts(
    evidence: GpuEvidence,
    services: GpuServices | None,
    now: datetime,
    roots: GpuRoots | SimulatedRoots | None,
) -> tuple[dict[str, bytes], tuple[bytes, ...]]:
    """Return RIMs by identifiers, and OCSP answers; see `GpuEndorsements.fetch`."""
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

    def ask(question: _Question) -> bytes:
        nonce = services.create_nonce() if services.create_nonce else None
        return fetch_ocsp(*question, poster, services.ocsp_url, nonce=nonce)

    return rims, tuple(_each(ask, tuple(questions)))


def fetch_answers(
    evidence: GpuEvidence, nonce: bytes, services: GpuServices | None, *, allow_hold: bool
) -> tuple[tuple[bytes, ...], bytes]:
    """Return the attestation service's answers and keys; see `GpuEndorsements.fetch_tokens`."""
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
    """Return the questions about the first certificates of a chain, with their issuers."""
    return [_Question(*pair) for pair in pairwise(chain[: _ASKED + 1])]


def _rim_certificates(name: str, rim: bytes) -> tuple[bytes, ...]:
    try:
        return Rim.parse(rim).certificates
    except FormatError as error:
        raise CollateralError(f"RIM {name}: {error}", reason="malformed") from error


def _each(function: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """Call a function for each item, for up to eight at a time.

    After the first error no further call begins.
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
