"""Evidence and what it takes to judge it in one file, to be verified later with the network off.

The file is JSON: `version` (1), `evidence` (base64), `collateral` (the nine fields of `Collateral`,
or null), `at` (ISO 8601 with a zone: the instant at which it was judged, or should be) and
`report_data` (hex, or null). Nothing signs the file, and nothing in it is believed: the evidence
and the collateral carry their own signatures, and whoever verifies says what report data and
what instant are wanted.
"""

import json
import os
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from attestkit._formats.strict_json import check_depth
from attestkit._system.atomic_file import replace_file
from attestkit.collateral import Collateral
from attestkit.errors import CollateralError, FormatError, UsageError

__all__ = ["EvidenceBundle"]

_VERSION: Final = 1
_EVIDENCE_LIMIT: Final = 10 << 20  # bytes
_REPORT_DATA_LIMIT: Final = 64  # bytes
# Evidence in base64, nine fields of 1 MiB with their bytes in hex, and the rest.
_FILE_LIMIT: Final = 32 << 20
_KEYS: Final = frozenset({"version", "evidence", "collateral", "at", "report_data"})


@dataclass(frozen=True, slots=True)
class EvidenceBundle:
    """One parcel of evidence with its collateral.

    Raises:
        UsageError: A value is of another type or size, or `at` has no time zone.
    """

    evidence: bytes = field(repr=False)  # 1 byte to 10 MiB
    collateral: Collateral | None
    at: datetime  # aware
    report_data: bytes | None = None  # at most 64 bytes, as a caller hands it to a verifier

    def __post_init__(self) -> None:
        _check_bytes("evidence", self.evidence, 1, _EVIDENCE_LIMIT)
        if self.report_data is not None:
            _check_bytes("report_data", self.report_data, 0, _REPORT_DATA_LIMIT)
        if not isinstance(self.collateral, Collateral | None):
            raise UsageError(f"collateral is a Collateral, not {type(self.collateral).__name__}")
        _check_moment(self.at)

    @classmethod
    def from_json(cls, text: str | bytes) -> "EvidenceBundle":
        """Read the JSON of a bundle.

        Raises:
            FormatError: It is over 32 MiB, no JSON object, of another version, or a member is
                unknown, missing, there twice, or malformed; the text names it.
        """
        if len(text) > _FILE_LIMIT:
            raise FormatError(f"an evidence bundle has at most {_FILE_LIMIT} bytes")
        values = _object(text)
        # First, for another version may well have other members.
        version = values.get("version", _VERSION)  # where there is none, that is said below
        if type(version) is not int or version != _VERSION:
            raise FormatError(f"version: this reads evidence bundles of version {_VERSION} only")
        _check_keys("an evidence bundle", values, _KEYS)
        try:
            return cls(
                evidence=_from_base64(values["evidence"]),
                collateral=_collateral(values["collateral"]),
                at=_moment(values["at"]),
                report_data=_report_data(values["report_data"]),
            )
        except UsageError as error:
            raise FormatError(str(error)) from error

    def to_json(self) -> str:
        """Return the JSON of this bundle."""
        collateral = None if self.collateral is None else json.loads(self.collateral.to_json())
        values = {
            "version": _VERSION,
            "evidence": b64encode(self.evidence).decode("ascii"),
            "collateral": collateral,
            "at": self.at.astimezone(timezone.utc).isoformat().replace("+00:00", "Z"),
            "report_data": None if self.report_data is None else self.report_data.hex(),
        }
        return json.dumps(values, indent=1) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "EvidenceBundle":
        """Read a file.

        Raises:
            FormatError: The file cannot be read, or as `from_json`; the text names the file.
        """
        try:
            with Path(path).open("rb") as file:
                text = file.read(_FILE_LIMIT + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise FormatError(f"cannot read {os.fspath(path)}: {error}") from error
        try:
            return cls.from_json(text)
        except FormatError as error:
            raise FormatError(f"{os.fspath(path)}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file, for its owner alone: `path` holds the old or the new content, never a part.

        Raises:
            UsageError: The file cannot be written there.
        """
        try:
            replace_file(Path(path), self.to_json().encode("ascii"), mode=0o600)
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot write {os.fspath(path)}: {error}") from error


def _check_bytes(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, bytes):
        raise UsageError(f"{name} is bytes, not {type(value).__name__}")
    if not least <= len(value) <= most:
        raise UsageError(f"{name} has {len(value)} bytes, not {least} to {most}")


def _check_moment(value: object) -> None:
    if not isinstance(value, datetime):
        raise UsageError(f"at is a datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise UsageError("at has no time zone")
    try:
        value.astimezone(timezone.utc)
    except OverflowError as error:
        raise UsageError("at is outside the years 1 to 9999") from error


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        # Decoded here: json would take UTF-16 as well, whose depth nobody has checked.
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        check_depth(text)
        values = json.loads(text, object_pairs_hook=_without_doubles)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError("an evidence bundle is JSON, and this is not") from error
    if not isinstance(values, dict):
        raise FormatError("an evidence bundle is a JSON object")
    return values


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise FormatError("an object of the evidence bundle has a member twice")
    return values


def _check_keys(what: str, values: dict[str, Any], wanted: frozenset[str]) -> None:
    if missing := wanted - values.keys():
        raise FormatError(f"{what} lacks {', '.join(sorted(missing))}")
    if unknown := values.keys() - wanted:
        raise FormatError(f"{what} has a member that is not known: {min(unknown)[:40]!r}")


def _from_base64(value: object) -> bytes:
    try:
        if isinstance(value, str):
            data = b64decode(value, validate=True)
            if b64encode(data).decode("ascii") == value:  # the decoder takes stray bits at the end
                return data
    except (Base64Error, ValueError) as error:
        raise FormatError("evidence is not base64") from error
    raise FormatError("evidence is not base64")


def _collateral(value: object) -> Collateral | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise FormatError("collateral is neither an object nor null")
    try:
        collateral = Collateral.from_json(json.dumps(value))
    except CollateralError as error:
        raise FormatError(f"collateral: {error}") from error
    # The members that it knows, which are those that it writes.
    _check_keys("collateral", value, frozenset(json.loads(collateral.to_json())))
    return collateral


def _moment(value: object) -> datetime:
    if not isinstance(value, str):
        raise FormatError("at is not a time in ISO 8601")
    try:
        return datetime.fromisoformat(value.replace("Z", "+00:00"))  # 3.10 does not know the Z
    except ValueError as error:
        raise FormatError("at is not a time in ISO 8601") from error


def _report_data(value: object) -> bytes | None:
    if value is None:
        return None
    try:
        if isinstance(value, str):
            return bytes.fromhex(value)
    except ValueError as error:
        raise FormatError("report_data is not hex") from error
    raise FormatError("report_data is not hex")
