"""Tell by content what a file holds, and read it."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, Union

from attestkit._formats.strict_json import check_depth, decode_strictly
from attestkit._native import unhex
from attestkit.attestation import Attestation
from attestkit.attestation.cmw.evidence import MEDIA_TYPES
from attestkit.attestation.cmw.record import KIND
from attestkit.cli.input.read_input import read_file
from attestkit.collateral import Collateral
from attestkit.errors import CollateralError, FormatError, UsageError, VerificationError
from attestkit.event_log import EventLog, TpmEventLog
from attestkit.event_log.agent_json import CEL_KEYS
from attestkit.event_log.cel import encoding_of
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.td_report import TdReport

if TYPE_CHECKING:
    from attestkit.backends.recording.recording_file import RecordingFile
    from attestkit.cli.output.certificate_text import CertificateText
    from attestkit.verifier.evidence_bundle import EvidenceBundle

__all__ = ["Recognised", "Value", "in_file", "recognise", "recognise_file"]

Value: TypeAlias = Union[
    Quote,
    TdReport,
    SnpReport,
    EventLog,
    TpmEventLog,
    Attestation,
    Collateral,
    "CertificateText",
    "EvidenceBundle",
    "RecordingFile",
]

INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
RESPONSE_KEYS: Final = frozenset({"attestation", "quote"})
BUNDLE_KEYS: Final = frozenset({"evidence", "at"})
RECORDING: Final = b'"attestkit recording"'  # in the first line
CEL: Final = "event log (CEL)"
COLLATERAL_KEYS: Final = frozenset({"tcb_info", "qe_identity"})


class Recognised(NamedTuple):
    """What a file holds: the kind in words, the value, and the bytes it was read from."""

    kind: str
    value: Value
    raw: bytes = b""  # as in the file; hex text decoded

    @property
    def in_certificate(self) -> bool:
        """Whether the value is evidence that an RA-TLS certificate carries."""
        return isinstance(self.value, Attestation) and self.kind == "RA-TLS certificate"

    @property
    def holds_evidence(self) -> bool:
        """Whether there is evidence or a quote in it, in whatever wrapping."""
        return isinstance(self.value, Attestation | Quote) or self.kind == "evidence bundle"


@contextlib.contextmanager
def in_file(path: Path, option: str = "") -> Iterator[None]:
    """Have what goes wrong with the content of a file told with its name, and with its option.

    Raises:
        FormatError: In place of one without a name, and of a UsageError, which is about a value
            that was in the file.
        VerificationError: In place of one without a name.
    """
    where = f"{option} {path}".lstrip()
    try:
        yield
    except FormatError as error:
        raise FormatError(
            f"{where}: {error.message}", offset=error.offset, reason=error.reason
        ) from error
    except VerificationError as error:
        raise VerificationError(
            f"{where}: {error}", steps=error.steps, reason=error.reason
        ) from error
    except UsageError as error:
        raise FormatError(f"{where}: {error}") from error


def recognise_file(path: Path, option: str = "") -> Recognised:
    """Read a file, and tell by its content what it holds; see `read_file` and `recognise`.

    Raises:
        FormatError: As those; the text names the file, and the option if one named it.
        VerificationError: As `recognise`.
        UsageError: As `read_file`.
    """
    data = read_file(path)
    with in_file(path, option):
        return recognise(data)


def recognise(data: bytes) -> Recognised:
    """Read what a file of the field holds, raw, as hex or as JSON.

    That is a quote, a report, an event log, evidence, a bundle of evidence, collateral, a recording
    of a backend, or a certificate with evidence or without.

    Raises:
        FormatError: It looks like none of them, or like one of them that breaks its format.
        VerificationError: It is a certificate whose evidence is about another key.
    """
    if not data:
        raise FormatError("the file is empty", offset=0)
    raw = _unhex(data)
    if raw is not None:
        return recognise(raw)
    text = data.lstrip()
    if text[:1] == b"\x1e":  # a sequence of JSON texts
        return Recognised(CEL, EventLog.from_cel(data), data)
    if text[:1] in {b"[", b"{"}:
        return _json(data)._replace(raw=data)
    if text.startswith(b"-----BEGIN CERTIFICATE-----") or data[:2] == b"\x30\x82":
        return _certificate(data)._replace(raw=data)
    return _binary(data)._replace(raw=data)


def _unhex(data: bytes) -> bytes | None:
    """Return the bytes of a file of hex text, or None if it is not one."""
    digits = data.strip()
    if digits[:2] in {b"0x", b"0X"}:
        digits = digits[2:]
    return unhex(digits) if digits else None


def _json(data: bytes) -> Recognised:
    """Read an object that its keys name, an event array, or lines: a runtime log, a recording."""
    if RECORDING in (head := data.lstrip().split(b"\n", 1)[0]) and _heads_recording(head):
        # Late: few files are recordings, and this loads what records.
        from attestkit.backends.recording.recording_file import parse_recording

        return Recognised("recording", parse_recording(data))
    try:
        check_depth(data)
        # As bytes it could be UTF-16, whose depth is not checked.
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        value = None
    if _is_cmw(value):
        return Recognised("evidence", Attestation.from_bytes(data.lstrip()))
    if isinstance(value, dict) and (found := _object(data, value)) is not None:
        return found
    first = value[0] if isinstance(value, list) and value else None
    is_cel = isinstance(first, dict) and not CEL_KEYS.isdisjoint(first)
    return Recognised(CEL if is_cel else "event log", EventLog.parse(data))


def _is_cmw(value: object) -> bool:
    """Tell a record or a collection of them: arrays stand where others have objects or text."""
    if isinstance(value, list):
        return len(value) in {2, 3} and isinstance(value[1], str)
    if not isinstance(value, dict):
        return False
    return KIND in value or any(isinstance(value.get(label), list) for label in MEDIA_TYPES)


def _heads_recording(line: bytes) -> bool:
    try:
        header = decode_strictly(line)
    except FormatError:
        return False
    return isinstance(header, dict) and f'"{header.get("format")}"'.encode() == RECORDING


def _object(data: bytes, value: dict[str, Any]) -> Recognised | None:
    if value.keys() >= BUNDLE_KEYS:
        from attestkit.verifier.evidence_bundle import (
            EvidenceBundle,  # late: loads all of the verifier
        )

        return Recognised("evidence bundle", EvidenceBundle.from_json(data))
    if RESPONSE_KEYS & value.keys():
        return Recognised("guest agent response", Attestation.from_agent_response(value))
    if value.keys() >= COLLATERAL_KEYS:
        try:
            return Recognised("collateral", Collateral.from_json(data))
        except CollateralError as error:
            raise FormatError(str(error)) from error
    return None


def _certificate(data: bytes) -> Recognised:
    # X.509 is slow to import, and few files are certificates.
    from attestkit import ra_tls
    from attestkit._crypto.pem import split_pem
    from attestkit.cli.output.certificate_text import read_certificate_text

    der = data if data[:1] == b"\x30" else split_pem(data.decode("ascii", errors="replace"))[0]
    with contextlib.suppress(FormatError):  # which the other reader words better
        plain = read_certificate_text(der)
        if plain.extensions.keys().isdisjoint({ra_tls.OID_ATTESTATION, ra_tls.OID_TDX_QUOTE}):
            return Recognised("certificate without evidence", plain)
    return Recognised("RA-TLS certificate", ra_tls.read(der))


def _binary(data: bytes) -> Recognised:
    if data[12:28] == INTEL_QE_VENDOR:
        return Recognised("quote", Quote.parse(data))
    if len(data) == 1024 and data[0] == 0x81:
        return Recognised("TD report", TdReport.parse(data))
    if len(data) == 1184 and data[1:4] == bytes(3):
        return Recognised("SEV-SNP report", SnpReport.parse(data))
    try:
        return Recognised("evidence", Attestation.from_bytes(data))
    except FormatError as not_evidence:
        if encoding_of(data) is not None:
            return Recognised(CEL, EventLog.from_cel(data))
        return _firmware_log(data, not_evidence)


def _firmware_log(data: bytes, not_evidence: FormatError) -> Recognised:
    """Read a CCEL, else a TPM log, else say what came closest."""
    try:
        return Recognised("event log (CCEL)", EventLog.from_ccel(data))
    except FormatError as not_ccel:
        try:
            return Recognised("event log (TPM)", TpmEventLog.parse(data))
        except FormatError:
            if b"Spec ID Event" in data[:64]:
                raise not_ccel from None
    raise FormatError(
        "not a quote, report, event log, evidence or certificate that attestkit knows"
        f" (as evidence: {not_evidence})"
    )
