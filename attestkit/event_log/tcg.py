"""What firmware writes: the CCEL of a TD, and the event logs of a TPM, old format and new.

TCG PC Client Platform Firmware Profile, 10.2; the CCEL is its dialect for confidential guests in
the UEFI specification's CC measurement protocol. The walk over the records is the native core's.
"""

import hashlib
from typing import NamedTuple

from attestkit._native import LOG_RECORD, tpm_walk
from attestkit.errors import FormatError, UnsupportedError, UsageError
from attestkit.event_log import cel
from attestkit.event_log.event import ACPI_DATA, ACPI_LABELS, RUNTIME_REGISTER, Event
from attestkit.event_log.event_types import ACPI_CONFIG, NO_ACTION, type_name

__all__ = ["NO_PCR", "CcelSource", "TpmEvent", "TpmEventLog", "other_kind"]

NO_PCR = 0xFFFFFFFF
"""PCR number of an informative event that belongs to no PCR."""

_BANK_NAMES = {
    0x0004: "sha1",
    0x000B: "sha256",
    0x000C: "sha384",
    0x000D: "sha512",
    0x0012: "sm3_256",
    0x0027: "sha3_256",
    0x0028: "sha3_384",
    0x0029: "sha3_512",
}

# What named tuples are made with, without the Python function around it.
_new_tuple = tuple.__new__

# The one bank of the old format.
_OLD_BANKS = ((0x0004, 20),)

_STARTUP_LOCALITY = b"StartupLocality\0"

_IMA_STARTS = tuple(bytes([byte]) for byte in b" 0123456789")


class CcelSource(NamedTuple):
    """A CCEL that was walked: the log area, the packed rows of its records, and their end."""

    area: bytes
    rows: bytes
    end: int
    registers: bytes
    """Those that the records extend, in their order."""

    @property
    def regular(self) -> bool:
        """Tell whether RTMR3 is untouched: a CCEL has no runtime events, and nothing else may."""
        return RUNTIME_REGISTER not in self.registers

    def events(self) -> tuple[Event, ...]:
        """Make the events, without the records about index 0, MRTD, which are informative.

        The three ACPI DATA events of RTMR0 are named, in their order: the loader script, the RSDP,
        the tables.
        """
        area = self.area
        events = []
        labels = iter(ACPI_LABELS)
        for _, index, event_type, at, _, start, size in LOG_RECORD.iter_unpack(self.rows):
            if index == 0:
                continue
            payload, name = area[start : start + size], ""
            if event_type == ACPI_CONFIG and index == 1 and payload == ACPI_DATA:
                name = next(labels, "")
            fields = (index - 1, event_type, area[at + 2 : at + 50], name, payload, 1)
            events.append(_new_tuple(Event, fields))
        return tuple(events)

    def warnings(self) -> tuple[str, ...]:
        """Tell of a fill that is not the same byte throughout, as firmware leaves it."""
        fill = self.area[self.end :]
        if fill == fill[:1] * len(fill):
            return ()
        return (f"the bytes behind the last record (byte {self.end}) are not all the same",)


def other_kind(data: bytes) -> str | None:
    """Name a log that is no CCEL, as far as its first bytes tell; None if they tell nothing."""
    is_table = data.startswith(b"CCEL") and int.from_bytes(data[4:8], "little") == len(data)
    is_ima = data[:1] in _IMA_STARTS and b" ima" in data[:160]
    encoding = cel.encoding_of(data)
    kinds = {
        "the ACPI table that tells where it is": is_table,
        "a list of IMA measurements": is_ima,
        f"a Canonical Event Log in {encoding}; EventLog.from_cel reads it": encoding is not None,
        "the event log of a TPM; TpmEventLog reads it": any(data[:32]) and _is_tpm_log(data),
    }
    return next((kind for kind, found in kinds.items() if found), None)


def _is_tpm_log(data: bytes) -> bool:
    try:
        tpm_walk(data)
    except FormatError:
        return False
    return True


class TpmEvent(NamedTuple):
    """One record of a TPM's log."""

    pcr: int
    """0 to 23, or `NO_PCR`."""
    event_type: int
    digests: tuple[tuple[str, bytes], ...]
    """Name and digest per bank, in the order of the record."""
    data: bytes
    """Event data; what they say is not always what the digest covers."""

    @property
    def type_name(self) -> str:
        """Name of the event type, or its number in hex."""
        return type_name(self.event_type)

    def digest(self, bank: str) -> bytes:
        """Return the digest of one bank.

        Raises:
            UsageError: The record has no digest of that bank.
        """
        for name, digest in self.digests:
            if name == bank:
                return digest
        raise UsageError(f"this record has no {bank} digest")


