"""Entries of bulk verification, read from a directory of files or from lines of JSON."""

import base64
import binascii
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, cast

from attestkit._formats.strict_json import decode_strictly, wrong_json_type
from attestkit._native import unhex
from attestkit._system.untrusted_files import read_regular
from attestkit.attestation import Attestation
from attestkit.cli.exit_codes import one_line
from attestkit.cli.file_verifier import extract_evidence
from attestkit.cli.input.detect_format import identify
from attestkit.cli.input.read_input import LARGEST, name_path_in_errors, read_file
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, CollateralError, FormatError, UsageError
from attestkit.quote import Quote
from attestkit.verifier.batch.task import run_step

if TYPE_CHECKING:
    from attestkit.verifier.evidence.formats import EvidenceBundle

LONGEST_LINE: Final = LARGEST  # bytes
_LONGEST_ID: Final = 256  # characters
_MEMBERS: Final = frozenset({"id", "evidence", "response", "nonce", "report_data", "collateral"})
_PRINTABLE: Final = frozenset(range(0x20, 0x7F)) | frozenset(b"\t\r\n\xef")  # and a byte-order mark


class EntryDefaults(NamedTuple):
    """Values of options for every entry; a line may replace the nonce or report data.

    Attributes:
        nonce: Expected nonce; None: not given.
        report_data: Expected report data; None with a nonce, or if not given.
        own_collateral: Whether the collateral of a bundle is used.
        at: Verification time, aware; None: not given.
    """

    nonce: bytes | None
    report_data: bytes | None  # None with a nonce
    own_collateral: bool  # use the collateral of a bundle
    at: datetime | None = None  # aware


class BatchEntry(NamedTuple):
    """Evidence of one file or line, with its options; or the error of reading it.

    Attributes:
        number: Number of the line or file, from 1.
        id: File name, or `id` of the line, or its number.
        evidence: Parsed evidence, or its raw bytes, which a worker parses; empty with `error`.
        nonce: Expected nonce; None: any.
        report_data: Expected report data; None with a nonce, or for any.
        collateral: Collateral for this entry alone; None: that of the verifier.
        gpu: Evidence of GPUs that a bundle has beside the CPU's, raw; None without it.
        bundle: Bundle with the evidence, without its collateral; None: the evidence is in none.
        bundle_report_data: Report data that a bundle names, if nothing else is expected.
        own_instant: Whether the time of the options is that of a bundle.
        error: Error of reading the evidence; None if it was read.
    """

    number: int  # of the line or file, from 1
    id: str | int
    evidence: bytes | Attestation | Quote = b""
    nonce: bytes | None = None
    report_data: bytes | None = None  # None with a nonce
    collateral: Collateral | None = None
    gpu: bytes | None = None  # evidence of GPUs beside that of a bundle
    bundle: "EvidenceBundle | None" = None  # without its collateral
    bundle_report_data: bytes | None = None  # of a bundle, if nothing else is expected
    own_instant: bool = False  # whether the time of the options is that of a bundle
    error: AttestKitError | None = None


def read_folder(folder: Path, names: list[str], defaults: EntryDefaults) -> Iterator[BatchEntry]:
    """Yield an entry for each of the files `names` in `folder`; its id is the file name.

    A file that cannot be read or parsed yields an entry with an error.
    """
    for number, name in enumerate(names, 1):
        entry = _new_entry(number, name, defaults)
        try:
            # An absolute path, because `-` would be stdin.
            path = (folder.absolute() if name == "-" else folder) / name
            yield run_step("file", (), partial(_from_file, entry, path, defaults))
        except AttestKitError as error:
            yield _refused(entry, error)


def _new_entry(number: int, name: str | int, defaults: EntryDefaults) -> BatchEntry:
    return BatchEntry(number, name, nonce=defaults.nonce, report_data=defaults.report_data)


def _from_file(entry: BatchEntry, path: Path, defaults: EntryDefaults) -> BatchEntry:
    return _with_evidence(entry, read_file(path), defaults)


