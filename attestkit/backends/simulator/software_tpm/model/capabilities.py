"""Answers to TPM2_GetCapability (TPM 2.0 Library, Part 3, section 30.2)."""

from collections.abc import Iterable
from typing import Final

from attestkit.backends.simulator.software_tpm.model.command_call import CommandCall, CommandReply
from attestkit.backends.simulator.software_tpm.model.command_reader import (
    MAX_NV_BUFFER,
    encode_pcr_selections,
    u16,
    u32,
)
from attestkit.backends.simulator.software_tpm.model.key_objects import (
    PERSISTENT_SLOTS,
    TRANSIENT_SLOTS,
)
from attestkit.backends.simulator.software_tpm.model.sessions import MOST_ACTIVE, MOST_LOADED
from attestkit.backends.simulator.software_tpm.model.tpm_state import TpmState
from attestkit.tpm import command_codes
from attestkit.tpm.algorithms import CURVE_NAMES
from attestkit.tpm.handles import ENDORSEMENT, LOCKOUT, NULL, OWNER, PASSWORD_SESSION, PLATFORM
from attestkit.tpm.pcrs import PCR_COUNT
from attestkit.tpm.response_codes import RC_HANDLE, RC_VALUE

_MOST_ITEMS: Final = 254  # MAX_CAP_HANDLES, the smallest of the limits
_VENDOR: Final = 0x100  # a capability that this TPM does not have
_CAPABILITIES: Final = (*range(11), _VENDOR)
_PERMANENT: Final = (OWNER, NULL, PASSWORD_SESSION, LOCKOUT, ENDORSEMENT, PLATFORM)
_LARGEST_COMMAND: Final = 4096

# Algorithms with TPMA_ALGORITHM.
_ALGORITHMS: Final = {
    0x0001: 0x009, 0x0004: 0x004, 0x0005: 0x104, 0x0006: 0x002, 0x000B: 0x004, 0x000C: 0x004,
    0x000D: 0x004, 0x0014: 0x101, 0x0015: 0x201, 0x0016: 0x101, 0x0017: 0x201, 0x0018: 0x101,
    0x0022: 0x404, 0x0023: 0x009, 0x0043: 0x202,
}  # fmt: skip
# TPM_PT_PCR: which PCRs have a property, as bitmaps.
_PCR_PROPERTIES: Final = {
    0x00: "ffff00", 0x01: "ffff81", 0x02: "000081", 0x03: "ffff91", 0x04: "000081", 0x05: "ffffff",
    0x06: "0000f1", 0x07: "ffff9f", 0x08: "000081", 0x09: "ffff87", 0x0A: "00007e", 0x11: "0000e1",
    0x12: "00007e", 0x13: "000070", 0x14: "000070",
}  # fmt: skip


def answer_capability(call: CommandCall, commands: Iterable[int]) -> CommandReply:
    """Answer TPM2_GetCapability; `commands` are the attributes (TPMA_CC) of all commands.

    Raises:
        TpmResponseError: If the parameters are malformed, or the capability is not supported.
    """
    reader = call.reader
    what = reader.next().u32()
    if what not in _CAPABILITIES:
        raise reader.error(RC_VALUE)
    first, count = reader.next().u32(), reader.next().u32()
    reader.finish()
    reader.number = 1 if what == _VENDOR else 2
    if what == command_codes.CAP_PCRS:
        if first:
            raise reader.error(RC_VALUE)
        everything = (1 << PCR_COUNT) - 1
        banks = [(bank, everything) for bank in call.state.pcrs.values]
        return CommandReply(b"\0" + u32(what) + encode_pcr_selections(banks))
    state = call.state
    if what == command_codes.CAP_HANDLES:
        handles = _list_handles(state, first >> 24)
        if handles is None:
            raise reader.error(RC_HANDLE)
        items = {key: u32(handle) for key, handle in handles.items()}
    elif what == command_codes.CAP_COMMANDS:
        items = {attributes & command_codes.CODE_MASK: u32(attributes) for attributes in commands}
    elif what == command_codes.CAP_PROPERTIES:
        found = _fixed_properties(state) if first < 0x200 else _variable_properties(state)
        items = {tag: u32(tag) + u32(value) for tag, value in found.items()}
    elif (others := _other_items(what)) is not None:
        items = others
    else:
        raise reader.error(RC_VALUE)
    return CommandReply(_encode_items(what, items, first, count))


