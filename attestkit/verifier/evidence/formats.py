"""Forms of evidence that a verifier accepts: objects, bytes recognised by content, and bundles.

A bundle has evidence and its collateral in one file, for verification offline and later. The file
is JSON: `version` (1), `evidence` (base64), `collateral` (the object of `Collateral.to_json`, or
null), `at` (ISO 8601 with a time zone: the time of the verification), `report_data` (hex, or null),
and, if there are any, `amd_crls` (base64 of each revocation list of AMD) and `ak_certificates`
(base64 of certificates and revocation lists of the CAs of a TPM's key), `gpu_evidence` (base64; of
GPUs, if the evidence does not enclose it) and `gpu_endorsements` (the object of
`GpuEndorsements.to_json`). The file is not authenticated: evidence, collateral, certificates and
lists have their own signatures, and the relying party chooses the expected report data and the time
of the verification: now, unless it asks for the time of the bundle.
"""

import json
import os
from base64 import b64encode
from codecs import BOM_UTF8
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final

from attestkit._argument_checks import require_time_zone, wrong_type
from attestkit._formats import strict_json
from attestkit._formats.hex_text import decode_hex_text
from attestkit._outcomes.steps import caution
from attestkit._sanitize import shown
from attestkit._system.atomic_file import load_document, save_document
from attestkit.attestation import MAX_SIZE, Attestation
from attestkit.attestation.nitro import is_nitro_document, read_nitro_document
from attestkit.attestation.wire.evidence_parts import Evidence as EvidenceParts
from attestkit.attestation.wire.evidence_parts import NitroEnclave, NitroTpm, SevSnp, Stack
from attestkit.collateral import Collateral
from attestkit.errors import CollateralError, FormatError, UsageError
from attestkit.quote import Quote
from attestkit.snp_report import SIZE as SNP_REPORT_SIZE
from attestkit.snp_report import SnpReport
from attestkit.verifier.evidence.checks import ParsedEvidence

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import FormatReason
    from attestkit.gpu.endorsements import GpuEndorsements

_VERSION: Final = 1
_EVIDENCE_LIMIT: Final = 10 << 20  # bytes
_REPORT_DATA_LIMIT: Final = 64  # bytes
# Evidence in base64, and up to ten fields of 1 MiB with bytes in hex.
_FILE_LIMIT: Final = 32 << 20
_MAX_ITEMS: Final = 32  # of one member
_KEYS: Final = frozenset({"version", "evidence", "collateral", "at", "report_data"})
# Bytes of all items of a list: AMD's CRLs have under 1,000 bytes each, certificates and CRLs of
# TPM keys under 2,000.
_CRL_LIMIT: Final = 1 << 18
_AK_LIMIT: Final = 1 << 20
# Members that are left out if they are empty, as in files of older versions.
_LISTS: Final = {"amd_crls": _CRL_LIMIT, "ak_certificates": _AK_LIMIT}
_GPU_LIMIT: Final = 4 << 20  # bytes of evidence of GPUs
BUNDLE_TIME: Final = caution(
    "verification_time",
    "verified at the time that the bundle names, which its creator chose; later expiry and "
    "revocation do not show",
)
"""The step of a verification at `EvidenceBundle.at`."""
Evidence = bytes | Attestation | Quote | SnpReport
"""Evidence as bytes or as a parsed object.

Bytes are evidence in any encoding, a raw quote, a bare SEV-SNP report (also with the host's
certificate table behind it), a bare AWS Nitro document (of an enclave or a NitroTPM), a guest
agent's JSON response, or the hex digits of one of these.
"""
_RAW_QUOTES: Final = (b"\3\0", b"\4\0", b"\5\0")  # quote versions; no evidence begins so
_SNP_VERSIONS: Final = range(2, 16)  # later versions too, for the error
_HEX_DIGITS: Final = frozenset(b"0123456789abcdefABCDEF")
_CERTIFICATES: Final = (b"\x30\x82", b"-----BEGIN CERTIFICATE-----")  # DER and PEM
_RESPONSE_KEYS: Final = (b'"attestation"', b'"quote"')
_BUNDLE_KEYS: Final = (b'"evidence"', b'"at"')


