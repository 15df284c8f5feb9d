"""Response codes of a TPM (TPM 2.0 Library, Part 2, section 6.6), as an internal exception."""

from typing import Final

# Format one: a parameter, handle or session can be added.
RC_ATTRIBUTES: Final = 0x82
RC_HASH: Final = 0x83
RC_VALUE: Final = 0x84
RC_HIERARCHY: Final = 0x85
RC_MODE: Final = 0x89
RC_TYPE: Final = 0x8A
RC_HANDLE: Final = 0x8B
RC_KDF: Final = 0x8C
RC_RANGE: Final = 0x8D
RC_AUTH_FAIL: Final = 0x8E
RC_NONCE: Final = 0x8F
RC_SCHEME: Final = 0x92
RC_SIZE: Final = 0x95
RC_SYMMETRIC: Final = 0x96
RC_INSUFFICIENT: Final = 0x9A
RC_KEY: Final = 0x9C
RC_INTEGRITY: Final = 0x9F
RC_RESERVED_BITS: Final = 0xA1
RC_BAD_AUTH: Final = 0xA2
RC_CURVE: Final = 0xA6

# Format zero: complete as they are.
RC_BAD_TAG: Final = 0x01E
RC_INITIALIZE: Final = 0x100
RC_AUTH_MISSING: Final = 0x125
RC_AUTH_UNAVAILABLE: Final = 0x12F
RC_COMMAND_SIZE: Final = 0x142
RC_COMMAND_CODE: Final = 0x143
RC_NV_RANGE: Final = 0x146
RC_NV_AUTHORIZATION: Final = 0x149
RC_NV_UNINITIALIZED: Final = 0x14A
RC_NV_SPACE: Final = 0x14B
RC_NV_DEFINED: Final = 0x14C
RC_OBJECT_MEMORY: Final = 0x902
RC_SESSION_MEMORY: Final = 0x903
RC_SESSION_HANDLES: Final = 0x905
RC_LOCALITY: Final = 0x907
RC_REFERENCE_H0: Final = 0x910
RC_REFERENCE_S0: Final = 0x918
RC_LOCKOUT: Final = 0x921

_FORMAT_ONE: Final = 0x80
_PARAMETER: Final = 0x40
_SESSION: Final = 0x800


class TpmResponseError(Exception):
    """A command failed with a response code; `TpmModel.execute` returns it as a response."""

    def __init__(self, code: int) -> None:
        super().__init__(f"0x{code:03x}")
        self.code = code


def parameter_error(code: int, number: int) -> TpmResponseError:
    """Return the error of a parameter, counted from 1; 0 adds none."""
    if not number or not code & _FORMAT_ONE:
        return TpmResponseError(code)
    return TpmResponseError(code | _PARAMETER | number << 8)


def handle_error(code: int, number: int) -> TpmResponseError:
    """Return the error of a handle, counted from 1."""
    return TpmResponseError(code | number << 8)


def session_error(code: int, number: int) -> TpmResponseError:
    """Return the error of a session, counted from 1."""
    return TpmResponseError(code | _SESSION | number << 8)
