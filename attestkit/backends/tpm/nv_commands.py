"""NV indices of a TPM (TPM 2.0 Library, Part 3, section 31)."""

from typing import Final, NamedTuple

from attestkit.backends.tpm.command_channel import CommandChannel, ParameterReader, TpmError
from attestkit.backends.tpm.frames import password
from attestkit.backends.tpm.transports import reading
from attestkit.tpm import command_codes as cc
from attestkit.tpm.algorithms import HASH_IDS, hash_size
from attestkit.tpm.handles import OWNER
from attestkit.tpm.nv_attributes import OWNER_READ, OWNER_WRITE
from attestkit.tpm.reader import TpmReader, encode_number, encode_sized

PIECE: Final = 1024  # bytes of one NV_Read or NV_Write (MAX_NV_BUFFER)
LARGEST_NAME: Final = 66


class NvPublic(NamedTuple):
    """The public area of an NV index, and the name that the TPM computes of it.

    `name_alg` is the name of a hash, `policy` a digest or empty.
    """

    handle: int  # of the index
    name_alg: str
    attributes: int  # TPMA_NV; bit 29: written
    policy: bytes
    size: int  # bytes
    name: bytes = b""  # changes when the index is first written

    def encode(self) -> bytes:
        """Return the TPMS_NV_PUBLIC, without `name`.

        Raises:
            UsageError: If the hash is unknown, or a value does not fit in its field.
        """
        hash_size(self.name_alg)  # raises for an unknown hash
        return b"".join(
            (
                encode_number(self.handle, 4),
                encode_number(HASH_IDS[self.name_alg], 2),
                encode_number(self.attributes, 4),
                encode_sized(self.policy),
                encode_number(self.size, 2),
            )
        )

    @classmethod
    def parse(cls, data: bytes, name: bytes = b"") -> "NvPublic":
        """Parse `data`, a TPMS_NV_PUBLIC without further bytes; `name` is stored unchecked.

        Raises:
            FormatError: If it is malformed.
        """
        reader = TpmReader(data, "TPMS_NV_PUBLIC")
        index, name_alg, attributes = reader.u32(), reader.hash_name("nameAlg"), reader.u32()
        policy, size = reader.sized("authPolicy", hash_size(name_alg)), reader.u16()
        reader.end()
        return cls(index, name_alg, attributes, policy, size, name)


class NvCommands(CommandChannel):
    """Commands on NV indices. Thread-safe."""

    def nv_read_public(self, index: int) -> NvPublic:
        """Return the public area of an NV index, given by its handle 0x01xxxxxx.

        Raises:
            TpmError: If the index is absent (`is_absent`).
            BackendError: As for `execute`.
        """
        response = self.execute(cc.NV_READ_PUBLIC, (index,))
        with reading(self.path):
            reader = ParameterReader(response, "NV_ReadPublic")
            area, name = reader.sized("public area"), reader.sized("name", LARGEST_NAME)
            reader.end()
            found = NvPublic.parse(area, name)
            if found.handle != index:
                problem = f"index {found.handle:#x} instead of {index:#x}"
                raise reader.error(problem, "wrong_value", 2)
        return found

    def find_nv(self, index: int) -> NvPublic | None:
        """Return the public area of an NV index, given by its handle; None if it is absent.

        Raises:
            BackendError: As for `execute`.
        """
        try:
            return self.nv_read_public(index)
        except TpmError as error:
            if error.is_absent:
                return None
            raise

    def nv_read(
        self, index: int, size: int, offset: int = 0, *, authority: int = OWNER, secret: bytes = b""
    ) -> bytes:
        """Read `size` bytes of an index, in pieces of at most 1024.

        Args:
            index: Handle of the index.
            size: Number of bytes.
            offset: Position of the first byte.
            authority: Handle that authorizes: the owner, or the index itself.
            secret: Password of that handle.

        Raises:
            TpmError: If the index is absent, was never written, or does not permit this.
            BackendError: As for `execute`.
        """
        pieces = []
        for start in range(offset, offset + size, PIECE):
            length = min(PIECE, offset + size - start)
            parameters = encode_number(length, 2) + encode_number(start, 2)
            response = self.execute(cc.NV_READ, (authority, index), parameters, [password(secret)])
            pieces.append(self._nv_piece(ParameterReader(response, "NV_Read"), length))
        return b"".join(pieces)

    def _nv_piece(self, reader: ParameterReader, length: int) -> bytes:
        with reading(self.path):
            piece = reader.sized("data", length)
            reader.end()
            if len(piece) != length:
                raise reader.error(f"{len(piece)} bytes instead of {length}", "wrong_size", 0)
        return piece

    def read_nv_index(self, index: int) -> bytes | None:
        """Return all bytes of the NV index `index`; None if it is absent or was never written.

        It is read by the authorization of the owner, whose password must be empty, or else by that
        of the index itself.

        Raises:
            TpmError: If neither authorization is accepted.
            BackendError: As for `execute`.
        """
        with self.lock:
            found = self.find_nv(index)
            if found is None:
                return None
            first = OWNER if found.attributes & OWNER_READ else index
            try:
                return self._read_by(first, found)
            except TpmError as error:
                if not error.is_denied or first == index:
                    raise
            return self._read_by(index, found)

    def _read_by(self, authority: int, found: NvPublic) -> bytes | None:
        try:
            return self.nv_read(found.handle, found.size, authority=authority)
        except TpmError as error:
            if error.is_absent:
                return None
            raise

    def nv_define(
        self,
        index: int,
        size: int,
        attributes: int = OWNER_WRITE | OWNER_READ,
        *,
        secret: bytes = b"",
        name_alg: str = "sha256",
    ) -> None:
        """Define an index; the owner's password must be empty.

        Args:
            index: Handle of the index, 0x01xxxxxx.
            size: Its size in bytes.
            attributes: TPMA_NV.
            secret: Password of the index, not longer than a digest of `name_alg`.
            name_alg: Hash of its name.

        Raises:
            UsageError: If the hash is unknown, or a value does not fit in its field.
            TpmError: If the index exists, or is larger than the TPM permits.
            BackendError: As for `execute`.
        """
        area = NvPublic(index, name_alg, attributes, b"", size).encode()
        parameters = encode_sized(secret) + encode_sized(area)
        self.execute(cc.NV_DEFINE_SPACE, (OWNER,), parameters, [password()])

    def nv_write(
        self, index: int, data: bytes, *, authority: int = OWNER, secret: bytes = b""
    ) -> None:
        """Write bytes to the start of an index, in pieces of at most 1024.

        Args:
            index: Handle of the index.
            data: The bytes.
            authority: Handle that authorizes: the owner, or the index itself.
            secret: Password of that handle.

        Raises:
            TpmError: If the index is absent, too small, or does not permit this.
            BackendError: As for `execute`.
        """
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            parameters = encode_sized(piece) + encode_number(start, 2)
            self.execute(cc.NV_WRITE, (authority, index), parameters, [password(secret)])

    def nv_undefine(self, index: int) -> None:
        """Remove an index by the owner's authorization, whose password must be empty.

        Raises:
            TpmError: If the index is absent (`is_absent`).
            BackendError: As for `execute`.
        """
        self.execute(cc.NV_UNDEFINE_SPACE, (OWNER, index), b"", [password()])