@dataclass(frozen=True, slots=True)
class EvidenceBundle:
    """Evidence with its collateral, in one file; see the module.

    Raises:
        UsageError: If a value has the wrong type or size, or `at` has no time zone.
    """

    evidence: bytes = field(repr=False)  # 1 byte to 10 MiB
    collateral: Collateral | None
    at: datetime  # aware
    report_data: bytes | None = None  # at most 64 bytes, not padded
    # Of AMD's roots: DER or PEM, at most 32 and 256 KiB in all.
    amd_crls: tuple[bytes, ...] = field(default=(), repr=False)
    # Of the CAs of a TPM's key, and their CRLs: DER or PEM, at most 32 and 1 MiB in all.
    ak_certificates: tuple[bytes, ...] = field(default=(), repr=False)
    # Evidence of GPUs as sent, at most 4 MiB; None if the evidence encloses it, or has none.
    gpu_evidence: bytes | None = field(default=None, repr=False)
    gpu_endorsements: "GpuEndorsements | None" = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_bytes("evidence", self.evidence, 1, _EVIDENCE_LIMIT)
        if self.report_data is not None:
            _check_bytes("report_data", self.report_data, 0, _REPORT_DATA_LIMIT)
        if not isinstance(self.collateral, Collateral | None):
            raise wrong_type("collateral", "a Collateral", self.collateral)
        for name in _LISTS:
            _check_list(name, getattr(self, name))
        if self.gpu_evidence is not None:
            _check_bytes("gpu_evidence", self.gpu_evidence, 1, _GPU_LIMIT)
        if self.gpu_endorsements is not None:
            _check_gpu_endorsements(self.gpu_endorsements)
        _check_moment(self.at)

    def names_time(self, moment: datetime) -> bool:
        """Return whether an aware time is less than a second from the bundle's `at`."""
        return abs(moment - self.at) < timedelta(seconds=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> "EvidenceBundle":
        """Decode `text`, the JSON of a bundle, as `to_json` returns it.

        Raises:
            FormatError: If the text is over 32 MiB, not a JSON object, not of version 1, or a
                member is unknown, missing, duplicate or malformed; the message names the member.
        """
        if len(text) > _FILE_LIMIT:
            raise FormatError(
                f"evidence bundle: {len(text)} bytes, at most {_FILE_LIMIT}",
                reason="too_large",
            )
        text = text.removeprefix(BOM_UTF8) if isinstance(text, bytes) else text
        values = strict_json.read_object(text, "evidence bundle")
        # Checked first, because another version may have other members.
        version = values.get("version", _VERSION)  # _check_keys reports a missing one
        if type(version) is not int or version != _VERSION:
            message = f"evidence bundle: version must be {_VERSION}"
            raise FormatError(message, reason="unsupported_version")
        _check_keys("evidence bundle", values, _KEYS, _READERS.keys())
        del values["version"]
        found = {name: _READERS[name](value, name) for name, value in values.items()}
        try:
            return cls(**found)
        except UsageError as error:
            reason: FormatReason = "wrong_size" if error.reason == "wrong_size" else "wrong_value"
            raise FormatError(f"evidence bundle: {error}", reason=reason) from error

    def to_json(self) -> str:
        """Return this bundle as JSON text, for `from_json`; the module describes its members."""
        collateral = None if self.collateral is None else json.loads(self.collateral.to_json())
        values = {
            "version": _VERSION,
            "evidence": b64encode(self.evidence).decode("ascii"),
            "collateral": collateral,
            "at": self.at.astimezone(timezone.utc).isoformat().replace("+00:00", "Z"),
            "report_data": None if self.report_data is None else self.report_data.hex(),
        }
        for name in _LISTS:
            if items := getattr(self, name):
                values[name] = [b64encode(item).decode("ascii") for item in items]
        if self.gpu_evidence is not None:
            values["gpu_evidence"] = b64encode(self.gpu_evidence).decode("ascii")
        if self.gpu_endorsements is not None:
            values["gpu_endorsements"] = json.loads(self.gpu_endorsements.to_json())
        return json.dumps(values, indent=1) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "EvidenceBundle":
        """Read a bundle from the JSON file `path`, which `save` wrote.

        Raises:
            UsageError: If the file cannot be read.
            FormatError: If `from_json` rejects the content; the message names the file.
        """
        return load_document(path, _FILE_LIMIT, cls.from_json, UsageError, "cannot_read")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON to the file `path` with mode 0600, replacing an existing one atomically.

        Raises:
            UsageError: If the file cannot be written.
        """
        content = self.to_json().encode("ascii")
        save_document(path, content, UsageError, "cannot_write", mode=0o600)


def _check_bytes(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, bytes):
        raise wrong_type(name, "bytes", value)
    if not least <= len(value) <= most:
        message = f"{name}: must be {least} to {most} bytes, not {len(value)}"
        raise UsageError(message, reason="wrong_size")


def _check_list(name: str, value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(one, bytes) for one in value):
        raise wrong_type(name, "a tuple of bytes", value)
    if len(value) > _MAX_ITEMS:
        raise UsageError(f"{name}: {len(value)} items, at most {_MAX_ITEMS}", reason="too_many")
    _check_bytes(name, b"".join(value), len(value), _LISTS[name])


def _check_moment(value: object) -> None:
    if not isinstance(value, datetime):
        raise wrong_type("at", "a datetime", value)
    require_time_zone("at", value)
    try:
        value.astimezone(timezone.utc)
    except OverflowError as error:
        raise UsageError("at: must be in the years 1 to 9999", reason="out_of_range") from error


def _check_keys(
    what: str,
    values: dict[str, Any],
    required: frozenset[str],
    optional: Collection[str] = (),
) -> None:
    if missing := required - values.keys():
        raise FormatError(f"{what}: must have {', '.join(sorted(missing))}", reason="missing")
    if unknown := values.keys() - required.union(optional):
        raise FormatError(f"{what}: unknown member: {min(unknown)[:40]!r}", reason="unknown_field")


def _collateral(value: object, _: str) -> Collateral | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise FormatError("collateral: must be an object or null", reason="wrong_type")
    try:
        collateral = Collateral.from_json(json.dumps(value))
    except CollateralError as error:
        reasons: dict[str, FormatReason] = {"missing": "missing", "too_large": "too_large"}
        reason = reasons.get(error.reason, "wrong_value")
        text = str(error).removeprefix("collateral: ")
        raise FormatError(f"collateral: {text}", reason=reason) from error
    # from_json ignores unknown members; to_json writes the known ones.
    _check_keys("collateral", value, frozenset(json.loads(collateral.to_json())))
    return collateral


def _check_gpu_endorsements(value: object) -> None:
    from attestkit.gpu.endorsements import GpuEndorsements  # lazy: only with GPUs

    if not isinstance(value, GpuEndorsements):
        raise wrong_type("gpu_endorsements", "GpuEndorsements", value)


def _gpu_endorsements(value: object, _: str) -> "GpuEndorsements":
    from attestkit.gpu.endorsements import GpuEndorsements  # lazy: only with GPUs

    try:
        return GpuEndorsements.from_json(json.dumps(value))
    except CollateralError as error:
        reason: FormatReason = "too_large" if error.reason == "too_large" else "wrong_value"
        raise FormatError(f"gpu_endorsements: {error}", reason=reason) from error


def _report_data(value: object, name: str) -> bytes | None:
    return None if value is None else strict_json.from_hex(value, name)


def _list(value: object, name: str) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not value:
        raise FormatError(f"{name}: must be a non-empty list", reason="wrong_type")
    if len(value) > _MAX_ITEMS:
        raise FormatError(f"{name}: {len(value)} items, at most {_MAX_ITEMS}", reason="too_many")
    return tuple(strict_json.from_base64(one, name) for one in value)


def _moment(value: object, _: str) -> datetime:
    if not isinstance(value, str):
        raise FormatError("evidence bundle: at: must be a string", reason="wrong_type")
    try:
        return datetime.fromisoformat(value.replace("Z", "+00:00"))  # Python 3.10 does not accept Z
    except ValueError as error:
        text = f"must be an ISO 8601 time, such as 2026-01-31T12:00:00+00:00: {shown(value)}"
        raise FormatError(f"evidence bundle: at: {text}", reason="wrong_value") from error


# Decoder of each member but the version, with the name of the member for errors.
_READERS: Final[dict[str, Callable[[Any, str], Any]]] = {
    **dict.fromkeys(("evidence", "gpu_evidence"), strict_json.from_base64),
    "collateral": _collateral,
    "at": _moment,
    "report_data": _report_data,
    **dict.fromkeys(_LISTS, _list),
    "gpu_endorsements": _gpu_endorsements,
}


def parse_evidence(evidence: object) -> ParsedEvidence:
    """Parse evidence in any form of `Evidence`: a parsed object, or bytes, recognised by content.

    Raises:
        FormatError: If the evidence is malformed, or bytes in another form, such as a certificate
            or a bundle's JSON.
        UsageError: If it is an EvidenceBundle, or not an `Evidence`.
    """
    if isinstance(evidence, bytes):
        return _parse_bytes(evidence)
    if isinstance(evidence, Attestation):
        return ParsedEvidence.of(evidence)
    if isinstance(evidence, Quote):
        return ParsedEvidence(None, evidence)
    if isinstance(evidence, SnpReport):
        return ParsedEvidence.of(attest_snp_report(evidence))
    if isinstance(evidence, EvidenceBundle):
        message = "evidence: pass an EvidenceBundle to Verifier.verify_bundle"
        raise UsageError(message, reason="wrong_type")
    raise wrong_type("evidence", "bytes, an Attestation, a Quote or an SnpReport", evidence)


def _parse_bytes(data: bytes) -> ParsedEvidence:
    if begins_with_snp_report(data):
        return ParsedEvidence.of(read_snp_report(data))
    if data[:2] in _RAW_QUOTES:
        return ParsedEvidence(None, Quote.parse(data))
    if is_nitro_document(data):
        return ParsedEvidence.of(attest_nitro_document(data))
    found = decode_hex_text(data) if data[:1] and data[0] in _HEX_DIGITS else None
    if found and found[0] not in _HEX_DIGITS:  # otherwise hex text itself
        return _parse_bytes(found)
    if data.startswith(_CERTIFICATES):
        message = "evidence: must not be a certificate; verify that with ra_tls.verify"
        raise FormatError(message, reason="unsupported")
    try:
        return ParsedEvidence.of(Attestation.from_bytes(data))
    except FormatError as error:
        if data.lstrip()[:1] != b"{" or b'"__cmwc_t"' in data:  # a collection has a quote, too
            raise
        if any(key in data for key in _RESPONSE_KEYS):
            return ParsedEvidence.of(Attestation.from_agent_response(data))
        if all(key in data for key in _BUNDLE_KEYS):
            message = "evidence: a bundle; pass EvidenceBundle.from_json to Verifier.verify_bundle"
            raise FormatError(message, reason="unsupported") from error
        raise


def begins_with_snp_report(data: bytes) -> bool:
    """Return whether data is long enough for an SEV-SNP report, and begins with its version.

    Quotes have such versions, too, but their bytes 2 and 3 are not zero.
    """
    return len(data) >= SNP_REPORT_SIZE and data[0] in _SNP_VERSIONS and data[1:4] == bytes(3)


def read_snp_report(data: bytes) -> Attestation:
    """Return evidence for a bare SEV-SNP report, with the certificate table behind it, if any.

    Linux returns them as `outblob` and `auxblob` of configfs-tsm.

    Raises:
        FormatError: If the report is malformed, or `data` is over 10 MiB.
    """
    if len(data) > MAX_SIZE:
        message = f"SEV-SNP report and certificates: {len(data)} bytes, at most {MAX_SIZE}"
        raise FormatError(message, reason="too_large")
    report = SnpReport.parse(data[:SNP_REPORT_SIZE])
    return attest_snp_report(report, data[SNP_REPORT_SIZE:])


def attest_snp_report(report: SnpReport, certificates: bytes = b"") -> Attestation:
    """Return evidence of a bare SEV-SNP report, which identifies no app.

    `certificates` is the certificate table of the host's kernel; empty without one.
    """
    chain = (certificates,) if certificates else ()
    stack = Stack(report.report_data, (), "")
    return Attestation(EvidenceParts(SevSnp(report.raw, chain, ""), stack))


def attest_nitro_document(data: bytes) -> Attestation:
    """Return evidence of a bare AWS Nitro document, whose report data are its user data.

    Args:
        data: The document, COSE_Sign1.

    Raises:
        FormatError: If the document is malformed.
    """
    document = read_nitro_document(data)
    platform = NitroTpm(data) if document.tpm else NitroEnclave(data)
    return Attestation(EvidenceParts(platform, Stack(document.user_data, (), "")))
