"""What a fleet's evidence comes in: a folder of files, or lines of JSON; each one an entry."""

import base64
import binascii
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, cast

from attestkit._formats.strict_json import decode_strictly
from attestkit._native import unhex
from attestkit.attestation import Attestation
from attestkit.cli.exit_codes import one_line
from attestkit.cli.file_verifier import evidence_in
from attestkit.cli.input.detect_format import recognise
from attestkit.cli.input.read_input import LARGEST, naming, read_file
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, CollateralError, FormatError, UsageError
from attestkit.quote import Quote
from attestkit.verifier.batch.task import guarded

if TYPE_CHECKING:
    from attestkit.verifier.evidence_bundle import EvidenceBundle

__all__ = ["LONGEST_LINE", "Entry", "Wanted", "in_folder", "in_lines"]

LONGEST_LINE: Final = LARGEST  # bytes
_LONGEST_ID: Final = 256  # characters
_KEYS: Final = frozenset({"id", "evidence", "response", "report_data", "collateral"})
_PRINTABLE: Final = frozenset(range(0x20, 0x7F)) | frozenset(b"\t\r\n\xef")  # and a byte-order mark


class Wanted(NamedTuple):
    """What the options say of every entry."""

    report_data: bytes | None
    own_collateral: bool  # a bundle's own counts, because no option names another


class Entry(NamedTuple):
    """One piece of evidence, or why there is none."""

    number: int  # of its line or file, from 1
    id: str | int
    evidence: bytes | Attestation | Quote = b""
    report_data: bytes | None = None
    collateral: Collateral | None = None
    error: AttestKitError | None = None


def in_folder(folder: Path, names: list[str], wanted: Wanted) -> Iterator[Entry]:
    """Yield an entry for each of these files; its name is its id."""
    for number, name in enumerate(names, 1):
        entry = Entry(number, name, report_data=wanted.report_data)
        try:
            # Whole: a file that is named `-` in this folder would be stdin.
            path = (folder.absolute() if name == "-" else folder) / name
            yield guarded("file", (), partial(_from_file, entry, path, wanted))
        except AttestKitError as error:
            yield _refused(entry, error)


def _from_file(entry: Entry, path: Path, wanted: Wanted) -> Entry:
    return _filled(entry, read_file(path), wanted)


def in_lines(file: BinaryIO, path: Path, wanted: Wanted) -> Iterator[Entry]:
    """Yield an entry for each line of `path`, open as `file`, that is not blank.

    Whatever is in it, the next one is read.

    Raises:
        FormatError: The file cannot be read.
    """
    with naming(path):
        for number, line in enumerate(_lines(file), 1):
            if line is None:
                text = f"line {number}: longer than {LONGEST_LINE} bytes"
                yield Entry(number, number, error=FormatError(text))
            elif line.strip():
                yield _entry(number, line, wanted)


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Yield line after line; None for one that is too long, of which nothing is kept."""
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) <= LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
            pass
        yield None


def _entry(number: int, line: bytes, wanted: Wanted) -> Entry:
    entry = Entry(number, number, report_data=wanted.report_data)
    try:
        fields = _object(line)
        entry = entry._replace(id=_id(fields, number))
        return guarded("line", (), partial(_read, entry, fields, wanted))
    except AttestKitError as error:
        return _refused(entry, error, f"line {number}: ")


def _object(line: bytes) -> dict[str, Any]:
    fields = decode_strictly(line)
    if not isinstance(fields, dict):
        raise FormatError("not a JSON object")
    # Of `reportdata` nobody would learn that it checks nothing.
    if unknown := sorted(fields.keys() - _KEYS):
        known = ", ".join(sorted(_KEYS))
        raise FormatError(f"unknown field {unknown[0][:64]!a}; there are {known}")
    return fields


def _id(fields: dict[str, Any], number: int) -> str | int:
    given = fields.get("id")
    if given is None:
        return number
    if isinstance(given, str) and len(given) <= _LONGEST_ID:
        if any("\ud800" <= char <= "\udfff" for char in given):
            raise FormatError("id: it has half a surrogate pair, which is no character")
        return given
    if isinstance(given, int) and not isinstance(given, bool) and abs(given) < 1 << 53:
        return given
    raise FormatError(f"id: want text of at most {_LONGEST_ID} characters, or a whole number")


def _read(entry: Entry, fields: dict[str, Any], wanted: Wanted) -> Entry:
    if (given := _text(fields, "report_data")) is not None:
        report_data = _unhex(given)
        if report_data is None or not 1 <= len(report_data) <= 64:
            raise FormatError("report_data: want 1 to 64 bytes in hex")
        entry = entry._replace(report_data=report_data)
    evidence, response = _text(fields, "evidence"), fields.get("response")
    if (evidence is None) == (response is None):
        raise FormatError("want evidence, hex or base64, or the response of an agent: one of them")
    if evidence is None:
        if not isinstance(response, str | dict):
            raise FormatError("response: want an agent's answer, an object or its text")
        entry = entry._replace(evidence=Attestation.from_agent_response(response))
    else:
        entry = _filled(entry, _decoded(evidence), wanted)
    if (path := _text(fields, "collateral")) is not None:
        entry = entry._replace(collateral=_collateral(path))
    return entry


def _text(fields: dict[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None or isinstance(value, str):
        return value
    raise FormatError(f"{name}: want text")


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
        raise FormatError("evidence: neither hex nor base64")
    return found


@lru_cache(maxsize=64)
def _collateral(path: str) -> Collateral:
    """Return what is in a file that a line names; lines have few in common, and these are kept."""
    try:
        is_file = "\0" not in path and Path(path).is_file()
    except OSError as error:  # the name is too long, or a folder is not for us to look into
        text = f"collateral: {one_line(path[:256])}: {error.strerror}"
        raise CollateralError(text) from error
    if not is_file:  # a pipe would be waited for, without end
        raise CollateralError(f"collateral: {one_line(path[:256])} is no file")
    try:
        return Collateral.from_json(read_file(Path(path).absolute()))  # `-` is a file here
    except (FormatError, UsageError) as error:
        raise CollateralError(f"collateral: {error}") from error


def _filled(entry: Entry, data: bytes, wanted: Wanted) -> Entry:
    """Return an entry with the evidence that some bytes hold, in whatever wrapping."""
    if data[:1] and data[0] not in _PRINTABLE and data[:2] != b"\x30\x82":
        return entry._replace(evidence=data)  # which the verifier reads, elsewhere
    found = recognise(data)
    if found.in_certificate:
        raise FormatError(
            "an RA-TLS certificate, whose report data is the hash of its key: attestkit verify"
            " holds it to that"
        )
    if found.kind == "evidence bundle":
        bundle = cast("EvidenceBundle", found.value)
        collateral = bundle.collateral if wanted.own_collateral else None
        return entry._replace(evidence=bundle.evidence, collateral=collateral)
    return entry._replace(evidence=evidence_in(found))


def _refused(entry: Entry, error: AttestKitError, where: str = "") -> Entry:
    """Return an entry without evidence; use that is wrong is that of what was given as such."""
    if isinstance(error, FormatError | UsageError):
        reason = error.reason if isinstance(error, FormatError) else ""
        error = FormatError(f"{where}{error}", reason=reason)
    return entry._replace(evidence=b"", collateral=None, error=error)
