"""Tinfoil's attestation documents: v2, version 3 of June and of August 2026.

Both generations of version 3 have one `format`, and differ by their members. All are read strictly:
unknown and double names, uppercase hex, non-canonical base64 and double ids are refused. Evidence
is not verified here. Of authenticity only the signature in documents of June is checked, by the key
of the certificate beside it.
"""

import hmac
from datetime import datetime
from typing import Final, Literal, NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import split_pem
from attestkit._crypto.public_key import load_verification_key
from attestkit._crypto.x509.app_certificates import Certificate, read_certificate
from attestkit._formats.bounded_gzip import gunzip
from attestkit._formats.strict_json import member_spans
from attestkit.client.strict_answer import AnswerObject, read_answer_object
from attestkit.errors import FormatError, ServiceError, SignatureError
from attestkit.gpu.bindings.tinfoil import (
    REPORT_DATA_ALGORITHM,
    has_gpu_items,
    read_device_parts,
    read_tinfoil,
    tinfoil_report_data,
    tinfoil_section_data,
)
from attestkit.gpu.evidence import GpuBinding
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport

MAX_ITEMS: Final = 256
"""Maximum number of items of a section, and of entries of the collateral."""

_WHAT: Final = "Tinfoil document"
_SECTIONS: Final = {
    "crypto_material": ("https://tinfoil.sh/crypto-material/v1", ("id", "format", "data")),
    "device_evidence": (
        "https://tinfoil.sh/device-evidence/v1",
        ("id", "kind", "vendor", "format", "evidence"),
    ),
}
# Formats of the keys that are used, by their id; both have 32 bytes.
_KEY_FORMATS: Final = {
    "tls": "https://tinfoil.sh/key/spki-fp-sha256/v1",
    "hpke": "https://tinfoil.sh/key/x25519-hpke/v1",
}
_VCEK: Final = "https://tinfoil.sh/collateral/amd-vcek/v1"
_CPU: Final = "cpu"  # subject of collateral


class DocumentKeys(NamedTuple):
    """Keys of the section `crypto_material`."""

    tls: bytes | None  # SHA-256 of the SPKI
    hpke: bytes | None  # X25519 public key
    others: tuple[tuple[str, bytes], ...]  # by their id


def read_section(section: bytes, name: str) -> list[AnswerObject]:
    """Return the items of a section of a document; their ids are unique.

    Args:
        section: JSON, exactly as it is hashed.
        name: crypto_material or device_evidence.

    Raises:
        FormatError: If the section is malformed, or an item lacks a member or has an unknown one.
    """
    wanted, names = _SECTIONS[name]
    members = read_answer_object(section, f"{_WHAT}: {name}")
    members.check(("format", "items"))
    members.constant("format", wanted)
    return _unique_items(members, "items", names)


def read_keys(section: bytes) -> DocumentKeys:
    """Return the keys in `section`, the JSON of `crypto_material`, exactly as it is hashed.

    Raises:
        FormatError: If it is malformed, or the TLS or HPKE key has a wrong format or size.
    """
    found: dict[str, bytes] = {}
    for item in read_section(section, "crypto_material"):
        name, form = item.text("id"), item.text("format")
        if name in _KEY_FORMATS:
            item.constant("format", _KEY_FORMATS[name])
        size = 32 if form in _KEY_FORMATS.values() else None
        found[name] = item.hex("data", size)
    tls, hpke = found.pop("tls", None), found.pop("hpke", None)
    return DocumentKeys(tls, hpke, tuple(found.items()))


