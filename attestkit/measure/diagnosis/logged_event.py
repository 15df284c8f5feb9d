"""Names of the events in a log, from their digests and data.

A digest need not cover the data of its event. So a name that follows from the digest is certain; a
name from the data is only stated by the log.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from attestkit._crypto.hashes import sha384
from attestkit._sanitize import key
from attestkit.event_log import Event
from attestkit.event_log.event_types import (
    ACPI_CONFIG,
    EVENT_TAG,
    FIRMWARE_BLOB2,
    GPT_EVENT,
    HANDOFF_TABLES2,
    SEPARATOR,
    VARIABLE_TYPES,
)
from attestkit.measure.kernel.kernel_events import ACTIONS
from attestkit.measure.rtmr0.rtmr0_events import DIRECT_BOOT_ORDER

_VARIABLE_HEAD: Final = struct.Struct("<16sQQ")
_MAX_NAME: Final = 256  # characters
_FW_CFG: Final = b"QEMU FW CFG\0"
_BY_TYPE: Final = {FIRMWARE_BLOB2: "cfv", HANDOFF_TABLES2: "td-hob", GPT_EVENT: "gpt"}
_BY_TAG: Final = {0x8F3B22ED: "load-options", 0x8F3B22EC: "initrd"}
_TEXTS: Final = {
    **ACTIONS,
    "returning": b"Returning from EFI Application from Boot Option",
    "exit-failure": b"Exit Boot Services Returned with Failure",
    "separator": bytes(4),
    "error-separator": b"\1\0\0\0",
}
_BY_DIGEST: Final = {sha384(text): name for name, text in _TEXTS.items()}
_FW_CFG_BY_DIGEST: Final = {
    sha384(b"\0\0"): "BootMenu",
    sha384(b"\1\0"): "BootMenu",
    sha384(DIRECT_BOOT_ORDER): "bootorder",
}


class LoggedVariable(NamedTuple):
    """A UEFI variable in the data of an event: vendor GUID, name and value.

    It is untrusted unless the event's digest covers it.
    """

    vendor: UUID
    name: str
    data: bytes


def read_variable(event: Event) -> LoggedVariable | None:
    """Return the variable in the data of an event; None if the data are not a variable."""
    payload = event.payload
    if event.event_type not in VARIABLE_TYPES or len(payload) < _VARIABLE_HEAD.size:
        return None
    vendor, characters, size = _VARIABLE_HEAD.unpack_from(payload)
    start = _VARIABLE_HEAD.size + 2 * characters
    if not 0 < characters <= _MAX_NAME or start + size != len(payload):
        return None
    try:
        name = payload[_VARIABLE_HEAD.size : start].decode("utf-16-le")
    except UnicodeDecodeError:
        return None
    return LoggedVariable(UUID(bytes_le=vendor), name, payload[start:])


def name_event(event: Event) -> str:
    """Return the name that `ExpectedEvent` has for a logged event, found from its digest or data.

    If these are not known, it is the name of the event type.
    """
    if (known := _BY_DIGEST.get(event.digest)) is not None:
        return known
    if event.name:  # of an ACPI table
        return key(event.name)
    if (variable := read_variable(event)) is not None:
        return key(variable.name)
    if event.event_type == ACPI_CONFIG:
        return _name_item(event)
    tag = int.from_bytes(event.payload[:4], "little")
    if event.event_type == EVENT_TAG and tag in _BY_TAG:
        return _BY_TAG[tag]
    return _BY_TYPE.get(event.event_type, event.type_name)


def _name_item(event: Event) -> str:
    """Return `fw_cfg NAME` for an event of a fw_cfg item, with the name from its digest or data.

    If these are not known, it is the name of the event type.
    """
    item = _FW_CFG_BY_DIGEST.get(event.digest)
    if item is None and event.payload.startswith(_FW_CFG):
        item = key(event.payload[len(_FW_CFG) :].partition(b"\0")[0].decode("latin-1"))
    return event.type_name if item is None else f"fw_cfg {item}"


def acpi_digests(events: Sequence[Event]) -> tuple[bytes, bytes, bytes] | None:
    """Return the SHA-384 of loader script, RSDP and tables in a log; None without all three.

    If the log has no data of events, these are the three after the first separator of RTMR0.
    """
    found = [event for event in events if event.is_acpi_data]
    if not found:
        rtmr0 = [event for event in events if event.register == 0]
        types = [event.event_type for event in rtmr0]
        at = types.index(SEPARATOR) + 1 if SEPARATOR in types else len(types)
        found = [event for event in rtmr0[at : at + 3] if event.event_type == ACPI_CONFIG]
    if len(found) != 3:
        return None
    loader, rsdp, tables = (event.digest for event in found)
    return loader, rsdp, tables
