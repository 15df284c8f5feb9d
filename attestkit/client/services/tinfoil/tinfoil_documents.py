"""Tinfoil's attestation documents: v2, version 3 of June and of August 2026.

Both generations of version 3 have one `format`, and differ by their members
(attested-client.md, 2.7). All are read strictly: unknown and double names, uppercase hex,
non-canonical base64 and double ids are refused. Nothing here is authenticated but the signature of
June, by the key that its certificate shows.
"""

import hmac
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit._crypto.public_key import load_verification_key
from attestkit._crypto.x509.app_certificates import Certificate, read_certificate
from attestkit._formats.bounded_gzip import gunzip
from attestkit._formats.json_spans import member_spans
from attestkit.client.services.strict_answer import (
    base64_member,
    check_members,
    constant_member,
    lower_hex,
    object_member,
    read_answer_object,
    text_of,
)
from attestkit.client.services.tinfoil.tinfoil_sections import (
    read_collateral,
    read_keys,
    read_section,
)
from attestkit.errors import FormatError, ServiceError, SignatureError
from attestkit.gpu.bindings.tinfoil import (
    REPORT_DATA_ALGORITHM,
    has_gpu_items,
    read_device_parts,
    read_tinfoil,
    tinfoil_report_data,
    tinfoil_section_data,
)
from attestkit.gpu.bound_evidence import GpuBinding
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport

Generation = Literal["v2", "june", "august"]
"""Format of a document; June and August are of 2026."""

MAX_EVIDENCE: Final = 131_072
"""Maximum size of a decompressed report or quote in bytes."""

V2_FORMATS: Final = {
    "https://tinfoil.sh/predicate/sev-snp-guest/v2": "sev-snp",
    "https://tinfoil.sh/predicate/tdx-guest/v2": "tdx",
}
"""Platforms by the format of a document of v2."""

_V3: Final = "https://tinfoil.sh/predicate/attestation/v3"
_PLATFORMS: Final = ("sev-snp", "tdx")
_CPU_FORMATS: Final = {
    "https://tinfoil.sh/format/sev-snp-report/v1": "sev-snp",
    "https://tinfoil.sh/format/tdx-quote/v1": "tdx",
}
_WHAT: Final = "Tinfoil document"
_TDX: Final = 0x81
_NO_KEY: Final = bytes(32)


class TinfoilDocument(NamedTuple):
    """A document, not verified: the report data are what its evidence must have."""

    generation: Generation
    evidence: bytes  # report of SEV-SNP, or quote of TDX
    report_data: bytes  # 64 bytes
    tls: bytes | None  # SHA-256 of the SPKI of the TLS key; None if it names none
    hpke: bytes | None  # X25519 public key, 32 bytes
    gpu: GpuBinding | None = None
    keys: tuple[tuple[str, bytes], ...] = ()  # others, by their id
    snp_certificates: tuple[bytes, ...] = ()  # DER, VCEK first
    valid_until: datetime | None = None  # end of the TLS certificate in the document


def read_tinfoil_document(answer: bytes, nonce: bytes) -> TinfoilDocument:
    """Read the answer to `/.well-known/tinfoil-attestation`.

    Args:
        answer: JSON as received.
        nonce: Nonce that was sent, 32 bytes; v2 does not contain it.

    Raises:
        FormatError: If the document is malformed, or its parts contradict each other.
        ServiceError: If it is for another nonce (`nonce_echo`), or its signature is not valid.
    """
    members = read_answer_object(answer, _WHAT)
    if "body" in members:
        return read_v2(members)
    constant_member(members, "format", _WHAT, _V3)
    if "challenge" in members:
        return _read_august(answer, members, nonce)
    return _read_june(answer, members, nonce)


def read_v2(members: dict[str, Any]) -> TinfoilDocument:
    """Read the members of a document of v2, whose keys are in the report data themselves.

    Raises:
        FormatError: If the document or its evidence is malformed.
    """
    check_members(members, _WHAT, ("format", "body"))
    platform = V2_FORMATS[constant_member(members, "format", _WHAT, *V2_FORMATS)]
    body = base64_member(members, "body", _WHAT)
    evidence = gunzip(body, MAX_EVIDENCE, f"{_WHAT}: body")
    data = _report_data_of(evidence, platform)
    tls, hpke = data[:32], data[32:]
    return TinfoilDocument("v2", evidence, data, tls, None if hpke == _NO_KEY else hpke)


