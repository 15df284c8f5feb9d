"""Extensions of simulated certificates of GPUs: DICE, device name, OCSP.

The DICE extension contains the digest of the firmware (FWID) that holds the leaf's key. Its form
depends on the architecture: DiceFwid with the device's key (Hopper, LS10), or DiceTcbInfo
(Blackwell).
"""

from typing import Final

from attestkit._crypto import der
from attestkit._crypto.x509.simulated.cloud_certificates import Extension

OCSP_SIGNING: Final = bytes.fromhex("2b06010505070309")
"""Extended key usage of a delegated OCSP responder: content of the OBJECT IDENTIFIER."""

OCSP_NO_CHECK: Final = Extension(bytes.fromhex("2b0601050507300105"), b"\x05\x00")
"""Extension of a responder whose own revocation is not checked (RFC 6960, 4.2.2.2.1)."""

_OCSP: Final = bytes.fromhex("2b06010505073001")  # 1.3.6.1.5.5.7.48.1
_AUTHORITY_INFORMATION: Final = bytes.fromhex("2b06010505070101")
_SUBJECT_ALT_NAME: Final = bytes.fromhex("551d11")
_DEVICE_NAME: Final = bytes.fromhex("2b06010401831c821201")  # 1.3.6.1.4.1.412.274.1
_DICE_FWID: Final = bytes.fromhex("678105050401")  # 2.23.133.5.4.1
_DICE_TCB_INFO: Final = bytes.fromhex("67810505040101")
_SHA384: Final = der.encode_element(der.OID, bytes.fromhex("608648016503040202"))
_URI: Final = 0x86
_CONTEXT: Final = 0x80  # primitive, context-specific
_FWIDS: Final = 6  # number of the field of DiceTcbInfo with several FWIDs, which is constructed


def encode_ocsp_access(url: str) -> Extension:
    """Return the authority information access extension with the ASCII URL of an OCSP responder."""
    address = der.encode_element(_URI, url.encode("ascii"))
    described = der.encode_sequence(der.encode_element(der.OID, _OCSP), address)
    return Extension(_AUTHORITY_INFORMATION, der.encode_sequence(described))


def encode_device_name(text: str) -> Extension:
    """Return the alternative name of a device, `VENDOR:PRODUCT:SERIAL` in ASCII (DSP0274)."""
    value = der.encode_element(
        der.context(0), der.encode_element(der.UTF8_STRING, text.encode("ascii"))
    )
    name = der.encode_element(der.context(0), der.encode_element(der.OID, _DEVICE_NAME) + value)
    return Extension(_SUBJECT_ALT_NAME, der.encode_sequence(name))


def encode_dice_fwid(device_key: bytes, fwid: bytes) -> Extension:
    """Return the DICE extension of a Hopper GPU or an LS10 switch.

    Args:
        device_key: SubjectPublicKeyInfo in DER of the device, the leaf's issuer.
        fwid: SHA-384 of the firmware, 48 bytes.
    """
    return Extension(
        _DICE_FWID, der.encode_sequence(der.encode_integer(1), device_key, _encode_fwid(fwid))
    )


def encode_dice_tcb_info(vendor: str, model: str, fwid: bytes) -> Extension:
    """Return the DICE extension of a Blackwell GPU: DiceTcbInfo, as real devices have it.

    Args:
        vendor: Name of the vendor.
        model: Chip and processor, such as `GB100 A01 GSP`.
        fwid: SHA-384 of the firmware, 48 bytes; a second FWID is zero.
    """
    fields = (
        vendor.encode(),
        model.encode(),
        b"01",  # version
        b"\1",  # SVN
        b"\0",  # layer
        b"\0",  # index
        _encode_fwid(fwid) + _encode_fwid(bytes(len(fwid))),
        bytes.fromhex("0080000001"),  # flags
        b"\xc0",  # vendor info
        b"\0",  # type
    )
    encoded = [
        der.encode_element(der.context(number) if number == _FWIDS else _CONTEXT | number, value)
        for number, value in enumerate(fields)
    ]
    return Extension(_DICE_TCB_INFO, der.encode_sequence(*encoded))


def _encode_fwid(fwid: bytes) -> bytes:
    return der.encode_sequence(_SHA384, der.encode_element(der.OCTET_STRING, fwid))
