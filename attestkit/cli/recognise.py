"""Tell by content what a file holds, and read it."""

import json
import string
from typing import Final, NamedTuple

from attestkit._json import check_depth
from attestkit.attestation import Attestation
from attestkit.errors import FormatError
from attestkit.event_log import EventLog, TpmEventLog
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.td_report import TdReport

__all__ = ["Recognised", "recognise"]

Value = Quote | TdReport | SnpReport | EventLog | TpmEventLog | Attestation

INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
HEX_DIGITS: Final = frozenset(string.hexdigits.encode())
RESPONSE_KEYS: Final = frozenset({"attestation", "quote"})


class Recognised(NamedTuple):
    """What a file holds: the kind in words, and the value."""

    kind: str
    value: Value


def recognise(data: bytes) -> Recognised:
    """Read a quote, report, event log, evidence or certificate, raw, as hex or as JSON.

    Raises:
        FormatError: It looks like none of them, or like one of them that breaks its format.
    """
    if not data:
        raise FormatError("the file is empty", offset=0)
    raw = _unhex(data)
    if raw is not None:
        return recognise(raw)
    text = data.lstrip()
    if text[:1] in {b"[", b"{"}:
        return _json(data)
    if text.startswith(b"-----BEGIN CERTIFICATE-----") or data[:2] == b"\x30\x82":
        return _certificate(data)
    return _binary(data)


def _unhex(data: bytes) -> bytes | None:
    """Return the bytes of a file of hex text, or None if it is not one."""
    digits = data.strip()
    if digits[:2] in {b"0x", b"0X"}:
        digits = digits[2:]
    if len(digits) < 2 or len(digits) % 2 or not HEX_DIGITS.issuperset(digits):
        return None
    return bytes.fromhex(digits.decode("ascii"))


def _json(data: bytes) -> Recognised:
    """Read an event array, lines of a runtime log, or a response of the guest agent."""
    try:
        check_depth(data)
        # As bytes it could be UTF-16, whose depth is not checked.
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and RESPONSE_KEYS & value.keys():
        return Recognised("guest agent response", Attestation.from_agent_response(value))
    return Recognised("event log", EventLog.parse(data))


def _certificate(data: bytes) -> Recognised:
    # X.509 is slow to import, and few files are certificates.
    from attestkit import ra_tls

    text = data.decode("ascii", errors="replace") if data.lstrip()[:1] == b"-" else data
    return Recognised("RA-TLS certificate", ra_tls.read(text))


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
