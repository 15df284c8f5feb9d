"""Devices made for tests: certificate chains with every key known, and reports signed by them."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from functools import cache
from typing import Final, NamedTuple

from attestkit._crypto.der import (
    OCTET_STRING,
    OID,
    context,
    encode_element,
    encode_integer,
    encode_sequence,
)
from attestkit._crypto.hashes import sha384
from attestkit._crypto.p384 import P384Key
from attestkit._crypto.x509.simulated.certificate_encoder import Issuer, Window
from attestkit._crypto.x509.simulated.cloud_certificates import (
    Extension,
    encode_name,
    issue_cloud_authority,
    issue_cloud_leaf,
)
from attestkit.gpu.architectures import DeviceKind
from attestkit.gpu.device.opaque_data import encode_opaque_data
from attestkit.gpu.device.report import Report

NOW: Final = datetime(2026, 11, 28, tzinfo=timezone.utc)
VALIDITY: Final = Window(
    datetime(2020, 10, 17, tzinfo=timezone.utc),
    datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc),
)
NONCE: Final = bytes(range(32))
COMPOSITE_OID: Final = bytes.fromhex("678105050401")  # 2.23.133.5.4.1
TCB_INFO_OID: Final = COMPOSITE_OID + b"\x01"
SHA384_OID: Final = bytes.fromhex("608648016503040202")
FWID: Final = sha384(b"firmware")

GPU_FIELDS: Final[Mapping[int, bytes]] = {
    6: bytes.fromhex("009f009601000000"),
    14: bytes(4),
    15: b"882\0\0\0\0\0\0",
    16: b"0\0\0\0\0",
    17: b"1010\0",
    18: b"0200\0",
    19: bytes(2),
    3: b"999.10.01\0",
    4: bytes(8),
    12: bytes(256),
    13: bytes(4),
    11: b"\x55",
    20: FWID,
    21: b"\x55",
}
"""Opaque data of a Hopper GPU by type, in the order of its firmware."""

SWITCH_FIELDS: Final[Mapping[int, bytes]] = {
    6: b"96.10.55.00.01",
    22: bytes(range(8)),
    12: bytes(104),
    26: bytes(range(1, 65)) + b"\xff" * 64,
    23: bytes(2),
    24: bytes(2),
    25: bytes(2),
}


@cache
def key(name: str) -> P384Key:
    """Return the key of a name."""
    return P384Key(int.from_bytes(sha384(name.encode())[:40], "big"))


def authority(name: str) -> Issuer:
    """Return a CA with a key of its own."""
    return Issuer(encode_name(O="attestkit tests", CN=name), key(name))


def fwid_entry(fwid: bytes = FWID, algorithm: bytes = SHA384_OID) -> bytes:
    """Return a FWID with the algorithm of its hash."""
    return encode_sequence(encode_element(OID, algorithm), encode_element(OCTET_STRING, fwid))


def composite(spki: bytes, fwid: bytes = FWID, version: int = 1) -> bytes:
    """Return the DICE extension of Hopper and LS10."""
    return encode_sequence(encode_integer(version), spki, fwid_entry(fwid))


def tcb_info(*entries: bytes) -> bytes:
    """Return the DICE extension of Blackwell."""
    return encode_sequence(
        encode_element(0x80, b"TEST"),
        encode_element(0x81, b"GB100 A01 GSP"),
        encode_element(0x83, b"\x01"),
        encode_element(context(6), b"".join(entries or (fwid_entry(), fwid_entry(bytes(48))))),
        encode_element(0x87, b"\0\x80\0\0\x01"),
        encode_element(0x89, b"\x01\0"),
    )


class Device(NamedTuple):
    """A device: its certificates, and the key that signs its reports."""

    certificates: tuple[bytes, ...]  # DER, leaf first, with the root
    key: P384Key

    @property
    def root(self) -> bytes:
        """The root in DER."""
        return self.certificates[-1]


def make_device(
    chip: str = "GH100",
    *,
    pdi: bytes = bytes(range(1, 9)),
    extensions: Iterable[Extension] | None = None,
    leaf_name: str | None = None,
    root: str = "test device root",
    valid: Mapping[int, Window] = {},
) -> Device:
    """Return a device.

    Args:
        chip: Name of the chip as in its certificates, such as LS_10.
        pdi: Identifier of the device, 8 bytes.
        extensions: Those of the leaf; by default the chip's DICE extension.
        leaf_name: Common name of the leaf, by default that of the chip.
        root: Common name of the root.
        valid: Validity periods by position in the chain.
    """
    names = (f"{chip} A01 GSP BROM", f"Test {chip} ICA", f"Test {chip} Identity", root)
    brom, ica, identity, anchor = map(authority, names)
    if extensions is None:
        blackwell = Extension(TCB_INFO_OID, tcb_info())
        hopper = Extension(COMPOSITE_OID, composite(brom.spki))
        extensions = [blackwell if chip.startswith("GB") else hopper]
    windows = [valid.get(at, VALIDITY) for at in range(5)]
    prefix = b"\x50" if chip.startswith("LS") else b"\x41"
    signer = key(f"{chip} leaf {pdi.hex()}")
    leaf = issue_cloud_leaf(
        (encode_name(CN=f"{chip} A01 GSP FMC LF" if leaf_name is None else leaf_name), signer.spki),
        brom,
        serial=12345,
        validity=windows[0],
        extensions=tuple(extensions),
    )
    serials = (int.from_bytes(prefix + pdi, "big"), 3, 4, 5)
    pairs = ((brom, ica), (ica, identity), (identity, anchor), (anchor, anchor))
    above = [
        issue_cloud_authority(subject, issuer, serial=serial, validity=window, path_length=None)
        for (subject, issuer), serial, window in zip(pairs, serials, windows[1:], strict=True)
    ]
    return Device((leaf, *above), signer)


def measurement(index: int) -> bytes:
    """Return the measurement of an index in made reports."""
    return sha384(f"measurement {index}".encode())


def report_bytes(
    signer: P384Key,
    kind: DeviceKind = "gpu",
    *,
    nonce: bytes = NONCE,
    fields: Iterable[tuple[int, bytes]] | None = None,
) -> bytes:
    """Return a signed report of a GPU or a switch."""
    chosen = (GPU_FIELDS if kind == "gpu" else SWITCH_FIELDS).items() if fields is None else fields
    count = 64 if kind == "gpu" else 31
    opaque = encode_opaque_data(chosen)
    blocks = b"".join(bytes([at + 1, 1, 51, 0, 1, 48, 0]) + measurement(at) for at in range(count))
    signed = b"".join(
        (
            b"\x11\xe0\x01\xff" + nonce + b"\0",
            b"\x11\x60\0\0" + bytes([count]) + len(blocks).to_bytes(3, "little"),
            blocks,
            b"\xa5" * 32 + len(opaque).to_bytes(2, "little") + opaque,
        )
    )
    r, s = signer.sign(signed)
    return signed + r.to_bytes(48, "big") + s.to_bytes(48, "big")


def make_report(
    signer: P384Key,
    kind: DeviceKind = "gpu",
    *,
    nonce: bytes = NONCE,
    fields: Iterable[tuple[int, bytes]] | None = None,
) -> Report:
    """Return `report_bytes`, parsed."""
    return Report.parse(report_bytes(signer, kind, nonce=nonce, fields=fields))
