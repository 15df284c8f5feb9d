"""Faults of simulated GPUs: what each alters in reports, certificates, RIMs and services.

Each function returns an altered copy of its last argument.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Literal, NamedTuple, TypeAlias

from attestkit._outcomes.steps import GpuReason
from attestkit.backends.simulator.gpu.gpu_reports import ReportContent
from attestkit.backends.simulator.gpu.rim_writer import RimContent, RimResource
from attestkit.gpu.architectures import NVDEC_INDEX, Architecture
from attestkit.gpu.device import opaque_data as fields

OcspTarget: TypeAlias = Literal["brom", "rim_signer"]


class OcspFault(NamedTuple):
    """What a fault alters in the OCSP answers about one kind of certificate.

    `shift` is added to the times, `about_other` and `by_leaf` exchange certificate and signer,
    `altered` flips a bit after signing.
    """

    target: OcspTarget  # kind of certificate
    status: Literal["good", "revoked", "unknown"] = "good"
    reason: Literal["key_compromise", "certificate_hold"] | None = None  # of a revocation
    shift: timedelta = timedelta()  # of the times in the answer
    may_sign: bool = True  # the responder has the extended key usage
    about_other: bool = False  # about the issuer's certificate
    by_leaf: bool = False  # signed by the leaf of the device
    altered: bool = False  # after signing
    nonce: Literal["echoed", "missing", "other"] = "echoed"


NrasFault: TypeAlias = Literal[
    "result-false",
    "signature",
    "digest",
    "nonce",
    "expired",
    "device-absent",
    "device-added",
    "kid-unknown",
]
MachineFault: TypeAlias = Literal["switch-missing", "device-twice", "spt-with-mpt", "nonces-mixed"]


class GpuFault(NamedTuple):
    """A fault of GPUs: what it alters in evidence and endorsements; None: that part is correct."""

    check: GpuReason | None  # reason of the verifier's error; None: the evidence is accepted
    text: str  # one line of help
    content: Callable[[ReportContent], ReportContent] | None = None  # before signing
    report: Callable[[bytes], bytes] | None = None  # after signing
    other_key: bool = False  # the report is signed by another device
    chain: Callable[[tuple[bytes, ...]], tuple[bytes, ...]] | None = None
    padding: int = 0  # NUL bytes after the PEM text of the chain
    other_root: Literal["device", "rim"] | None = None  # below the root of another seed
    other_device_key: bool = False  # in the DICE extension
    driver_rim: Callable[[RimContent], RimContent] | None = None  # before signing
    vbios_rim: Callable[[RimContent], RimContent] | None = None
    rim_file: Callable[[bytes], bytes] | None = None  # of the driver, after signing
    rim_signer: Literal["expired", "swapped"] | None = None
    ocsp: OcspFault | None = None
    nras: NrasFault | None = None
    machine: MachineFault | None = None
    architecture: Architecture = "HOPPER"
    gpus: int = 1  # least number of GPUs, which the machine has unless the caller says otherwise
    only: bool = False  # for no other architecture


def set_field(kind: int, value: bytes | None, content: ReportContent) -> ReportContent:
    """Return `content` with another `value` of its opaque field `kind`; None removes the field."""
    return content.with_field(kind, value)


def add_field(kind: int, value: bytes, content: ReportContent) -> ReportContent:
    """Return `content` with an additional opaque field at the end: type `kind` with `value`."""
    return content.add_field(kind, value)


def set_measurement(index: int, content: ReportContent) -> ReportContent:
    """Set the measurement `index`, as RIMs count from 0, to a value that no RIM has."""
    return content.measured(index, b"\xee" * 48)


def measurement_without_nvdec(content: ReportContent) -> ReportContent:
    """Switch NVDEC0 off, and change its measurement, which verifiers then do not compare."""
    return set_measurement(NVDEC_INDEX, content.with_field(fields.NVDEC0_STATUS, fields.OFF))


def set_request_code(code: int, content: ReportContent) -> ReportContent:
    """Set the SPDM code of the request (in real reports 0xE0, GET_MEASUREMENTS)."""
    return content._replace(request_code=code)


def set_response_code(code: int, content: ReportContent) -> ReportContent:
    """Set the SPDM code of the response (in real reports 0x60, MEASUREMENTS)."""
    return content._replace(response_code=code)


def make_raw(content: ReportContent) -> ReportContent:
    """Mark all measurements as raw values instead of digests; the values stay."""
    return content._replace(block_type=0x81)


def other_nonce(content: ReportContent) -> ReportContent:
    """Flip the lowest bit of the first byte of the verifier's nonce."""
    return content._replace(nonce=bytes([content.nonce[0] ^ 1]) + content.nonce[1:])


def exchange_blocks(content: ReportContent) -> ReportContent:
    """Exchange the indexes of the first two measurement blocks: 2, 1, 3 and so on."""
    indexes = list(range(1, len(content.measurements) + 1))
    indexes[:2] = 2, 1
    return content._replace(indexes=tuple(indexes))


def cut_blocks(content: ReportContent) -> ReportContent:
    """Keep only the first 41 measurements."""
    return content._replace(measurements=content.measurements[:41])


def flip_signature(report: bytes) -> bytes:
    """Flip the lowest bit of s in the report's signature."""
    return report[:-1] + bytes([report[-1] ^ 1])


def zero_r(report: bytes) -> bytes:
    """Set r in the report's signature to zero."""
    return report[:-96] + bytes(48) + report[-48:]


def exchange_certificates(chain: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Exchange the second and the third certificate of a chain (DER, leaf first)."""
    return chain[0], chain[2], chain[1], *chain[3:]


def activate(index: int, rim: RimContent) -> RimContent:
    """Return the RIM with the measurement `index` active, and zeros as its reference value.

    IndexError if the RIM has no entry for `index`.
    """
    return rim.with_resource(index, RimResource(active=True, hashes=(bytes(48),)))


def other_version(rim: RimContent) -> RimContent:
    """Replace the last character of the version by 9."""
    return rim._replace(version=f"{rim.version[:-1]}9")


def other_product(rim: RimContent) -> RimContent:
    """Set the product of the RIM to a Blackwell chip, GB100."""
    return rim._replace(product="GB100")


def add_alternatives(rim: RimContent) -> RimContent:
    """Give each active measurement a wrong hash, as an alternative before the right one."""
    resources = [
        one._replace(hashes=(b"\xee" * 48, *one.hashes)) if one.active else one
        for one in rim.resources
    ]
    return rim._replace(resources=tuple(resources))


def shorten_hash(rim: RimContent) -> RimContent:
    """Leave out the last byte of the first hash of measurement 25, which becomes its only one."""
    short = rim.resources[25].hashes[0][:47]
    return rim.with_resource(25, RimResource(active=True, hashes=(short,)))


def deactivate(rim: RimContent) -> RimContent:
    """Deactivate all measurements."""
    resources = [one._replace(active=False) for one in rim.resources]
    return rim._replace(resources=tuple(resources))


def edit(old: bytes, new: bytes, rim: bytes) -> bytes:
    """Return `rim`, a RIM file (XML), with the first occurrence of `old` replaced by `new`."""
    return rim.replace(old, new, 1)
