"""Attributes of an NV index of a TPM 2.0: TPMA_NV (TPM 2.0 Library, Part 2, section 13.4)."""

from typing import Final

PP_WRITE: Final = 1 << 0
OWNER_WRITE: Final = 1 << 1
AUTH_WRITE: Final = 1 << 2
POLICY_WRITE: Final = 1 << 3
TYPE: Final = 0xF << 4
POLICY_DELETE: Final = 1 << 10
WRITE_LOCKED: Final = 1 << 11
WRITE_ALL: Final = 1 << 12
PP_READ: Final = 1 << 16
OWNER_READ: Final = 1 << 17
AUTH_READ: Final = 1 << 18
POLICY_READ: Final = 1 << 19
NO_DA: Final = 1 << 25
CLEAR_AT_STARTUP: Final = 1 << 27
READ_LOCKED: Final = 1 << 28
WRITTEN: Final = 1 << 29
PLATFORM_CREATE: Final = 1 << 30
RESERVED: Final = 0x01F00300
