"""Response codes of a TPM: names, meanings, and the error of a failed command.

Source: TPM 2.0 Library, Part 2, section 6.6. A code of format 1 (bit 7) has the number of the
parameter (bit 6), session (bit 11) or else handle to which the error belongs, from bit 8 on.
"""

from typing import Final

from attestkit.errors import BackendBusyError, BackendError

SUCCESS: Final = 0
INITIALIZE: Final = 0x100  # in an answer to Startup: already started
FAILURE: Final = 0x101
COMMAND_CODE: Final = 0x143
NV_RANGE: Final = 0x146
NV_LOCKED: Final = 0x148
NV_AUTHORIZATION: Final = 0x149
NV_UNINITIALIZED: Final = 0x14A
NV_SPACE: Final = 0x14B
NV_DEFINED: Final = 0x14C
OBJECT_MEMORY: Final = 0x902
SESSION_MEMORY: Final = 0x903
YIELDED: Final = 0x908
TESTING: Final = 0x90A
LOCKOUT: Final = 0x921
RETRY: Final = 0x922
RESMGR_COMMAND_CODE: Final = 0x000B0143  # of the kernel's resource manager

BUSY: Final = frozenset({RETRY, TESTING, YIELDED})

# Errors of format 1, without the number of the parameter, session or handle.
_AUTH_FAIL: Final = 0x08E
_HANDLE: Final = 0x08B
_BAD_AUTH: Final = 0x0A2

_NOT_LOADED: Final = range(0x910, 0x917)  # TPM_RC_REFERENCE_H0 to _H6

_FORMAT_1: Final = 0x080
_PARAMETER: Final = 0x040
_SESSION: Final = 0x800

# Name without TPM_RC_, and meaning or remedy.
_MEANINGS: Final = {
    INITIALIZE: ("INITIALIZE", "the TPM is not started, or already started"),
    FAILURE: ("FAILURE", "the TPM is in failure mode; restart the machine"),
    0x120: ("DISABLED", "the command is disabled"),
    0x121: ("EXCLUSIVE", "another session is exclusive"),
    0x126: ("POLICY", "a policy is not satisfied"),
    0x127: ("PCR", "the PCR check failed"),
    0x128: ("PCR_CHANGED", "a PCR changed"),
    COMMAND_CODE: ("COMMAND_CODE", "the TPM does not have the command"),
    0x144: ("COMMAND_SIZE", "the command has a wrong size"),
    NV_RANGE: ("NV_RANGE", "offset and size are outside of the NV index"),
    0x147: ("NV_SIZE", "the data do not fit in the NV index"),
    NV_LOCKED: ("NV_LOCKED", "the NV index is locked"),
    NV_AUTHORIZATION: ("NV_AUTHORIZATION", "the NV index does not permit this authorization"),
    NV_UNINITIALIZED: ("NV_UNINITIALIZED", "the NV index was never written"),
    NV_SPACE: ("NV_SPACE", "no room for another NV index"),
    NV_DEFINED: ("NV_DEFINED", "the NV index or persistent handle is already defined"),
    OBJECT_MEMORY: ("OBJECT_MEMORY", "no room for another key; flush one"),
    SESSION_MEMORY: ("SESSION_MEMORY", "no room for another session; flush one"),
    0x904: ("MEMORY", "the TPM is out of memory"),
    0x905: ("SESSION_HANDLES", "no free handle of a session; flush one"),
    0x906: ("OBJECT_HANDLES", "no free handle of a key; flush one"),
    YIELDED: ("YIELDED", "the TPM is busy"),
    TESTING: ("TESTING", "the TPM is testing itself"),
    0x910: ("REFERENCE_H0", "the first handle is not loaded"),
    0x918: ("REFERENCE_S0", "the session is not loaded"),
    LOCKOUT: ("LOCKOUT", "too many wrong passwords: the TPM is locked out"),
    RETRY: ("RETRY", "the TPM is busy"),
    0x923: ("NV_UNAVAILABLE", "the NV memory is not accessible"),
}
_FORMAT_1_MEANINGS: Final = {
    0x081: ("ASYMMETRIC", "unsupported asymmetric algorithm"),
    0x082: ("ATTRIBUTES", "inconsistent attributes"),
    0x083: ("HASH", "unsupported hash algorithm"),
    0x084: ("VALUE", "a value is out of range"),
    0x085: ("HIERARCHY", "the hierarchy is not enabled or not correct"),
    0x087: ("KEY_SIZE", "unsupported size of a key"),
    0x08A: ("TYPE", "wrong type"),
    _HANDLE: ("HANDLE", "no such handle or NV index"),
    _AUTH_FAIL: ("AUTH_FAIL", "wrong password or HMAC"),
    0x08F: ("NONCE", "wrong size of a nonce"),
    0x092: ("SCHEME", "unsupported scheme"),
    0x095: ("SIZE", "wrong size"),
    0x096: ("SYMMETRIC", "unsupported symmetric algorithm"),
    0x098: ("SELECTOR", "unsupported selector"),
    0x09A: ("INSUFFICIENT", "the command is truncated"),
    0x09D: ("POLICY_FAIL", "a policy is not satisfied"),
    0x0A0: ("INTEGRITY", "an integrity check failed"),
    _BAD_AUTH: ("BAD_AUTH", "wrong password or HMAC"),
    0x0A6: ("CURVE", "unsupported curve"),
    0x0A7: ("ECC_POINT", "not a point of the curve"),
}


