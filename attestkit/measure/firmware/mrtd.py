"""MRTD: the measurement of a TD's initial memory (Intel TDX Module Base Architecture, 12.1).

The TDX module hashes a record for each page that the VMM adds, and for each 256 bytes of a page
that it extends the measurement with. The order is that of the VMM's calls.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple

from attestkit.measure.firmware.tdvf import MR_EXTEND, PAGE, TdvfSection

PageOrder = Literal["single_pass", "two_pass"]
"""`single_pass`: each page is added and extended before the next one (Linux 6.16 and later, and the
TDX kernels of the time of QEMU 9). `two_pass`: all pages of a section are added, then all are
extended (TDX kernels of the time of QEMU 8)."""

_CHUNK: Final = 256
_ADDED: Final = struct.Struct("<16sQ104x")
_EXTENDED: Final = struct.Struct("<" + f"16sQ104x{_CHUNK}s" * (PAGE // _CHUNK))
_CHUNKS: Final = struct.Struct(f"{_CHUNK}s" * (PAGE // _CHUNK))
_BATCH: Final = 16  # pages whose records are hashed at once


class Mrtds(NamedTuple):
    """MRTD for each order of pages, 48 bytes each."""

    single_pass: bytes
    two_pass: bytes

    def of(self, order: PageOrder) -> bytes:
        """Return the MRTD for an order."""
        return self.single_pass if order == "single_pass" else self.two_pass

    def order_of(self, mrtd: bytes) -> PageOrder | None:
        """Return the order that gives an MRTD from a quote; None for another firmware."""
        if mrtd == self.single_pass:
            return "single_pass"
        return "two_pass" if mrtd == self.two_pass else None


def compute_mrtds(image: bytes, sections: Sequence[TdvfSection]) -> Mrtds:
    """Return the MRTD of a TD with this firmware, for both orders.

    The order is that of the host's kernel, which only a quote reveals.

    Args:
        image: Firmware.
        sections: Its sections, from `read_tdvf_sections`.
    """
    single_pass, two_pass = hashlib.sha384(), hashlib.sha384()
    for section in sections:
        added = [
            _ADDED.pack(b"MEM.PAGE.ADD", address)
            for address in range(section.address, section.end, PAGE)
        ]
        two_pass.update(b"".join(added))
        if not section.attributes & MR_EXTEND:
            single_pass.update(b"".join(added))
            continue
        extended = _extension_records(image, section)
        for at in range(0, len(added), _BATCH):
            pages = [next(extended) for _ in added[at : at + _BATCH]]
            two_pass.update(b"".join(pages))
            pairs = zip(added[at : at + _BATCH], pages, strict=True)
            single_pass.update(b"".join([record for pair in pairs for record in pair]))
    return Mrtds(single_pass.digest(), two_pass.digest())


def _extension_records(image: bytes, section: TdvfSection) -> Iterator[bytes]:
    """Yield the 16 records of each page's contents, 6,144 bytes; memory without data is zero."""
    zeros = (bytes(_CHUNK),) * (PAGE // _CHUNK)
    addresses = tuple(range(0, PAGE, _CHUNK))
    for page in range(0, section.size, PAGE):
        chunks = zeros
        if page < section.data_size:
            chunks = _CHUNKS.unpack_from(image, section.data_offset + page)
        start = section.address + page
        fields: list[bytes | int] = []
        for offset, chunk in zip(addresses, chunks, strict=True):
            fields += (b"MR.EXTEND", start + offset, chunk)
        yield _EXTENDED.pack(*fields)
