"""Answers of guest agents, which hold evidence in JSON: GetQuote, TdxQuote, Attest.

An answer has either `attestation`, complete evidence in hex, or `quote` in hex beside `event_log`,
a JSON array as text. Unknown keys are ignored.
"""

import hmac
from collections.abc import Mapping
from typing import Any, Final

from attestkit._formats import strict_json
from attestkit.attestation.wire.evidence_parts import Evidence, RuntimeEvent, Stack, Tdx, td_body
from attestkit.errors import FormatError
from attestkit.event_log import EventLog, agent_json
from attestkit.event_log.event_types import RUNTIME_EVENT_TYPE

__all__ = ["complete_evidence", "from_quote_and_log", "parse", "quote_and_log"]

_LARGEST: Final = 1 << 25  # bytes or characters, as many as a client takes of an agent


def parse(response: str | bytes | Mapping[str, object]) -> dict[str, Any]:
    """Return the answer's fields.

    Raises:
        FormatError: It is no JSON object, or over 32 MiB.
    """
    if isinstance(response, (str, bytes)):
        if len(response) > _LARGEST:
            raise FormatError(f"response has {len(response)} bytes, over {_LARGEST}")
        return strict_json.read_object(response, "response")
    return dict(response)


def complete_evidence(fields: dict[str, Any]) -> bytes | None:
    """Return the bytes under `attestation`; None where that is missing or empty."""
    if not (text := fields.get("attestation")):
        return None
    return strict_json.from_hex(text, "attestation")


def quote_and_log(fields: dict[str, Any]) -> Evidence:
    """Build evidence from an answer to GetQuote, TdxQuote or RawQuote.

    Raises:
        FormatError: Quote or log are missing or malformed, or the answer's own report data, if it
            has any, is not the quote's.
    """
    quote = strict_json.from_hex(fields.get("quote") or None, "quote")
    if not (log := strict_json.string(fields, "event_log", "")):
        raise FormatError("event_log is missing")
    evidence = from_quote_and_log(quote, log, strict_json.string(fields, "vm_config", ""))
    if stated := fields.get("report_data"):
        given = strict_json.from_hex(stated, "report_data")
        if not hmac.compare_digest(given.ljust(64, b"\0"), evidence.stack.report_data):
            raise FormatError("report_data is not the quote's")
    return evidence


def from_quote_and_log(quote: bytes, event_log: str, config: str = "") -> Evidence:
    """Build evidence from a raw TDX quote and its event log, a JSON array.

    The runtime events are those of the log, the report data is the quote's.

    Raises:
        FormatError: Quote or log are malformed.
    """
    report_data = td_body(quote).report_data
    events = tuple(agent_json.parse(event_log))
    EventLog.from_wire(events)  # what cannot be is refused here, not when the log is used
    runtime = tuple(
        [
            RuntimeEvent(event.event, event.event_payload, event.version)
            for event in events
            if event.event_type == RUNTIME_EVENT_TYPE
        ]
    )
    return Evidence(Tdx(quote, events), Stack(report_data, runtime, config))
