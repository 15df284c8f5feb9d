"""What AMD's certificates say of the chip or the cloud provider whose key they are for.

The extensions of VCEK and VLEK certificates are in "Versioned Chip Endorsement Key (VCEK)
Certificate and KDS Interface Specification" (57230); quote-formats.md, section 13, lists them.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from attestkit._crypto.der import IA5_STRING, OCTET_STRING, DerReader
from attestkit.errors import FormatError

__all__ = ["AmdExtension", "read_amd_extension"]

_PREFIX: Final = "1.3.6.1.4.1.3704.1."
_PRODUCT, _HARDWARE_ID, _PROVIDER = "2", "4", "5"
_SPLS: Final = {"boot_loader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_UNUSED: Final = ("3.4", "3.5", "3.6", "3.7")  # SPLs of bytes that no product uses
_HARDWARE_ID_SIZES: Final = (64, 8)  # bytes; Turin has 8


class AmdExtension(NamedTuple):
    """A key that signs reports: its processors, and the firmware that it is derived from."""

    product: str  # such as Milan, without the stepping that may follow
    boot_loader: int  # this and the next: security patch levels, 0..255
    tee: int
    snp: int
    microcode: int
    fmc: int | None  # Turin and later
    hardware_id: bytes  # 64 bytes, on Turin 8; empty on a VLEK
    provider: str  # of a VLEK: the cloud provider's id

    @property
    def kind(self) -> str:
        """`VCEK`, a chip's key, or `VLEK`, a cloud provider's."""
        return "VCEK" if self.hardware_id else "VLEK"


def read_amd_extension(extensions: Mapping[str, bytes]) -> AmdExtension | None:
    """Return what a certificate's extensions say; None where it has none of AMD's.

    Args:
        extensions: by dotted OID, what the OCTET STRING of each holds.

    Raises:
        FormatError: one is missing or malformed, or they are both a VCEK's and a VLEK's; the text
            names it.
    """
    own = {
        oid.removeprefix(_PREFIX): value
        for oid, value in extensions.items()
        if oid.startswith(_PREFIX)
    }
    if not own:
        return None
    spls = {name: _spl(own, suffix) for name, suffix in _SPLS.items() if suffix in own}
    if missing := _SPLS.keys() - spls.keys() - {"fmc"}:
        raise FormatError(f"AMD's extension {_PREFIX}{_SPLS[min(missing)]} is missing")
    for suffix in _UNUSED:
        if suffix in own and _spl(own, suffix):
            raise FormatError(f"AMD's extension {_PREFIX}{suffix} is not zero")
    if (_HARDWARE_ID in own) == (_PROVIDER in own):
        raise FormatError("AMD's extensions are neither those of a VCEK nor those of a VLEK")
    return AmdExtension(
        product=_text(own, _PRODUCT).partition("-")[0],
        boot_loader=spls["boot_loader"],
        tee=spls["tee"],
        snp=spls["snp"],
        microcode=spls["microcode"],
        fmc=spls.get("fmc"),
        hardware_id=_hardware_id(own[_HARDWARE_ID]) if _HARDWARE_ID in own else b"",
        provider=_text(own, _PROVIDER) if _PROVIDER in own else "",
    )


def _spl(own: Mapping[str, bytes], suffix: str) -> int:
    reader = DerReader(own[suffix])
    level = reader.integer()
    reader.finish()
    if not 0 <= level <= 0xFF:
        raise FormatError(f"AMD's extension {_PREFIX}{suffix} is {level}, not 0 to 255")
    return level


def _text(own: Mapping[str, bytes], suffix: str) -> str:
    if suffix not in own:
        raise FormatError(f"AMD's extension {_PREFIX}{suffix} is missing")
    reader = DerReader(own[suffix])
    content = reader.content(IA5_STRING)
    reader.finish()
    if not content.isascii() or not 1 <= len(content) <= 64 or not content.decode().isprintable():
        raise FormatError(f"AMD's extension {_PREFIX}{suffix} is not 1 to 64 ASCII characters")
    return content.decode()


def _hardware_id(value: bytes) -> bytes:
    """Return the id, which old certificates have inside an OCTET STRING."""
    if len(value) - 2 in _HARDWARE_ID_SIZES:
        reader = DerReader(value)
        value = reader.content(OCTET_STRING)
        reader.finish()
    if len(value) not in _HARDWARE_ID_SIZES:
        raise FormatError(f"AMD's extension {_PREFIX}{_HARDWARE_ID} has not 64 or 8 bytes")
    return value
