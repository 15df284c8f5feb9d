"""Detection of file formats by content, and parsing."""

import contextlib
import json
from pathlib import Path
from typing import Any, Final, NamedTuple

from attestkit._formats.hex_text import decode_hex_text
from attestkit._formats.strict_json import check_depth, decode_strictly
from attestkit.attestation import Attestation
from attestkit.attestation.cmw.evidence import MEDIA_TYPES
from attestkit.attestation.cmw.record import KIND
from attestkit.attestation.nitro import is_nitro_document
from attestkit.cli.input.read_input import name_file_in_errors, read_file
from attestkit.collateral import Collateral
from attestkit.errors import CollateralError, FormatError
from attestkit.event_log import EventLog, TpmEventLog
from attestkit.event_log.agent_json import CEL_KEYS
from attestkit.event_log.cel import detect_encoding
from attestkit.event_log.ima import ImaLog, begins_with_ima_record
from attestkit.quote import Quote
from attestkit.snp_report import SIZE as SNP_REPORT_SIZE
from attestkit.snp_report import SnpReport
from attestkit.td_report import TdReport

INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
RESPONSE_KEYS: Final = frozenset({"attestation", "quote"})
BUNDLE_KEYS: Final = frozenset({"evidence", "at"})
RECORDING: Final = b'"attestkit recording"'  # in the first line of a recording
CEL: Final = "event log (CEL)"
_GPU_REPORT: Final = b"\x11\xe0\x01\xff"  # SPDM 1.1, GET_MEASUREMENTS of all, signed
_GPU_KEYS: Final = frozenset({"evidence", "certificate"})
_GPU_LISTS: Final = frozenset({"evidences", "evidence_list", "device_evidence_list"})
COLLATERAL_KEYS: Final = frozenset({"tcb_info", "qe_identity"})


class FileContent(NamedTuple):
    """The format of a file in words, its parsed value, and its bytes.

    Attributes:
        kind: Format, such as `quote` or `evidence bundle`.
        value: A Quote, Attestation, EventLog or other object of that format.
        raw: Bytes of the file; hex is decoded.
    """

    kind: str
    value: object  # Quote, Attestation, EventLog and so on
    raw: bytes = b""  # as in the file; hex is decoded

    @property
    def in_certificate(self) -> bool:
        """Whether the value is evidence from an RA-TLS certificate."""
        return isinstance(self.value, Attestation) and self.kind == "RA-TLS certificate"

    @property
    def holds_evidence(self) -> bool:
        """Whether the value is evidence, a quote or an evidence bundle."""
        return isinstance(self.value, Attestation | Quote) or self.kind == "evidence bundle"


def identify_file(path: Path, option: str = "") -> FileContent:
    """Read a file, then detect its format and parse it.

    `option`, such as `--log`, named the file; empty for an argument.

    Raises:
        FormatError: As `read_file` and `identify`; the text names the file and the option.
        VerificationError: As `identify`.
        UsageError: As `read_file`.
    """
    data = read_file(path)
    with name_file_in_errors(path, option):
        return identify(data)


def identify(data: bytes) -> FileContent:
    """Detect the format of `data`, the content of a file, and parse it.

    It may be raw, hex or JSON. Known formats are quotes, reports, event logs, evidence, evidence
    bundles, collateral, backend recordings, certificates with or without evidence, and evidence and
    endorsements of GPUs.

    Raises:
        FormatError: If the format is unknown, or the data is malformed.
        VerificationError: If a certificate has evidence that is not bound to the certificate's key.
    """
    if not data:
        raise FormatError("the file is empty", offset=0, reason="missing")
    if (raw := decode_hex_text(data)) is not None:
        return identify(raw)
    text = data.lstrip()
    if text[:1] == b"\x1e":  # JSON text sequence (RFC 7464)
        return FileContent(CEL, EventLog.from_cel(data), data)
    if text[:1] in {b"[", b"{"}:
        return _json(data)._replace(raw=data)
    if text[:1] == b"<" or data[:4] == _GPU_REPORT:
        return _of_gpus(data)._replace(raw=data)
    if text.startswith(b"-----BEGIN CERTIFICATE-----") or data[:2] == b"\x30\x82":
        return _certificate(data)._replace(raw=data)
    return _binary(data)._replace(raw=data)


def _json(data: bytes) -> FileContent:
    """Parse JSON: an object (recognised by its keys), an event array, a runtime log or a recording.

    `data` is in UTF-8. Text of another format is parsed as an event log, for the error.
    """
    if RECORDING in (head := data.lstrip().split(b"\n", 1)[0]) and _heads_recording(head):
        # Lazy: loads the recording backend.
        from attestkit.backends.recording.recording_file import parse_recording

        return FileContent("recording", parse_recording(data))
    try:
        check_depth(data)
        # json.loads of bytes would accept UTF-16, whose depth is not checked.
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        value = None
    if _is_coco(value) or _is_cmw(value):
        return FileContent("evidence", Attestation.from_bytes(data.lstrip()))
    if isinstance(value, dict) and (found := _object(data, value)) is not None:
        return found
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, dict) and first.keys() >= _GPU_KEYS:
        return _gpu_evidence(data)
    is_cel = isinstance(first, dict) and not CEL_KEYS.isdisjoint(first)
    return FileContent(CEL if is_cel else "event log", EventLog.parse(data))


