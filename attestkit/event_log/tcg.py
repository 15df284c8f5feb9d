"""Event logs of firmware: the CCEL of a TD, and TPM event logs in the SHA-1 and agile formats.

TCG PC Client Platform Firmware Profile, 10.2; for the CCEL, the CC measurement protocol of the UEFI
specification. The native core walks over the records, and limits their number (`ak_log.h`,
`_python_log.py`).
"""

import hashlib
from typing import NamedTuple

from attestkit._argument_checks import require_bytes
from attestkit._native import LOG_RECORD, tpm_walk
from attestkit.errors import FormatError, UnsupportedError, UsageError
from attestkit.event_log import cel
from attestkit.event_log.event import ACPI_DATA, ACPI_LABELS, RUNTIME_REGISTER, Event
from attestkit.event_log.event_types import ACPI_CONFIG, NO_ACTION, type_name
from attestkit.tpm.pcrs import start_value

NO_PCR = 0xFFFFFFFF
"""PCR index of an informative event that is not for a PCR."""

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

# Faster than calling a named tuple: skips its Python-level constructor.
_new_tuple = tuple.__new__

# The only bank of the SHA-1 format: algorithm, digest size.
_OLD_BANKS = ((0x0004, 20),)

_STARTUP_LOCALITY = b"StartupLocality\0"

_IMA_STARTS = tuple(bytes([byte]) for byte in b" 0123456789")


class CcelSource(NamedTuple):
    """A CCEL parsed by the native core.

    Attributes:
        area: The whole log area.
        rows: Positions of the records in it, packed as `LOG_RECORD`.
        end: Offset of the end of the last record.
        registers: Numbers of the extended registers, one byte per extending record.
    """

    area: bytes
    rows: bytes
    end: int
    registers: bytes

    @property
    def regular(self) -> bool:
        """Whether the log has no events of RTMR3, which in a CCEL could not be runtime events."""
        return RUNTIME_REGISTER not in self.registers

    def events(self) -> tuple[Event, ...]:
        """Decode the events, without the informative records of index 0 (MRTD).

        The three ACPI DATA events of RTMR0 get names by their order: loader script, RSDP, tables.
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
        """Return a warning if the padding is not one repeated byte, as firmware leaves it."""
        fill = self.area[self.end :]
        if fill == fill[:1] * len(fill):
            return ()
        return (f"padding after the last record (byte {self.end}) is not one repeated byte",)


def identify_other_log(data: bytes) -> str | None:
    """Return the kind of `data`, such as "a list of IMA measurements", for an error text.

    `data` is a log that is not a valid CCEL. None is returned if the kind is unknown.
    """
    is_table = data.startswith(b"CCEL") and int.from_bytes(data[4:8], "little") == len(data)
    is_ima = data[:1] in _IMA_STARTS and b" ima" in data[:160]
    encoding = cel.detect_encoding(data)
    kinds = {
        "the ACPI table CCEL, which has the address of the log": is_table,
        "a list of IMA measurements": is_ima,
        f"a Canonical Event Log in {encoding}; read it with EventLog.from_cel": (
            encoding is not None
        ),
        "the event log of a TPM; read it with TpmEventLog": any(data[:32]) and _is_tpm_log(data),
    }
    return next((kind for kind, found in kinds.items() if found), None)


def _is_tpm_log(data: bytes) -> bool:
    try:
        tpm_walk(data)
    except FormatError:
        return False
    return True


class TpmEvent(NamedTuple):
    """One record of a TPM event log."""

    pcr: int
    """0 to 23, or `NO_PCR`."""
    event_type: int
    digests: tuple[tuple[str, bytes], ...]
    """Pairs of PCR bank name and digest, in the order of the record."""
    data: bytes
    """Event data; the digest does not always cover them."""

    @property
    def type_name(self) -> str:
        """Name of the event type, or its number in hex."""
        return type_name(self.event_type)

    def digest(self, bank: str) -> bytes:
        """Return the digest of one bank, such as `sha256`.

        Raises:
            UsageError: If the record has no digest of that bank; `digests` has the banks.
        """
        for name, digest in self.digests:
            if name == bank:
                return digest
        raise UsageError(f"record: has no {bank} digest", reason="unknown_name")


class TpmEventLog(NamedTuple):
    """A TPM event log (`binary_bios_measurements` of Linux)."""

    banks: tuple[str, ...]
    """Names of the log's PCR banks, such as `sha256`."""
    events: tuple[TpmEvent, ...]
    """All records except the Spec ID header."""
    startup_locality: int = 0
    """Locality of the TPM startup: 0, 3 or 4; the initial value of PCR 0."""

    @classmethod
    def parse(cls, data: bytes) -> "TpmEventLog":
        """Parse a binary log in the crypto-agile or the SHA-1 format, without padding.

        Raises:
            FormatError: If the log is malformed, or exceeds 16 MiB, 65,536 records, or 1 MiB of
                data in one event.
            UsageError: If `data` is not `bytes`.
        """
        require_bytes("TPM event log", data)
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
        """Return the value of each PCR that the log extends, by its number, in one bank.

        The operating system may have extended PCRs further.

        Raises:
            UsageError: If the log does not have the bank.
            UnsupportedError: If this Python's OpenSSL does not have the hash.
            FormatError: If a record lacks a digest of the bank.
        """
        if bank not in self.banks:
            message = f"PCR bank: {bank} is not in the log; use {' or '.join(self.banks)}"
            raise UsageError(message, reason="unknown_name")
        pcrs: dict[int, bytes] = {}
        for number, event in enumerate(self.events):
            if event.event_type == NO_ACTION:
                continue
            digest = dict(event.digests).get(bank)
            if digest is None:
                message = f"TPM event log: record {number} has no {bank} digest"
                raise FormatError(message, reason="digest_count")
            value = pcrs.get(event.pcr)
            if value is None:
                value = start_value(event.pcr, len(digest), self.startup_locality)
            pcrs[event.pcr] = _hash(bank, value + digest)
        return pcrs

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
        message = "TPM event log: startup locality must be one byte of value 0, 3 or 4"
        raise FormatError(message, offset=offset + 16, reason="startup_locality")
    return event.data[16]


def _hash(bank: str, data: bytes) -> bytes:
    try:
        digest: bytes = hashlib.new(
            {"sm3_256": "sm3"}.get(bank, bank), data, usedforsecurity=False
        ).digest()
    except ValueError as error:
        raise UnsupportedError(f"PCR bank: this OpenSSL has no {bank}", reason="feature") from error
    return digest
