"""Targets: the lines of `verify-many`, and the files in which a cache keeps collateral."""

import io
import json
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from pathlib import Path
from typing import Final

from attestkit.attestation import Attestation
from attestkit.cli.batch.input_lines import BatchEntry, EntryDefaults, read_lines
from attestkit.collateral.cache import _CacheEntry, _decode, _encode
from attestkit.errors import AttestKitError, CollateralError, FormatError, VerificationError
from attestkit.quote import Quote
from fuzz.parsers.contract import ParserTarget, check, check_error, check_same, obeys, short
from fuzz.parsers.evidence.collateral import GOOD, bundle_samples
from fuzz.parsers.evidence.evidence import evidence_samples, response_samples
from tests.samples.quotes import made_quote

# -- lines -----------------------------------------------------------------------------------------

_OWN: Final = b"\0own"


def _entries(raw: bytes) -> list[BatchEntry]:
    """Read all lines; the first error, if there is one, is what they are refused by.

    The first byte says whether report data is given, and whether a bundle's collateral counts.
    """
    how = raw[0] if raw else 0
    defaults = EntryDefaults(None, _OWN if how & 1 else None, own_collateral=bool(how & 2))
    entries = list(read_lines(io.BytesIO(raw[1:]), Path("lines"), defaults))
    errors = [entry.error for entry in entries if entry.error is not None]
    for error in errors:
        check("a refusal, and no failure of ours", getattr(error, "reason", "") != "internal")
        check_error(error, None)
    numbers = [entry.number for entry in entries]
    check("in the order of their lines", numbers == sorted(set(numbers)))
    check("a line each", len(entries) <= raw.count(b"\n") + 1)
    if errors:
        raise errors[0]
    return entries


def _read_lines(raw: bytes, entries: list[BatchEntry]) -> None:
    for entry in entries:
        check("evidence", entry.evidence and isinstance(entry.evidence, _EVIDENCE))
        check("report data", entry.report_data is None or 1 <= len(entry.report_data) <= 64)
        check("a number or a text", type(entry.id) in {int, str})
        str(entry.id).encode()
    given = b"report_data" in raw or b"\\u" in raw
    for entry in entries if not given else ():
        check("what the options give", entry.report_data == (_OWN if raw[0] & 1 else None))


_EVIDENCE: Final = (bytes, Attestation, Quote)


def _said(entries: list[BatchEntry]) -> object:
    return [(entry.number, entry.id, entry.report_data, type(entry.evidence)) for entry in entries]


def line_samples() -> list[bytes]:
    """Return lines with evidence in every encoding, bundles, and what is none."""
    evidence = [one.hex() for one in (*evidence_samples(), made_quote(auth=b"")) if len(one) < 1200]
    lines: list[dict[str, object]] = [{"evidence": one, "id": "a"} for one in evidence]
    lines += [{"evidence": one.hex()} for one in bundle_samples() if len(one) < 2000]
    lines += [{"response": json.loads(one)} for one in response_samples()[:1]]
    lines += [{"response": one.decode(), "id": None} for one in response_samples()[:1]]
    lines += [
        {"evidence": "AAE=", "id": 7, "report_data": "0x00ff"},
        {"evidence": "0x80", "collateral": "/nowhere/at all", "id": "\ud800"},
        {"evidence": "80", "unknown": 1},
    ]
    texts = [json.dumps(line).encode() for line in lines]
    return [b"", *(bytes([at % 4]) + text for at, text in enumerate(texts)), b"\0{}\n\n[]\n1\nx"]


# -- files of the cache ----------------------------------------------------------------------------

_KEY: Final = ("https://pccs", "tdx", "00806F050000")
_NOW: Final = datetime(2026, 6, 1, tzinfo=timezone.utc)


_PARTS: Final = json.loads(GOOD.to_json())


def _kept(raw: bytes) -> _CacheEntry:
    """Read a file, or with another first byte than `f` what stands behind a right checksum.

    In that a text `=NAME` stands for this part of the simulator's collateral, which is 20 kB long.
    Whoever reads files takes these errors for one that is not there.
    """
    content = raw[1:]
    if raw[:1] != b"f":
        for name, part in _PARTS.items():
            content = content.replace(b'"=%b"' % name.encode(), json.dumps(part).encode())
        content = sha256(content).hexdigest().encode() + b"\n" + content
    try:
        return _decode(_KEY, content)
    except CollateralError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise CollateralError(
            f"{type(error).__name__}: no file of this cache", reason="fetch_failed"
        ) from error


def _still_kept(_raw: bytes, found: _CacheEntry) -> None:
    for age in (None, timedelta(), timedelta(days=1)):
        for now in (_NOW, datetime.min.replace(tzinfo=timezone.utc)):
            found.is_usable(now, age)
    check_same("written and read again", _decode(_KEY, _encode(_KEY, found)), found)


def cache_samples() -> list[bytes]:
    """Return files of a cache, one of them with its own checksum, and one of another key."""
    parts = {name: f"={name}" for name in _PARTS}
    fields = {"version": 1, "key": _KEY, "fetched_at": _NOW.isoformat(), "collateral": parts}
    west = {**fields, "fetched_at": "2026-01-01T00:00:00-12:34:56.789"}
    others = [{**fields, "key": ["a"]}, {**fields, "fetched_at": "2026-01-01"}, {**fields, "x": 1}]
    texts = [json.dumps(one).encode() for one in (fields, west, *others)]
    whole = sha256(texts[2]).hexdigest().encode() + b"\n" + texts[2]
    return [b"f" + whole, b"f" + whole[:-1], *(b"t" + text for text in texts)]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    refusals: tuple[type[AttestKitError], ...] = (FormatError, CollateralError, VerificationError)
    lines = obeys(_entries, *refusals, accepted=_read_lines, said=_said, grows=True)
    kept = obeys(_kept, CollateralError, accepted=_still_kept)
    return [
        ParserTarget("fleet_lines", lines, short(line_samples), "evidence.dict"),
        ParserTarget("cache_file", kept, short(cache_samples), "collateral.dict"),
    ]