def read_lines(file: BinaryIO, path: Path, defaults: EntryDefaults) -> Iterator[BatchEntry]:
    """Yield an entry for each non-blank line, a JSON object, of `path`, which is open as `file`.

    An invalid line yields an entry with an error.

    Raises:
        FormatError: If the file cannot be read.
    """
    with name_path_in_errors(path):
        for number, line in enumerate(_lines(file), 1):
            if line is None:
                text = f"line {number}: longer than {LONGEST_LINE} bytes"
                yield BatchEntry(number, number, error=FormatError(text, reason="syntax"))
            elif line.strip():
                yield _entry(number, line, defaults)


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Yield lines with their newline, and None for one of over `LONGEST_LINE` bytes."""
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) <= LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
            pass
        yield None


def _entry(number: int, line: bytes, defaults: EntryDefaults) -> BatchEntry:
    entry = _new_entry(number, number, defaults)
    try:
        fields = _object(line)
        entry = entry._replace(id=_id(fields, number))
        return run_step("line", (), partial(_read, entry, fields, defaults))
    except AttestKitError as error:
        return _refused(entry, error, f"line {number}: ")


def _object(line: bytes) -> dict[str, Any]:
    fields = decode_strictly(line)
    if not isinstance(fields, dict):
        raise wrong_json_type("request", "a JSON object", fields)
    # A misspelt `report_data` must not disable its check.
    if unknown := sorted(fields.keys() - _MEMBERS):
        known = ", ".join(sorted(_MEMBERS))
        message = f"unknown field {unknown[0][:64]!a}; known fields: {known}"
        raise FormatError(message, reason="unknown_field")
    return fields


def _id(fields: dict[str, Any], number: int) -> str | int:
    given = fields.get("id")
    if given is None:
        return number
    if isinstance(given, str) and len(given) <= _LONGEST_ID:
        if any("\ud800" <= char <= "\udfff" for char in given):
            raise FormatError("id: contains an unpaired surrogate", reason="encoding")
        return given
    if isinstance(given, int) and not isinstance(given, bool) and abs(given) < 1 << 53:
        return given
    message = f"id: must be a string of at most {_LONGEST_ID} characters, or an integer under 2^53"
    raise FormatError(message, reason="wrong_type")


def _read(entry: BatchEntry, fields: dict[str, Any], defaults: EntryDefaults) -> BatchEntry:
    entry = _with_expectation(entry, fields)
    evidence, response = _text(fields, "evidence"), fields.get("response")
    if (evidence is None) == (response is None):
        raise FormatError("evidence and response: exactly one is required", reason="missing")
    if evidence is None:
        if not isinstance(response, str | dict):
            raise wrong_json_type("response", "an object or a string", response)
        entry = entry._replace(evidence=Attestation.from_agent_response(response))
    else:
        entry = _with_evidence(entry, _decoded(evidence), defaults)
    if (path := _text(fields, "collateral")) is not None:
        entry = entry._replace(collateral=_collateral(path))
    return entry


def _with_expectation(entry: BatchEntry, fields: dict[str, Any]) -> BatchEntry:
    """Return an entry with the nonce or report data of its line, if the line has one.

    `fields` are the members of the line's JSON object; both values are in hex.

    Raises:
        FormatError: If a value is malformed or null, or both are given.
    """
    if entry.nonce is None and entry.report_data is None:
        for name in ("nonce", "report_data"):
            if name in fields and fields[name] is None:  # as tools write a missing value
                message = f"{name}: must not be null; omit it to accept any"
                raise FormatError(message, reason="wrong_type")
    nonce, report_data = _bytes(fields, "nonce", 8), _bytes(fields, "report_data", 1)
    if nonce is None and report_data is None:
        return entry
    if nonce is not None and report_data is not None:
        raise FormatError("nonce and report_data: give at most one", reason="inconsistent")
    if nonce is None and entry.nonce is not None:
        raise FormatError("report_data: cannot replace --nonce; give nonce", reason="inconsistent")
    return entry._replace(nonce=nonce, report_data=report_data)


def _bytes(fields: dict[str, Any], name: str, least: int) -> bytes | None:
    if (given := _text(fields, name)) is None:
        return None
    value = _unhex(given)
    if value is None or not least <= len(value) <= 64:
        raise FormatError(f"{name}: must be {least} to 64 bytes in hex", reason="encoding")
    return value


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    raise wrong_json_type(name, "a string", value)


def _unhex(text: str) -> bytes | None:
    digits = text[2:] if text[:2] in {"0x", "0X"} else text
    return unhex(digits.encode("ascii", errors="replace")) if digits else None


def _decoded(text: str) -> bytes:
    found = _unhex(text)
    if found is None:
        try:
            found = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            found = b""
    if not found:
        raise FormatError("evidence: must be hex or base64", reason="encoding")
    return found


@lru_cache(maxsize=64)
def _collateral(path: str) -> Collateral:
    """Read the collateral file (JSON) at a path in a line; cached, because lines share files.

    Raises:
        CollateralError: If it is not a regular file, cannot be read or is malformed.
    """
    try:
        with name_path_in_errors(Path(one_line(path[:256]))):
            # It must be a regular file, not stdin or a pipe: a pipe could block forever.
            data = read_regular(os.path.realpath(path), LARGEST + 1)
        return Collateral.from_json(data)
    except FormatError as error:
        raise CollateralError(f"collateral: {error}", reason="unreadable") from error


def _with_evidence(entry: BatchEntry, data: bytes, defaults: EntryDefaults) -> BatchEntry:
    """Return an entry with the evidence in `data`: the content of a file, or `evidence` of a line.

    It may have any format. Of a bundle, collateral and report data are used as `defaults` allow,
    and its certificates, CRLs and endorsements of GPUs in any case.

    Raises:
        FormatError: If the data are malformed, or an RA-TLS certificate.
        VerificationError: As `identify`.
    """
    if data[:1] and data[0] not in _PRINTABLE and data[:2] != b"\x30\x82":
        return entry._replace(evidence=data)  # parsed by the verifier, in a worker
    found = identify(data)
    if found.in_certificate:
        message = "RA-TLS certificate: not supported by verify-many; use attestkit verify"
        raise FormatError(message, reason="unsupported")
    if found.kind == "evidence bundle":
        bundle = cast("EvidenceBundle", found.value)
        collateral = bundle.collateral if defaults.own_collateral else None
        own_instant = defaults.at is not None and bundle.names_time(defaults.at)
        entry = entry._replace(
            evidence=bundle.evidence,
            collateral=collateral,
            gpu=bundle.gpu_evidence,
            bundle=replace(bundle, collateral=None),  # which may be that of the options
            own_instant=own_instant,
        )
        if entry.nonce is None and entry.report_data is None:
            entry = entry._replace(bundle_report_data=bundle.report_data)
        return entry
    return entry._replace(evidence=extract_evidence(found))


def _refused(entry: BatchEntry, error: AttestKitError, where: str = "") -> BatchEntry:
    """Return `entry` with `error` in place of its evidence.

    A FormatError or UsageError becomes a FormatError whose text begins with `where`, such as
    `line 7: `.
    """
    if isinstance(error, FormatError | UsageError):
        reason = error.reason if isinstance(error, FormatError) else "wrong_value"
        error = FormatError(f"{where}{error}", reason=reason)
    return entry._replace(evidence=b"", collateral=None, gpu=None, bundle=None, error=error)
