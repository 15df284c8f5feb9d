"""NV indices: definition, attributes, content (TPM 2.0 Library, Part 2, section 13)."""

from typing import Final

from attestkit.backends.simulator.software_tpm.model.command_reader import (
    CommandReader,
    TpmResponseError,
    sized,
    u16,
    u32,
)
from attestkit.tpm import response_codes as codes
from attestkit.tpm.algorithms import HASH_IDS, LARGEST_DIGEST, compute_digest
from attestkit.tpm.handles import FIRST_NV_INDEX, LAST_NV_INDEX
from attestkit.tpm.nv_attributes import RESERVED, WRITTEN

_MOST_INDICES: Final = 256  # a bound of the model; a TPM has less space


class NvIndex:
    """An NV index with its content."""

    __slots__ = ("attributes", "auth", "content", "index", "name_alg", "policy")

    def __init__(
        self, index: int, name_alg: str, attributes: int, policy: bytes, size: int
    ) -> None:
        self.index: int = index
        self.name_alg: str = name_alg
        self.attributes: int = attributes
        self.policy: bytes = policy
        self.content: bytearray = bytearray(b"\xff" * size)
        self.auth: bytes = b""

    @property
    def public(self) -> bytes:
        """The public area, TPMS_NV_PUBLIC."""
        head = u32(self.index) + u16(HASH_IDS[self.name_alg]) + u32(self.attributes)
        return head + sized(self.policy) + u16(len(self.content))

    @property
    def name(self) -> bytes:
        """The name: nameAlg and the digest of the public area."""
        return u16(HASH_IDS[self.name_alg]) + compute_digest(self.name_alg, self.public)

    def write(self, offset: int, data: bytes) -> None:
        """Write data that fits, and mark the index as written."""
        self.content[offset : offset + len(data)] = data
        self.attributes |= WRITTEN


class NvStorage:
    """NV indices by their handles.

    Args:
        largest: Largest size of an index that a command may define.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.indices: dict[int, NvIndex] = {}

    def define(self, index: NvIndex) -> None:
        """Add an index; TpmResponseError if it is defined already, or storage is full."""
        if index.index in self.indices:
            raise TpmResponseError(codes.RC_NV_DEFINED)
        if len(self.indices) >= _MOST_INDICES:
            raise TpmResponseError(codes.RC_NV_SPACE)
        self.indices[index.index] = index


def read_nv_public(reader: CommandReader, largest: int) -> NvIndex:
    """Read TPMS_NV_PUBLIC of an index of at most `largest` bytes."""
    index = reader.u32()
    if not FIRST_NV_INDEX <= index <= LAST_NV_INDEX:
        raise reader.error(codes.RC_VALUE)
    name_alg = reader.hash_name()
    attributes = reader.u32()
    if attributes & RESERVED:
        raise reader.error(codes.RC_RESERVED_BITS)
    policy = reader.sized(LARGEST_DIGEST)
    if (size := reader.u16()) > largest:
        raise reader.error(codes.RC_SIZE)
    return NvIndex(index, name_alg, attributes, policy, size)