def _read_june(answer: bytes, members: dict[str, Any], nonce: bytes) -> TinfoilDocument:
    required = ("format", "report_data", "cpu", "certificate", "signature")
    check_members(members, _WHAT, required, ("gpu", "nvswitch"))
    stated = object_member(members, "report_data", _WHAT)
    where = f"{_WHAT}: report_data"
    optional = ("gpu_evidence_hash", "nvswitch_evidence_hash")
    check_members(stated, where, ("tls_key_fp", "hpke_key", "nonce"), optional)
    for name in stated:
        lower_hex(stated, name, where, 32)
    tls, hpke = lower_hex(stated, "tls_key_fp", where), lower_hex(stated, "hpke_key", where)
    _check_echo(lower_hex(stated, "nonce", where), nonce)
    cpu = object_member(members, "cpu", _WHAT)
    check_members(cpu, f"{_WHAT}: cpu", ("platform", "report"))
    platform = constant_member(cpu, "platform", f"{_WHAT}: cpu", *_PLATFORMS)
    evidence = base64_member(cpu, "report", f"{_WHAT}: cpu")
    _report_data_of(evidence, platform)
    parts = read_device_parts(answer, stated)
    certificate = read_certificate(text_of(members, "certificate", _WHAT))
    if not hmac.compare_digest(sha256(certificate.spki_der), tls):
        message = f"{_WHAT}: certificate: its key is not that of tls_key_fp"
        raise FormatError(message, reason="inconsistent")
    _check_signature(answer, certificate, base64_member(members, "signature", _WHAT))
    return TinfoilDocument(
        generation="june",
        evidence=evidence,
        report_data=tinfoil_report_data(tls, hpke, nonce, *parts.hashes),
        tls=tls,
        hpke=hpke,
        gpu=read_tinfoil(answer, nonce=nonce) if parts.hashes else None,
        valid_until=certificate.valid_until,
    )


def _check_signature(answer: bytes, certificate: Certificate, signature: bytes) -> None:
    """Check the signature over the document as sent, with an empty text as `signature`."""
    text = answer.decode().rstrip("\n")
    start, end = member_spans(text)["signature"]
    signed = f'{text[:start]}""{text[end:]}'.encode()
    try:
        key = load_verification_key(certificate.spki_der)
        key.verify("ecdsa", "sha256", signature, signed)
    except SignatureError as error:
        message = f"{_WHAT}: signature: not valid by the key of its certificate"
        raise ServiceError(message, reason="signature") from error


def _read_august(answer: bytes, members: dict[str, Any], nonce: bytes) -> TinfoilDocument:
    required = ("format", "challenge", "cpu_evidence", "crypto_material", "device_evidence")
    check_members(members, _WHAT, required, ("collateral",))
    stated = _read_challenge(members, nonce)
    material = base64_member(members, "crypto_material", _WHAT)
    devices = base64_member(members, "device_evidence", _WHAT)
    evidence = _read_cpu_evidence(members, material, devices)
    data = tinfoil_section_data(nonce, material, devices)
    if not hmac.compare_digest(stated, data):
        message = f"{_WHAT}: challenge: report_data: not that of {REPORT_DATA_ALGORITHM}"
        raise FormatError(message, reason="inconsistent")
    keys = read_keys(material)
    read_section(devices, "device_evidence")
    return TinfoilDocument(
        generation="august",
        evidence=evidence,
        report_data=data,
        tls=keys.tls,
        hpke=keys.hpke,
        gpu=read_tinfoil(answer, nonce=nonce) if has_gpu_items(devices) else None,
        keys=keys.others,
        snp_certificates=read_collateral(members),
    )


def _read_challenge(members: dict[str, Any], nonce: bytes) -> bytes:
    """Return the stated report data, after a look at algorithm and nonce."""
    where = f"{_WHAT}: challenge"
    challenge = object_member(members, "challenge", _WHAT)
    check_members(challenge, where, ("nonce", "report_data", "report_data_algorithm"))
    constant_member(challenge, "report_data_algorithm", where, REPORT_DATA_ALGORITHM)
    _check_echo(lower_hex(challenge, "nonce", where, 32), nonce)
    return lower_hex(challenge, "report_data", where, 64)


def _read_cpu_evidence(members: dict[str, Any], material: bytes, devices: bytes) -> bytes:
    """Return the evidence, after a comparison of the hashes beside it with the sections."""
    where = f"{_WHAT}: cpu_evidence"
    cpu = object_member(members, "cpu_evidence", _WHAT)
    check_members(cpu, where, ("format", "report_base64", "endorsed"))
    platform = _CPU_FORMATS[constant_member(cpu, "format", where, *_CPU_FORMATS)]
    endorsed = object_member(cpu, "endorsed", where)
    hashes = {"crypto_material_hash": material, "device_evidence_hash": devices}
    check_members(endorsed, where, tuple(hashes))
    for name, section in hashes.items():
        if not hmac.compare_digest(lower_hex(endorsed, name, where, 32), sha256(section)):
            message = f"{where}: {name}: not the hash of the section"
            raise FormatError(message, reason="inconsistent")
    evidence = base64_member(cpu, "report_base64", where)
    _report_data_of(evidence, platform)
    return evidence


def _check_echo(echo: bytes, nonce: bytes) -> None:
    if not hmac.compare_digest(echo, nonce):
        message = f"{_WHAT}: nonce: it answers another nonce than the one that was sent"
        raise ServiceError(message, reason="nonce_echo")


def _report_data_of(evidence: bytes, platform: str) -> bytes:
    """Return the report data of evidence, which must be of the stated platform."""
    if platform == "sev-snp":
        return SnpReport.parse(evidence).report_data
    quote = Quote.parse(evidence)
    if quote.tee_type != _TDX:
        raise FormatError(f"{_WHAT}: the quote is not of a TD", reason="inconsistent")
    return quote.report_data
