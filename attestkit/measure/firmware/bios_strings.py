"""Strings of a firmware's build, which OVMF adds to the SMBIOS table (type 0).

They are fixed when the firmware is built, in UTF-16, in the driver SmbiosPlatformDxe. GCC puts them
after the structure of type 0 that the driver publishes: date, version, vendor.
"""

import re
from typing import Final, NamedTuple
from uuid import UUID

from attestkit.errors import UsageError

SMBIOS_PLATFORM: Final = UUID("4110465d-5ff3-4f4b-b580-24ed0d06747a")
"""Name of the driver's file."""

_STRUCTURE: Final = bytes.fromhex("001a0000010200e803000800000000000000001c0000ffff0000")
_DEFAULT_DATE: Final = "02/02/2022"
_DEFAULTS: Final = "unknown", _DEFAULT_DATE
_REGION: Final = 1024  # bytes after the structure that have the strings
_PE32: Final = 0x10  # type of a section
_NOP: Final = bytes.fromhex("0f1f4000")  # the only padding of GCC that ends like a character
_TEXT: Final = re.compile(rb"(?:[\x20-\x7e]\0){3,}\0\0")
_DATE: Final = re.compile(r"\d\d/\d\d/\d{4}")


class BiosStrings(NamedTuple):
    """Vendor, version and date that a firmware was built with; a string may be empty."""

    vendor: str = "EDK II"
    version: str = ""
    date: str = ""

    def published(self) -> list[bytes]:
        """Return vendor, version and date as in the SMBIOS table, in ASCII.

        OVMF's defaults replace strings under 3 characters.

        Raises:
            UsageError: If a string is over 64 characters, not ASCII, or contains NUL.
        """
        pairs = zip(self, ("unknown", *_DEFAULTS), strict=True)
        found = [text if len(text) >= 3 else default for text, default in pairs]
        for text in found:
            if not text.isascii() or "\0" in text or len(text) > 64:
                message = (
                    "firmware strings: vendor, version and date must each be up to 64 ASCII "
                    "characters, without NUL"
                )
                raise UsageError(message, reason="wrong_value")
        return [text.encode() for text in found]


def find_bios_strings(driver: bytes) -> BiosStrings | None:
    """Return the strings in the driver SmbiosPlatformDxe; None if its layout is unknown.

    A string under 3 characters is returned as empty: the driver ignores it.

    Args:
        driver: Content of the driver's file (FFS): its sections.
    """
    before, structure, after = _read_program(driver).partition(_STRUCTURE)
    if not structure or _STRUCTURE in after:
        return None
    if any(f"{text}\0".encode("utf-16-le") not in before for text in _DEFAULTS):
        return None  # another release, with other defaults
    found = _read_texts(after[:_REGION])
    date = found.pop(0) if found and _DATE.fullmatch(found[0]) else ""
    if len(found) not in {1, 2} or any(_DATE.fullmatch(text) or len(text) > 64 for text in found):
        return None
    return BiosStrings(found[-1], found[0] if len(found) == 2 else "", date)


def _read_program(driver: bytes) -> bytes:
    """Return the content of the first PE32 section in a file of FFS; b"" without one."""
    at = 0
    while at + 4 <= len(driver):
        size = int.from_bytes(driver[at : at + 3], "little")
        if not 4 <= size <= len(driver) - at:
            break
        if driver[at + 3] == _PE32:
            return driver[at + 4 : at + size]
        at += -(-size // 4) * 4
    return b""


def _read_texts(region: bytes) -> list[str]:
    """Return the UTF-16 texts of at least 3 characters in `region`, bytes of the program."""
    padded = region.replace(_NOP, bytes(len(_NOP)))
    return [match[0].decode("utf-16-le").rstrip("\0") for match in _TEXT.finditer(padded)]