class TpmEventLog:
    """The event log of a TPM: Linux' `binary_bios_measurements`."""

    __slots__ = ("_banks", "_events", "_startup_locality")

    def __init__(
        self, banks: tuple[str, ...], events: tuple[TpmEvent, ...], *, startup_locality: int = 0
    ) -> None:
        self._banks = banks
        self._events = events
        self._startup_locality = startup_locality

    @property
    def banks(self) -> tuple[str, ...]:
        """Names of the PCR banks the log has digests for, such as `sha256`."""
        return self._banks

    @property
    def events(self) -> tuple[TpmEvent, ...]:
        """All records but the Spec ID header."""
        return self._events

    @property
    def startup_locality(self) -> int:
        """Locality that started the TPM, 0, 3 or 4; PCR 0 starts with it."""
        return self._startup_locality

    @classmethod
    def parse(cls, data: bytes) -> "TpmEventLog":
        """Read a log in the crypto-agile format or the old SHA-1 format, up to its last byte.

        Raises:
            FormatError: It breaks the format, at `offset`; or it is longer than 16 MiB, or an
                event longer than 1 MiB, or there are more than 65,536 records.
            UsageError: `data` is not `bytes`.
        """
        if not isinstance(data, bytes):
            raise UsageError("a TPM event log is bytes")
        found, rows = tpm_walk(data)
        banks = {number: (_bank_name(number), size) for number, size in found or _OLD_BANKS}
        events = []
        locality: int | None = None
        for _, pcr, event_type, at, count, start, size in LOG_RECORD.iter_unpack(rows):
            digests = _digests(data, at, count, banks) if found else (("sha1", data[at : at + 20]),)
            event = _new_tuple(TpmEvent, (pcr, event_type, digests, data[start : start + size]))
            if event_type == NO_ACTION and locality is None:
                locality = _startup_locality(event, start)
            events.append(event)
        names = tuple([name for name, _ in banks.values()])
        return cls(names, tuple(events), startup_locality=locality or 0)

    def replay(self, bank: str = "sha256") -> dict[int, bytes]:
        """Return the value of each PCR that the log extends, in one bank.

        PCRs that the operating system extends later hold other values.

        Raises:
            UsageError: The log has no such bank.
            UnsupportedError: This Python's OpenSSL does not have the bank's hash.
            FormatError: A record lacks the bank's digest, so nobody can tell what it extended.
        """
        if bank not in self.banks:
            raise UsageError(f"this log has no {bank} bank, but {', '.join(self.banks)}")
        pcrs: dict[int, bytes] = {}
        for number, event in enumerate(self.events):
            if event.event_type == NO_ACTION:
                continue
            digest = dict(event.digests).get(bank)
            if digest is None:
                raise FormatError(f"record {number} has no {bank} digest", reason="digest_count")
            value = pcrs.get(event.pcr) or self._start(event.pcr, len(digest))
            pcrs[event.pcr] = _hash(bank, value + digest)
        return pcrs

    def _start(self, pcr: int, size: int) -> bytes:
        if pcr == 0:
            return bytes(size - 1) + bytes([self.startup_locality])
        # PCRs of a dynamic launch, before one has happened.
        return (b"\xff" if 17 <= pcr <= 22 else b"\0") * size

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TpmEventLog):
            return NotImplemented
        return (self.banks, self.events) == (other.banks, other.events)

    def __hash__(self) -> int:
        return hash((self.banks, self.events))

    def __repr__(self) -> str:
        return f"<TpmEventLog of {len(self.events)} events, {', '.join(self.banks)}>"


def _bank_name(algorithm: int) -> str:
    return _BANK_NAMES.get(algorithm) or f"0x{algorithm:04x}"


def _digests(
    data: bytes, at: int, count: int, banks: dict[int, tuple[str, int]]
) -> tuple[tuple[str, bytes], ...]:
    digests = []
    for _ in range(count):
        name, size = banks[data[at] | data[at + 1] << 8]
        at += 2
        digests.append((name, data[at : at + size]))
        at += size
    return tuple(digests)


def _startup_locality(event: TpmEvent, offset: int) -> int | None:
    if not event.data.startswith(_STARTUP_LOCALITY):
        return None
    if len(event.data) != 17 or event.data[16] not in (0, 3, 4):
        message = "startup locality is not one byte of value 0, 3 or 4"
        raise FormatError(message, offset=offset + 16, reason="startup_locality")
    return event.data[16]


def _hash(bank: str, data: bytes) -> bytes:
    try:
        digest: bytes = hashlib.new(
            {"sm3_256": "sm3"}.get(bank, bank), data, usedforsecurity=False
        ).digest()
    except ValueError as error:
        raise UnsupportedError(f"the {bank} hash is not available here") from error
    return digest
