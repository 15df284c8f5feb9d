"""Sample records of Canonical Event Logs, and the parts to build invalid ones from."""

import json
from hashlib import sha384
from typing import Any

import cbor2

from attestkit.event_log import Event, EventLog
from attestkit.event_log.runtime_events import runtime_event

DIGEST = sha384(bytes(4)).digest()

# The same record in each encoding (TCG Canonical Event Log Format): a separator in RTMR1.
EXAMPLE = {
    "tlv": bytes.fromhex("0000000001000100000001020300000035 0c00000030")
    + DIGEST
    + bytes.fromhex("050000000f 000000000104 0100000004 00000000"),
    "cbor": bytes.fromhex("81a50000010203 81a2000c015830")
    + DIGEST
    + bytes.fromhex("09050aa2000401 4400000000"),
    "json": (
        '[{"recnum":0,"pcr":2,"digests":[{"hashAlg":"sha384","digest":"' + DIGEST.hex() + '"}],'
        '"content_type":"pcclient_std",'
        '"content":{"event_type":"ev_separator","event_data":"00000000"}}]'
    ).encode(),
}

FULL = EventLog(
    [
        Event(0, 0x8000000B, DIGEST, "", b"\x09TdxTable\0"),
        *[
            Event(0, 0xA, sha384(name.encode()).digest(), name, b"ACPI DATA")
            for name in ("acpi-loader", "acpi-rsdp", "acpi-tables")
        ],
        Event(1, 3, bytes(48), "", b"informative"),
        Event(2, 0x12345678, DIGEST, "", b""),
        runtime_event("app-id", b"a:b"),
        runtime_event("name: \N{LATIN SMALL LETTER E WITH ACUTE}\n", b"\0", 2),
    ]
)
"""A log with every kind of event."""


def tlv(kind: int, value: bytes) -> bytes:
    """Return a TLV element."""
    return bytes([kind]) + len(value).to_bytes(4, "big") + value


def number(kind: int, value: int, size: int = 1) -> bytes:
    """Return a TLV element with a number as its value."""
    return tlv(kind, value.to_bytes(size, "big"))


def record(  # the default is the valid part
    at: int = 0,
    register: bytes = number(1, 2),
    digests: bytes = tlv(0xC, DIGEST),
    content: bytes = tlv(5, number(0, 4) + tlv(1, bytes(4))),
) -> bytes:
    """Return a record in TLV."""
    return number(0, at) + register + tlv(3, digests) + content


def text(**changed: Any) -> bytes:
    """Return a JSON log of one record with changed members; None removes a member."""
    members = json.loads(EXAMPLE["json"])[0] | changed
    return json.dumps(
        [{key: value for key, value in members.items() if value is not None}]
    ).encode()


def cbor(*records: object) -> bytes:
    """Return the concatenated deterministic CBOR encodings of values."""
    return b"".join(cbor2.dumps(value, canonical=True) for value in records)


def cbor_record(changed: dict[int, Any] | None = None) -> dict[int, Any]:
    """Return the sample record with changed members."""
    return {**cbor2.loads(EXAMPLE["cbor"])[0], **(changed or {})}
