"""IMA log of Linux: reader of `binary_runtime_measurements`, and its replay to a PCR.

The kernel extends every PCR bank with the hash of that bank over the same template data, so the
list of one bank suffices to replay all banks (Linux, security/integrity/ima). Numbers are
little-endian, as on x86-64 and arm64.
"""

import hmac
from typing import Final, NamedTuple

from attestkit._argument_checks import require_bytes
from attestkit._formats.binary_layout import Cursor
from attestkit.errors import FormatError, UsageError
from attestkit.tpm.algorithms import HASH_SIZES, compute_digest, hash_function
from attestkit.tpm.pcrs import IMA_PCR, PCR_COUNT, extend

__all__ = ["ImaLog", "ImaMatch", "ImaRecord"]

MAX_SIZE: Final = 16_777_216
"""Largest size of a log in bytes (16 MiB)."""

MAX_RECORDS: Final = 131_072

_MAX_NAME: Final = 255  # bytes of a template's name; a custom template is named by its format
_MAX_DATA: Final = 1 << 20  # bytes of a record's template data; `ima-buf` has whole policies
_USUAL_NAMES: Final = (b"ima", b"evm-", b"d-ng|", b"d|")
_OLD_TEMPLATE: Final = "ima"
_OLD_DIGEST: Final = 20
_OLD_NAME: Final = 256  # bytes to which `ima` pads a file name in its hash


class ImaRecord(NamedTuple):
    """One record of an IMA log.

    Attributes:
        pcr: Number of the PCR, 0 to 23.
        digest: Template digest in the bank of the file; zeros mark a violation.
        template: Name of the template, such as `ima-ng`.
        data: Template data as in the file.
    """

    pcr: int  # 0 to 23
    digest: bytes  # template digest in the bank of the file; zeros mark a violation
    template: str  # ima, ima-ng, ima-sig, ima-buf, ima-modsig, ima-ngv2, ima-sigv2, evm-sig, ...
    data: bytes  # template data as in the file

    @property
    def is_violation(self) -> bool:
        """Whether the digest is zeros: a file was open for writing while it was measured."""
        return not any(self.digest)

    def template_digest(self, bank: str) -> bytes:
        """Return the digest that extends PCRs of a bank, such as `sha256`.

        It is the bank's hash of the template data, or 0xFF bytes for a violation.

        Raises:
            UsageError: If the bank is unknown.
        """
        size = _bank_size(bank)
        return b"\xff" * size if self.is_violation else compute_digest(bank, _measured(self))


class ImaMatch(NamedTuple):
    """Numbers of records in the shortest prefix that replays to a PCR value, and after it.

    Records of other PCRs are not counted.
    """

    records: int  # of this PCR, in the prefix
    following: int  # of this PCR, after the prefix


class ImaLog(NamedTuple):
    """An IMA log (`binary_runtime_measurements` of Linux, of any bank)."""

    bank: str
    """Bank of the digests in the file, such as `sha1`."""
    records: tuple[ImaRecord, ...]

    @classmethod
    def parse(cls, data: bytes) -> "ImaLog":
        """Parse a log in binary; the size of its digests, and so the bank, is recognised.

        Empty `data` are a log without records, of bank `sha1`.

        Raises:
            FormatError: If the log is malformed, a digest is not that of the template data, or the
                log exceeds 16 MiB, 131,072 records, or 1 MiB of data in one record.
            UsageError: If `data` is not `bytes`.
        """
        require_bytes("IMA log", data)
        reader = _ImaReader(data)
        if len(data) > MAX_SIZE:
            message = f"IMA log: {len(data)} bytes, at most {MAX_SIZE}"
            raise FormatError(message, reason="too_large")
        if not data:
            return cls("sha1", ())
        bank, size = _detect_bank(data)
        records: list[ImaRecord] = []
        digest_of = hash_function(bank)
        while reader.remaining:
            at = reader.at
            if len(records) == MAX_RECORDS:
                raise reader.error(f"more than {MAX_RECORDS} records", "too_many", at)
            record = _read_record(reader, size)
            if not record.is_violation and digest_of(_measured(record)) != record.digest:
                problem = f"record {len(records)}: digest is not that of its template data"
                raise reader.error(problem, "inconsistent", at)
            records.append(record)
        return cls(bank, tuple(records))

    @property
    def pcrs(self) -> tuple[int, ...]:
        """PCRs that the records extend, in ascending order."""
        return tuple(sorted({record.pcr for record in self.records}))

    @property
    def violations(self) -> int:
        """Number of records for which `is_violation` is true."""
        return sum(record.is_violation for record in self.records)

    @property
    def boot_aggregate(self) -> tuple[str, bytes] | None:
        """Hash name and digest in the first record if it is `boot_aggregate`; None otherwise."""
        if not self.records or self.records[0].is_violation:
            return None
        record = self.records[0]
        fields = _fields(record)
        if len(fields) < 2 or fields[1].rstrip(b"\0") != b"boot_aggregate":
            return None
        if record.template == _OLD_TEMPLATE:
            return "sha1", fields[0]
        name, colon, digest = fields[0].partition(b":\0")
        bank = name.decode("ascii", "replace")
        return (bank, digest) if colon and HASH_SIZES.get(bank) == len(digest) else None

    def replay(self, bank: str = "sha256", pcr: int = IMA_PCR, start: bytes = b"") -> bytes:
        """Return the value of a PCR after all records.

        Args:
            bank: sha1, sha256, sha384 or sha512.
            pcr: Number of the PCR.
            start: Value before the first record, of the bank's digest size; empty for zeros.

        Raises:
            UsageError: If the bank is unknown.
        """
        digests = [one.template_digest(bank) for one in self.records if one.pcr == pcr]
        return extend(bank, start or bytes(_bank_size(bank)), digests)

    def match(
        self, bank: str, value: bytes, pcr: int = IMA_PCR, start: bytes = b""
    ) -> ImaMatch | None:
        """Return the shortest prefix of at least one record that replays to a PCR's value.

        The kernel may extend the PCR between the quote and the reading of the log, so records may
        follow.

        Args:
            bank: sha1, sha256, sha384 or sha512.
            value: The quoted value of the PCR.
            pcr: Number of the PCR.
            start: Value before the first record; empty for zeros.

        Returns:
            None if no prefix replays to the value.

        Raises:
            UsageError: If the bank is unknown.
        """
        digests = [one.template_digest(bank) for one in self.records if one.pcr == pcr]
        found = start or bytes(_bank_size(bank))
        digest_of = hash_function(bank)
        for number, digest in enumerate(digests, 1):
            found = digest_of(found + digest)
            if hmac.compare_digest(found, value):
                return ImaMatch(number, len(digests) - number)
        return None

    def __repr__(self) -> str:
        return f"<ImaLog of {len(self.records)} records, {self.bank}>"