class TpmError(BackendError):
    """A TPM answered a command with an error; `code` is the response code."""

    def __init__(self, subject: str, code: int, *, path: str = "") -> None:
        prefix = f"{path}: " if path else ""
        super().__init__(f"{prefix}{subject}: {describe(code)}", reason="tpm_error", path=path)
        self.code = code

    @property
    def is_absent(self) -> bool:
        """Whether a handle or an NV index does not exist, or the index was never written."""
        return is_absent(self.code)

    @property
    def is_unknown_command(self) -> bool:
        """Whether the TPM, or the kernel's resource manager, does not know the command."""
        return self.code in (COMMAND_CODE, RESMGR_COMMAND_CODE)

    @property
    def is_denied(self) -> bool:
        """Whether the NV index cannot be used with this authorization."""
        return self.code == NV_AUTHORIZATION or base_code(self.code) in (_AUTH_FAIL, _BAD_AUTH)


class TpmBusyError(BackendBusyError):
    """A TPM was busy until the time limit of a command; `code` is its last response code."""

    def __init__(self, subject: str, code: int, seconds: float, *, path: str = "") -> None:
        prefix = f"{path}: " if path else ""
        text = f"{prefix}{subject}: busy for {seconds:g} s ({describe(code)}); retry later"
        super().__init__(text, reason="device", path=path)
        self.code = code


def base_code(code: int) -> int:
    """Return a code of format 1 without the number of its parameter, session or handle."""
    return code & 0xBF if code & _FORMAT_1 and code < 0x1000 else code


def is_absent(code: int) -> bool:
    """Return whether a code says that a handle does not exist or an NV index was never written."""
    wrong_handle = base_code(code) == _HANDLE and not code & (_PARAMETER | _SESSION)
    return wrong_handle or code == NV_UNINITIALIZED or code in _NOT_LOADED


def describe(code: int) -> str:
    """Return a code with its name and meaning, such as "0x18b, TPM_RC_HANDLE of handle 1: ..."."""
    if code == RESMGR_COMMAND_CODE:
        return f"{code:#x}: the kernel's resource manager refused the command as unknown"
    if code >> 16:
        return f"{code:#x}, layer {code >> 16:#x}: {describe(code & 0xFFFF)}"
    if not code & _FORMAT_1:
        name, meaning = _MEANINGS.get(code, ("", "see TPM 2.0 Library, Part 2, section 6.6"))
        return f"{code:#x}{f', TPM_RC_{name}' if name else ''}: {meaning}"
    name, meaning = _FORMAT_1_MEANINGS.get(
        base_code(code), ("", "see TPM 2.0 Library, Part 2, section 6.6")
    )
    if code & _PARAMETER:
        place = f"parameter {code >> 8 & 0xF}"
    elif code & _SESSION:
        place = f"session {code >> 8 & 7}"
    else:
        place = f"handle {code >> 8 & 7}"
    return f"{code:#x}{f', TPM_RC_{name}' if name else ''} of {place}: {meaning}"
