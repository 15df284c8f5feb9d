"""Evidence in JSON responses of guest agents: GetQuote, TdxQuote, RawQuote, Attest.

A response has either `attestation`, encoded evidence in hex, or `quote` in hex and `event_log`, a
JSON array as text. Unknown keys are ignored.
"""

import hmac
from collections.abc import Mapping
from typing import Any, Final

from attestkit._formats import strict_json
from attestkit.attestation.wire.evidence_parts import Evidence, RuntimeEvent, Stack, Tdx, td_body
from attestkit.errors import FormatError
from attestkit.event_log import EventLog, agent_json
from attestkit.event_log.event_types import RUNTIME_EVENT_TYPE

_LARGEST: Final = 1 << 25  # bytes or characters, the limit of the client of a guest agent


def parse_response(response: str | bytes | Mapping[str, object]) -> dict[str, Any]:
    """Return the members of a response, JSON text or an object that is parsed already.

    Raises:
        FormatError: If it is not a JSON object, or over 32 MiB.
    """
    if isinstance(response, (str, bytes)):
        if len(response) > _LARGEST:
            message = f"guest agent response: {len(response)} bytes exceed the limit of {_LARGEST}"
            raise FormatError(message, reason="too_large")
        return strict_json.read_object(response, "guest agent response")
    return dict(response)


def decode_attestation(fields: dict[str, Any]) -> bytes | None:
    """Return the bytes of a response's member `attestation` (hex); None if missing or empty.

    Raises:
        FormatError: If the member is not text, or not hex.
    """
    if not (text := fields.get("attestation")):
        return None
    return strict_json.from_hex(text, "attestation")


def vm_config_of(fields: dict[str, Any]) -> str:
    """Return the VM configuration (JSON text) in a response's members; empty if it has none.

    Raises:
        FormatError: If the member `vm_config` is not text.
    """
    return strict_json.string(fields, "vm_config", "")


def parse_quote_response(fields: dict[str, Any]) -> Evidence:
    """Build evidence from the members of a response to GetQuote, TdxQuote or RawQuote.

    Raises:
        FormatError: If quote or log is missing or malformed, or the report data of the response, if
            any, differs from that in the quote.
    """
    quote = strict_json.from_hex(fields.get("quote") or None, "quote")
    if not (log := strict_json.string(fields, "event_log", "")):
        raise FormatError("event_log: missing", reason="missing")
    evidence = parse_quote_and_log(quote, log, vm_config_of(fields))
    if stated := fields.get("report_data"):
        given = strict_json.from_hex(stated, "report_data")
        if not hmac.compare_digest(given.ljust(64, b"\0"), evidence.stack.report_data):
            raise FormatError("report_data: differs from that of the quote", reason="inconsistent")
    return evidence


def parse_quote_and_log(quote: bytes, event_log: str, config: str = "") -> Evidence:
    """Build evidence from a raw TDX quote and its event log, JSON text of an array.

    The runtime events are taken from the log, the report data from the quote. `config` is the VM
    configuration, JSON text; empty if unknown.

    Raises:
        FormatError: If quote or log is malformed, or the quote is of an SGX enclave.
        UsageError: If `quote` is not `bytes`, or `event_log` is neither text nor bytes.
    """
    report_data = td_body(quote).report_data
    events = tuple(agent_json.parse(event_log))
    EventLog.from_wire(events)  # validates the events
    runtime = tuple(
        [
            RuntimeEvent(event.event, event.event_payload, event.version)
            for event in events
            if event.event_type == RUNTIME_EVENT_TYPE
        ]
    )
    return Evidence(Tdx(quote, events), Stack(report_data, runtime, config))