def begins_with_ima_record(data: bytes) -> bool:
    """Return whether `data` begin like an IMA log: a PCR number, then the name of a template."""
    for size in HASH_SIZES.values():
        name = data[8 + size : 16 + size]
        length = int.from_bytes(data[4 + size : 8 + size], "little")
        if 0 < length <= _MAX_NAME and name.startswith(_USUAL_NAMES):
            return data[0] < PCR_COUNT and data[1:4] == bytes(3)
    return False


def _detect_bank(data: bytes) -> tuple[str, int]:
    """Return the bank whose digest size makes the first record well-formed, and that size.

    `data` is the log from its first byte. The size is in bytes.
    """
    for bank, size in HASH_SIZES.items():
        at = 4 + size
        length = int.from_bytes(data[at : at + 4], "little")
        name = data[at + 4 : at + 4 + length] if 0 < length <= _MAX_NAME else b""
        if name and len(name) == length and _is_name(name):
            return bank, size
    raise FormatError(
        "IMA log: the first record has no template name; the log may be cut or of another "
        "endianness",
        reason="unrecognized",
        offset=0,
    )


def _read_record(reader: "_ImaReader", size: int) -> ImaRecord:
    """Read the next record; `size` is that of its digest in bytes."""
    start = reader.at
    pcr = reader.number()
    if pcr >= PCR_COUNT:
        raise reader.error(f"PCR index {pcr}, at most {PCR_COUNT - 1}", "index", start)
    digest, start = reader.take(size), reader.at
    length = reader.number()
    if not 0 < length <= _MAX_NAME:
        problem = f"template name of {length} bytes, must be 1 to {_MAX_NAME}"
        raise reader.error(problem, "wrong_size", start)
    name, start = reader.take(length), reader.at
    if not _is_name(name):
        raise reader.error("template name must be printable ASCII", "encoding", start - length)
    template = name.decode("ascii")
    if template == _OLD_TEMPLATE:
        # Without a size: 20 bytes of a digest, then size and text of a file name.
        reader.take(_OLD_DIGEST)
        length, reader.at = _OLD_DIGEST + 4 + reader.number(), start
    else:
        length = reader.number()
    if length > _MAX_DATA:
        raise reader.error(
            f"template data of {length} bytes, at most {_MAX_DATA}", "event_size", start
        )
    return ImaRecord(pcr, digest, template, reader.take(length))


class _ImaReader(Cursor):
    __slots__ = ()
    CODEC = "IMA log"

    def number(self) -> int:
        """Read the next number, 4 bytes, little-endian."""
        return int.from_bytes(self.take(4), "little")


def _measured(record: ImaRecord) -> bytes:
    """Return the bytes that the template digest covers."""
    if record.template != _OLD_TEMPLATE:
        return record.data
    digest, name = record.data[:_OLD_DIGEST], record.data[_OLD_DIGEST + 4 :]
    return digest + name.ljust(_OLD_NAME, b"\0")


def _fields(record: ImaRecord) -> list[bytes]:
    """Return the fields of the template data; empty if the data are not whole fields."""
    if record.template == _OLD_TEMPLATE:
        return [record.data[:_OLD_DIGEST], record.data[_OLD_DIGEST + 4 :]]
    fields, at = [], 0
    while at < len(record.data):
        end = at + 4 + int.from_bytes(record.data[at : at + 4], "little")
        if end > len(record.data):
            return []
        fields.append(record.data[at + 4 : end])
        at = end
    return fields


def _is_name(name: bytes) -> bool:
    return all(0x20 < byte < 0x7F for byte in name)


def _bank_size(bank: str) -> int:
    size = HASH_SIZES.get(bank)
    if size is None:
        message = f"PCR bank: unknown: {bank}; use one of {', '.join(HASH_SIZES)}"
        raise UsageError(message, reason="unknown_name")
    return size
