"""UEFI variables in a firmware's volume of variables, such as the keys of secure boot."""

import struct
from types import MappingProxyType
from typing import Final
from uuid import UUID

from attestkit._reasons import FormatReason
from attestkit.attestation.launch.uefi_variable import VariableName
from attestkit.errors import FormatError

_AUTHENTICATED: Final = UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
_STORE: Final = struct.Struct("<16sIBB6x")
_VARIABLE: Final = struct.Struct("<HB33xII16s")
_START_ID: Final = 0x55AA
_VALID: Final = 0x3F
_FORMATTED, _HEALTHY = 0x5A, 0xFE  # states of a store
_MAX_VARIABLES: Final = 4096


def read_variables(volume: bytes) -> MappingProxyType[VariableName, bytes]:
    """Return the variables of a volume; of several with the same name, the last.

    Offsets of errors are in the volume.

    Raises:
        FormatError: If the volume does not contain a store of authenticated variables, or that is
            malformed, or has over 4,096 variables.
    """
    if len(volume) < 56:
        raise _error("truncated", "truncated", len(volume))
    start = int.from_bytes(volume[48:50], "little")
    at = start + _STORE.size
    if at > len(volume):
        raise _error("header truncated", "truncated", len(volume))
    kind, size, formatted, state = _STORE.unpack_from(volume, start)
    if kind != _AUTHENTICATED or (formatted, state) != (_FORMATTED, _HEALTHY):
        raise _error("must be of authenticated variables", "unsupported", start)
    end = start + size
    if not at <= end <= len(volume):
        raise _error(f"{size} bytes", "wrong_size", start + 16)
    return MappingProxyType(_read_entries(volume, at, end))


def _read_entries(volume: bytes, at: int, end: int) -> dict[VariableName, bytes]:
    """Return the variables in [at, end)."""
    found: dict[VariableName, bytes] = {}
    count = 0
    while at + _VARIABLE.size <= end:
        start_id, state, name_size, size, vendor = _VARIABLE.unpack_from(volume, at)
        if start_id != _START_ID:
            break
        count += 1
        if count > _MAX_VARIABLES:
            raise _error(f"over {_MAX_VARIABLES} variables", "too_many", at)
        data_at = at + _VARIABLE.size + name_size
        if data_at + size > end:
            raise _error("variable truncated", "truncated", at)
        if state == _VALID:
            name = _decode_name(volume[at + _VARIABLE.size : data_at], at)
            found[VariableName(UUID(bytes_le=vendor), name)] = volume[data_at : data_at + size]
        at = -(-(data_at + size) // 4) * 4
    return found


def _decode_name(raw: bytes, at: int) -> str:
    try:
        return raw.decode("utf-16-le").rstrip("\0")
    except UnicodeDecodeError as error:
        raise _error("name is not UTF-16", "encoding", at) from error


def _error(problem: str, reason: FormatReason, offset: int) -> FormatError:
    return FormatError(f"firmware: variable store: {problem}", reason=reason, offset=offset)
