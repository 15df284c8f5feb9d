"""Command codes of a TPM 2.0 (TPM 2.0 Library, Part 2, section 6.5.2), and capabilities."""

from typing import Final

EVICT_CONTROL: Final = 0x0120
NV_UNDEFINE_SPACE: Final = 0x0122
NV_DEFINE_SPACE: Final = 0x012A
CREATE_PRIMARY: Final = 0x0131
NV_WRITE: Final = 0x0137
PCR_RESET: Final = 0x013D
SELF_TEST: Final = 0x0143
STARTUP: Final = 0x0144
SHUTDOWN: Final = 0x0145
NV_READ: Final = 0x014E
QUOTE: Final = 0x0158
CONTEXT_LOAD: Final = 0x0161
CONTEXT_SAVE: Final = 0x0162
FLUSH_CONTEXT: Final = 0x0165
NV_READ_PUBLIC: Final = 0x0169
READ_PUBLIC: Final = 0x0173
START_AUTH_SESSION: Final = 0x0176
GET_CAPABILITY: Final = 0x017A
GET_RANDOM: Final = 0x017B
PCR_READ: Final = 0x017E
READ_CLOCK: Final = 0x0181
PCR_EXTEND: Final = 0x0182
NITRO_ATTEST: Final = 0x20000001
"""AWS NitroTPM's vendor command: two handles of an NV index, one authorization, no parameters."""

COMMAND_NAMES: Final = {
    EVICT_CONTROL: "EvictControl",
    NV_UNDEFINE_SPACE: "NV_UndefineSpace",
    NV_DEFINE_SPACE: "NV_DefineSpace",
    CREATE_PRIMARY: "CreatePrimary",
    NV_WRITE: "NV_Write",
    SELF_TEST: "SelfTest",
    STARTUP: "Startup",
    NV_READ: "NV_Read",
    QUOTE: "Quote",
    FLUSH_CONTEXT: "FlushContext",
    NV_READ_PUBLIC: "NV_ReadPublic",
    READ_PUBLIC: "ReadPublic",
    START_AUTH_SESSION: "StartAuthSession",
    GET_CAPABILITY: "GetCapability",
    PCR_READ: "PCR_Read",
    PCR_EXTEND: "PCR_Extend",
}
"""Names of the commands that `TpmClient` sends, for errors."""

# In a listed command with attributes (TPMA_CC).
VENDOR: Final = 1 << 29
CODE_MASK: Final = VENDOR | 0xFFFF

# Capabilities that GetCapability lists (TPM_CAP).
CAP_HANDLES: Final = 1
CAP_COMMANDS: Final = 2
CAP_PCRS: Final = 5
CAP_PROPERTIES: Final = 6