def _is_cmw(value: object) -> bool:
    """Return whether decoded JSON is a CMW: a record (an array), or a collection of records."""
    if isinstance(value, list):
        return len(value) in {2, 3} and isinstance(value[1], str)
    if not isinstance(value, dict):
        return False
    return KIND in value or any(isinstance(value.get(label), list) for label in MEDIA_TYPES)


def _is_coco(value: object) -> bool:
    """Return whether decoded JSON is evidence of Confidential Containers with a TPM's quote."""
    if not isinstance(value, dict):
        return False
    quotes = [value.get(name) for name in ("tpm_quote", "quote")]
    return any(isinstance(quote, dict) and "message" in quote for quote in quotes)


def _heads_recording(line: bytes) -> bool:
    try:
        header = decode_strictly(line)
    except FormatError:
        return False
    return isinstance(header, dict) and f'"{header.get("format")}"'.encode() == RECORDING


def _object(data: bytes, value: dict[str, Any]) -> FileContent | None:
    if value.keys() >= BUNDLE_KEYS:
        # Lazy: loads the verifier.
        from attestkit.verifier.evidence.formats import EvidenceBundle

        return FileContent("evidence bundle", EvidenceBundle.from_json(data))
    if RESPONSE_KEYS & value.keys():
        return FileContent("guest agent response", Attestation.from_agent_response(value))
    if value.get("format") == "attestkit GPU endorsements":
        # Lazy: only for files of GPUs.
        from attestkit.gpu import GpuEndorsements

        try:
            return FileContent("GPU endorsements", GpuEndorsements.from_json(data))
        except CollateralError as error:
            raise FormatError(str(error), reason="syntax") from error
    if not _GPU_LISTS.isdisjoint(value):
        return _gpu_evidence(data)
    if value.keys() >= COLLATERAL_KEYS:
        try:
            return FileContent("collateral", Collateral.from_json(data))
        except CollateralError as error:
            raise FormatError(str(error), reason="syntax") from error
    return None


def _gpu_evidence(data: bytes) -> FileContent:
    # Lazy: only for files of GPUs.
    from attestkit.gpu import GpuEvidence

    return FileContent("GPU evidence", GpuEvidence.from_json(data))


def _of_gpus(data: bytes) -> FileContent:
    """Parse the raw SPDM report of a GPU or switch, or a reference manifest (RIM) in XML."""
    # Lazy: only for files of GPUs.
    from attestkit.gpu.device.report import Report
    from attestkit.gpu.rim.manifest import Rim

    if data[:4] == _GPU_REPORT:
        return FileContent("GPU report", Report.parse(data, strip_nul=True))
    return FileContent("GPU reference manifest (RIM)", Rim.parse(data))


def _certificate(data: bytes) -> FileContent:
    # Lazy: X.509 is slow to import.
    from attestkit import ra_tls
    from attestkit._crypto.pem import split_pem
    from attestkit.cli.output.certificate_text import read_certificate_text

    der = data if data[:1] == b"\x30" else split_pem(data.decode("ascii", errors="replace"))[0]
    with contextlib.suppress(FormatError):  # ra_tls.read reports the error
        plain = read_certificate_text(der)
        if plain.extensions.keys().isdisjoint({ra_tls.OID_ATTESTATION, ra_tls.OID_TDX_QUOTE}):
            return FileContent("certificate without evidence", plain)
    return FileContent("RA-TLS certificate", ra_tls.read(der))


def _binary(data: bytes) -> FileContent:
    if data[12:28] == INTEL_QE_VENDOR:
        return FileContent("quote", Quote.parse(data))
    if len(data) == 1024 and data[0] == 0x81:
        return FileContent("TD report", TdReport.parse(data))
    if (signed := _bare_evidence(data)) is not None:
        return signed
    try:
        return FileContent("evidence", Attestation.from_bytes(data))
    except FormatError as not_evidence:
        if detect_encoding(data) is not None:
            return FileContent(CEL, EventLog.from_cel(data))
        return _firmware_log(data, not_evidence)


def _bare_evidence(data: bytes) -> FileContent | None:
    """Parse raw bytes: an attestation document of AWS Nitro, an IMA log, or an SEV-SNP report.

    Certificates may follow the report. None for other data.
    """
    if is_nitro_document(data):
        # Lazy: loads the verifier.
        from attestkit.verifier.evidence.formats import attest_nitro_document

        return FileContent("evidence", attest_nitro_document(data))
    if data[1:4] != bytes(3):
        return None
    if begins_with_ima_record(data):
        return FileContent("event log (IMA)", ImaLog.parse(data))
    if len(data) == SNP_REPORT_SIZE:
        return FileContent("SEV-SNP report", SnpReport.parse(data))
    # Lazy: loads the verifier.
    from attestkit.verifier.evidence.formats import begins_with_snp_report, read_snp_report

    if begins_with_snp_report(data):
        return FileContent("evidence", read_snp_report(data))
    return None


def _firmware_log(data: bytes, not_evidence: FormatError) -> FileContent:
    """Parse a CCEL or a TPM log.

    Args:
        data: Content of the file.
        not_evidence: Error of parsing the content as evidence.

    Raises:
        FormatError: If the content is neither; the text names the most likely format.
    """
    try:
        return FileContent("event log (CCEL)", EventLog.from_ccel(data))
    except FormatError as not_ccel:
        try:
            return FileContent("event log (TPM)", TpmEventLog.parse(data))
        except FormatError:
            if b"Spec ID Event" in data[:64]:
                raise not_ccel from None
    raise FormatError(
        "unknown format: not a quote, report, event log, evidence or certificate"
        f" (tried as evidence: {not_evidence})",
        reason="unrecognized",
    )