def read_collateral(members: AnswerObject) -> tuple[bytes, ...]:
    """Return the certificates of SEV-SNP in a document's collateral in DER, VCEK first.

    `members` are those of the document; without certificates of SEV-SNP the result is empty. The
    report data do not cover collateral, and the certificates are not verified here.

    Raises:
        FormatError: If the collateral is malformed.
    """
    if "collateral" not in members:
        return ()
    names = ("id", "role", "format", "data")
    found: tuple[bytes, ...] = ()
    for entry in _unique_items(members, "collateral", names, ("subjects",)):
        subjects = entry.get("subjects", [_CPU])
        if entry.text("format") != _VCEK or subjects != [_CPU]:
            continue
        if found:
            raise members.error("collateral", "must have one VCEK, but has several", "duplicate")
        data = entry.object("data")
        data.check(("vcek_der_base64",), ("cert_chain_pem",))
        found = (data.base64("vcek_der_base64"),)
        if "cert_chain_pem" in data:
            found += tuple(split_pem(data.text("cert_chain_pem")))
    return found


def _unique_items(
    members: AnswerObject, name: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> list[AnswerObject]:
    """Return the objects of a list, with exact members and unique ids.

    Args:
        members: Object that has the list.
        name: Name of the list in it.
        required: Names of members that each object must have.
        optional: Names of members that it may have; others are refused.

    Raises:
        FormatError: If the list or an object is malformed, or an `id` is empty or occurs twice.
    """
    items = members.objects(name, MAX_ITEMS)
    seen: set[str] = set()
    for item in items:
        item.check(required, optional)
        key = item.text("id")
        if not key:
            raise item.error("id", "must not be empty", "missing")
        if key in seen:
            raise item.error("id", "must be unique, but occurs twice", "duplicate")
        seen.add(key)
    return items


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
_TDX: Final = 0x81
_NO_KEY: Final = bytes(32)


class TinfoilDocument(NamedTuple):
    """A decoded document; its evidence is not verified, and must have these report data."""

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
    """Decode the answer to `/.well-known/tinfoil-attestation`.

    Args:
        answer: JSON as received.
        nonce: Nonce that was sent, 32 bytes; v2 does not contain it.

    Raises:
        FormatError: If the document is malformed, or its parts contradict each other.
        ServiceError: If it has a different nonce (reason `nonce_echo`), or its signature is not
            valid.
    """
    members = read_answer_object(answer, _WHAT)
    if "body" in members:
        return read_v2(members)
    members.constant("format", _V3)
    if "challenge" in members:
        return _read_august(answer, members, nonce)
    return _read_june(answer, members, nonce)


def read_v2(members: AnswerObject) -> TinfoilDocument:
    """Decode the members of a document of v2, whose keys are in the report data themselves.

    Raises:
        FormatError: If the document or its evidence is malformed.
    """
    members.check(("format", "body"))
    platform = V2_FORMATS[members.constant("format", *V2_FORMATS)]
    body = members.base64("body")
    evidence = gunzip(body, MAX_EVIDENCE, f"{_WHAT}: body")
    data = _report_data_of(evidence, platform)
    tls, hpke = data[:32], data[32:]
    return TinfoilDocument("v2", evidence, data, tls, None if hpke == _NO_KEY else hpke)


def _read_june(answer: bytes, members: AnswerObject, nonce: bytes) -> TinfoilDocument:
    required = ("format", "report_data", "cpu", "certificate", "signature")
    members.check(required, ("gpu", "nvswitch"))
    stated = members.object("report_data")
    optional = ("gpu_evidence_hash", "nvswitch_evidence_hash")
    stated.check(("tls_key_fp", "hpke_key", "nonce"), optional)
    for name in stated:
        stated.hex(name, 32)
    tls, hpke = stated.hex("tls_key_fp"), stated.hex("hpke_key")
    _check_echo(stated.hex("nonce"), nonce)
    cpu = members.object("cpu")
    cpu.check(("platform", "report"))
    platform = cpu.constant("platform", *_PLATFORMS)
    evidence = cpu.base64("report")
    _report_data_of(evidence, platform)
    parts = read_device_parts(answer, stated)
    certificate = read_certificate(members.text("certificate"))
    if not hmac.compare_digest(sha256(certificate.spki_der), tls):
        raise members.error("certificate", "must have the key of tls_key_fp", "inconsistent")
    _check_signature(answer, certificate, members.base64("signature"))
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
    """Check the ECDSA signature (SHA-256) in a document.

    Args:
        answer: The document as received; it is signed with an empty text as the member "signature".
        certificate: Certificate of the key.
        signature: r and s in DER.

    Raises:
        ServiceError: If the signature is not valid (reason `signature`).
    """
    text = answer.decode().rstrip("\n")
    start, end = member_spans(text)["signature"]
    signed = f'{text[:start]}""{text[end:]}'.encode()
    try:
        key = load_verification_key(certificate.spki_der)
        key.verify("ecdsa", "sha256", signature, signed)
    except SignatureError as error:
        message = f"{_WHAT}: signature: must be valid by the key of its certificate"
        raise ServiceError(message, reason="signature") from error


def _read_august(answer: bytes, members: AnswerObject, nonce: bytes) -> TinfoilDocument:
    required = ("format", "challenge", "cpu_evidence", "crypto_material", "device_evidence")
    members.check(required, ("collateral",))
    stated = _read_challenge(members, nonce)
    material = members.base64("crypto_material")
    devices = members.base64("device_evidence")
    evidence = _read_cpu_evidence(members, material, devices)
    data = tinfoil_section_data(nonce, material, devices)
    if not hmac.compare_digest(stated, data):
        message = f"{_WHAT}: challenge: report_data: must be as {REPORT_DATA_ALGORITHM} computes it"
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


def _read_challenge(members: AnswerObject, nonce: bytes) -> bytes:
    """Return the report data that a document states, 64 bytes.

    Args:
        members: Members of the document.
        nonce: Nonce that was sent, 32 bytes; the stated one must equal it.

    Raises:
        FormatError: If the challenge is malformed, or has an unknown algorithm.
        ServiceError: If the stated nonce differs (reason `nonce_echo`).
    """
    challenge = members.object("challenge")
    challenge.check(("nonce", "report_data", "report_data_algorithm"))
    challenge.constant("report_data_algorithm", REPORT_DATA_ALGORITHM)
    _check_echo(challenge.hex("nonce", 32), nonce)
    return challenge.hex("report_data", 64)


def _read_cpu_evidence(members: AnswerObject, material: bytes, devices: bytes) -> bytes:
    """Return the report or quote; check that it states the hashes of both sections.

    `material` and `devices` are the JSON of `crypto_material` and `device_evidence`.
    """
    cpu = members.object("cpu_evidence")
    cpu.check(("format", "report_base64", "endorsed"))
    platform = _CPU_FORMATS[cpu.constant("format", *_CPU_FORMATS)]
    endorsed = cpu.object("endorsed")
    hashes = {"crypto_material_hash": material, "device_evidence_hash": devices}
    endorsed.check(tuple(hashes))
    for name, section in hashes.items():
        if not hmac.compare_digest(endorsed.hex(name, 32), sha256(section)):
            raise endorsed.error(name, "must be the hash of the section", "inconsistent")
    evidence = cpu.base64("report_base64")
    _report_data_of(evidence, platform)
    return evidence


def _check_echo(echo: bytes, nonce: bytes) -> None:
    if not hmac.compare_digest(echo, nonce):
        message = f"{_WHAT}: nonce must be {nonce.hex()}, as sent, not {echo.hex()}"
        raise ServiceError(message, reason="nonce_echo")


def _report_data_of(evidence: bytes, platform: str) -> bytes:
    """Return the report data of evidence, 64 bytes.

    Args:
        evidence: SEV-SNP report or TDX quote.
        platform: Stated platform: `sev-snp`, or else it must be a quote of TDX.

    Raises:
        FormatError: If the evidence is malformed, or of a different platform.
    """
    if platform == "sev-snp":
        return SnpReport.parse(evidence).report_data
    quote = Quote.parse(evidence)
    if quote.tee_type != _TDX:
        message = f"{_WHAT}: the quote must be of TDX, not of TEE type {quote.tee_type:#x}"
        raise FormatError(message, reason="inconsistent")
    return quote.report_data
