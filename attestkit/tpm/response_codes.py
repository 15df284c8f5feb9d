"""Response codes of a TPM 2.0 (TPM 2.0 Library, Part 2, section 6.6), TPM_RC in the library.

A code of format 1 (bit 7 set) also has, from bit 8 on, the number of the parameter (bit 6 set),
session (bit 11 set) or handle (neither) to which the error belongs.
"""

from typing import Final

FORMAT_1: Final = 0x080
PARAMETER: Final = 0x040
SESSION: Final = 0x800

# Format 1, without the number of the parameter, session or handle.
RC_ASYMMETRIC: Final = 0x081
RC_ATTRIBUTES: Final = 0x082
RC_HASH: Final = 0x083
RC_VALUE: Final = 0x084
RC_HIERARCHY: Final = 0x085
RC_KEY_SIZE: Final = 0x087
RC_MODE: Final = 0x089
RC_TYPE: Final = 0x08A
RC_HANDLE: Final = 0x08B
RC_KDF: Final = 0x08C
RC_RANGE: Final = 0x08D
RC_AUTH_FAIL: Final = 0x08E
RC_NONCE: Final = 0x08F
RC_SCHEME: Final = 0x092
RC_SIZE: Final = 0x095
RC_SYMMETRIC: Final = 0x096
RC_SELECTOR: Final = 0x098
RC_INSUFFICIENT: Final = 0x09A
RC_KEY: Final = 0x09C
RC_POLICY_FAIL: Final = 0x09D
RC_INTEGRITY: Final = 0x09F
RC_RESERVED_BITS: Final = 0x0A1
RC_BAD_AUTH: Final = 0x0A2
RC_CURVE: Final = 0x0A6
RC_ECC_POINT: Final = 0x0A7

# Format 0: complete.
RC_BAD_TAG: Final = 0x01E
RC_INITIALIZE: Final = 0x100
RC_FAILURE: Final = 0x101
RC_DISABLED: Final = 0x120
RC_EXCLUSIVE: Final = 0x121
RC_AUTH_MISSING: Final = 0x125
RC_POLICY: Final = 0x126
RC_PCR: Final = 0x127
RC_PCR_CHANGED: Final = 0x128
RC_AUTH_UNAVAILABLE: Final = 0x12F
RC_COMMAND_SIZE: Final = 0x142
RC_COMMAND_CODE: Final = 0x143
RC_AUTH_CONTEXT: Final = 0x145
RC_NV_RANGE: Final = 0x146
RC_NV_SIZE: Final = 0x147
RC_NV_LOCKED: Final = 0x148
RC_NV_AUTHORIZATION: Final = 0x149
RC_NV_UNINITIALIZED: Final = 0x14A
RC_NV_SPACE: Final = 0x14B
RC_NV_DEFINED: Final = 0x14C
RC_OBJECT_MEMORY: Final = 0x902
RC_SESSION_MEMORY: Final = 0x903
RC_MEMORY: Final = 0x904
RC_SESSION_HANDLES: Final = 0x905
RC_OBJECT_HANDLES: Final = 0x906
RC_LOCALITY: Final = 0x907
RC_YIELDED: Final = 0x908
RC_TESTING: Final = 0x90A
RC_REFERENCE_H0: Final = 0x910  # to RC_REFERENCE_H6
RC_REFERENCE_H6: Final = 0x916
RC_REFERENCE_S0: Final = 0x918
RC_LOCKOUT: Final = 0x921
RC_RETRY: Final = 0x922
RC_NV_UNAVAILABLE: Final = 0x923

RC_RESMGR_COMMAND_CODE: Final = 0x000B0143
"""RC_COMMAND_CODE in the layer of the kernel's resource manager: it refused the command."""