def _encode_items(what: int, items: dict[int, bytes], first: int, count: int) -> bytes:
    """Return the parameters of the response: flag for more items, capability, and list of items.

    Args:
        what: Capability (TPM_CAP).
        items: Encoded items by handle, code or property.
        first: First key to return.
        count: Largest number of items.
    """
    wanted = [items[key] for key in sorted(items) if key >= first]
    given = wanted[: min(count, _MOST_ITEMS)]
    return bytes([len(wanted) > len(given)]) + u32(what) + u32(len(given)) + b"".join(given)


def _other_items(what: int) -> dict[int, bytes] | None:
    if what == 0:
        return {number: u16(number) + u32(value) for number, value in _ALGORITHMS.items()}
    if what in (3, 4):  # commands with physical presence, or audited
        return {}
    if what == 7:
        return {
            tag: u32(tag) + b"\3" + bytes.fromhex(bitmap) for tag, bitmap in _PCR_PROPERTIES.items()
        }
    return {number: u16(number) for number in CURVE_NAMES} if what == 8 else None


def _list_handles(state: TpmState, kind: int) -> dict[int, int] | None:
    """Return the handles of the type `kind`, their first byte, by their sort key: type and index.

    None for an unknown type.
    """
    kinds: dict[int, Iterable[int]] = {
        0x00: range(PCR_COUNT),
        0x01: state.nv.indices,
        0x02: state.sessions.loaded,
        0x03: state.sessions.saved,
        0x40: _PERMANENT,
        0x80: state.keys.transient,
        0x81: state.keys.persistent,
    }
    found = kinds.get(kind)
    if found is None:
        return None
    return {kind << 24 | handle & 0xFFFFFF: handle for handle in found}


def _fixed_properties(state: TpmState) -> dict[int, int]:
    """Return the properties of the group PT_FIXED, by TPM_PT; limits are those of libtpms."""
    identity = state.identity
    vendor = identity.vendor.encode().ljust(16, b"\0")
    texts = [int.from_bytes(vendor[at : at + 4], "big") for at in range(0, 16, 4)]
    maker = int.from_bytes(identity.manufacturer.encode().ljust(4), "big")
    version = identity.firmware_version
    return {
        0x100: 0x322E3000, 0x101: 0, 0x102: 164, 0x103: 75, 0x104: 2021, 0x105: maker,
        0x106: texts[0], 0x107: texts[1], 0x108: texts[2], 0x109: texts[3], 0x10A: 1,
        0x10B: version >> 32, 0x10C: version & 0xFFFFFFFF, 0x10D: MAX_NV_BUFFER,
        0x10E: TRANSIENT_SLOTS, 0x10F: PERSISTENT_SLOTS, 0x110: MOST_LOADED, 0x111: MOST_ACTIVE,
        0x112: PCR_COUNT, 0x113: 3, 0x114: 0xFFFF, 0x117: state.nv.largest, 0x11A: 0x0D, 0x11B: 6,
        0x11E: _LARGEST_COMMAND, 0x11F: _LARGEST_COMMAND, 0x120: 64, 0x12C: MAX_NV_BUFFER,
        0x12D: 0, 0x12E: MAX_NV_BUFFER,
    }  # fmt: skip


def _variable_properties(state: TpmState) -> dict[int, int]:
    """Return the properties of the group PT_VAR, by TPM_PT."""
    locked_out = state.locked_out
    transient, sessions = state.keys.transient, state.sessions
    active = len(sessions.loaded) + len(sessions.saved)
    persistent = len(state.keys.persistent)
    return {
        0x200: 0x400 | locked_out << 9, 0x201: 0x8000000F, 0x202: len(state.nv.indices),
        0x203: len(sessions.loaded), 0x204: MOST_LOADED - len(sessions.loaded), 0x205: active,
        0x206: MOST_ACTIVE - active, 0x207: TRANSIENT_SLOTS - len(transient), 0x208: persistent,
        0x209: PERSISTENT_SLOTS - persistent, 0x20A: 0, 0x20B: 0, 0x20C: 0, 0x20D: len(CURVE_NAMES),
        0x20E: state.failures, 0x20F: 3, 0x210: 1000, 0x211: 1000, 0x212: 0, 0x213: 0, 0x214: 0,
    }  # fmt: skip
