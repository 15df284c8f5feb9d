"""AMD's extensions of VCEK and VLEK certificates: product, TCB, and chip or cloud provider.

They are specified in "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface
Specification" (57230).
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from attestkit._crypto.der import IA5_STRING, OCTET_STRING, DerReader
from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError

_PREFIX: Final = "1.3.6.1.4.1.3704.1."
_PRODUCT, _HARDWARE_ID, _PROVIDER = "2", "4", "5"
_SPLS: Final = {"boot_loader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_UNUSED: Final = ("3.4", "3.5", "3.6", "3.7")  # reserved SPLs
_HARDWARE_ID_SIZES: Final = (64, 8)  # bytes; Turin has 8


class AmdExtension(NamedTuple):
    """The platform and TCB of a VCEK or VLEK."""

    product: str  # such as Milan, without the stepping
    boot_loader: int  # security patch levels (SPLs), 0 to 255 each
    tee: int
    snp: int
    microcode: int
    fmc: int | None  # Turin and later
    hardware_id: bytes  # 64 bytes, on Turin 8; empty on a VLEK
    provider: str  # cloud provider ID (CSP_ID) of a VLEK; empty on a VCEK

    @property
    def kind(self) -> str:
        """`VCEK` (key of a chip) or `VLEK` (key of a cloud provider)."""
        return "VCEK" if self.hardware_id else "VLEK"


def read_amd_extension(extensions: Mapping[str, bytes]) -> AmdExtension | None:
    """Parse AMD's extensions of a certificate; return None for a certificate without them.

    Args:
        extensions: Contents of the extensions' OCTET STRINGs, by dotted OID.

    Raises:
        FormatError: If an extension is missing or malformed, or the certificate has the extensions
            of both VCEK and VLEK, or of neither.
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
        raise _bad(_SPLS[min(missing)], "missing", "missing")
    for suffix in _UNUSED:
        if suffix in own and _spl(own, suffix):
            raise _bad(suffix, "must be zero", "wrong_value")
    if (_HARDWARE_ID in own) == (_PROVIDER in own):
        message = "AMD extensions: must have either a hardware ID (VCEK) or a provider ID (VLEK)"
        raise FormatError(message, reason="inconsistent")
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
        raise _bad(suffix, f"must be 0 to 255, not {level}", "wrong_value")
    return level


def _text(own: Mapping[str, bytes], suffix: str) -> str:
    if suffix not in own:
        raise _bad(suffix, "missing", "missing")
    content = DerReader(own[suffix]).only(IA5_STRING)
    if not content.isascii() or not 1 <= len(content) <= 64 or not content.decode().isprintable():
        raise _bad(suffix, "must have 1 to 64 printable ASCII characters", "wrong_value")
    return content.decode()


def _hardware_id(value: bytes) -> bytes:
    """Return the hardware ID, the CHIP_ID of reports: 64 bytes, from Turin on 8.

    `value` is the extension's: the ID itself, or in old certificates an OCTET STRING with the ID.

    Raises:
        FormatError: If the ID has another size.
    """
    if len(value) - 2 in _HARDWARE_ID_SIZES:
        value = DerReader(value).only(OCTET_STRING)
    if len(value) not in _HARDWARE_ID_SIZES:
        raise _bad(_HARDWARE_ID, f"must have 64 or 8 bytes, not {len(value)}", "wrong_size")
    return value


def _bad(suffix: str, problem: str, reason: FormatReason) -> FormatError:
    return FormatError(f"AMD extension {_PREFIX}{suffix}: {problem}", reason=reason)
