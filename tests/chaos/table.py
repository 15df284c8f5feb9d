"""The tables of docs/chaos.md, from docs/records/chaos.json."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.records import ROOT

__all__ = ["DOCUMENT", "RECORD", "rendered", "with_table"]

DOCUMENT: Final = ROOT / "docs" / "chaos.md"
RECORD: Final = ROOT / "docs" / "records" / "chaos.json"
_BEGIN: Final = "<!-- from docs/records/chaos.json, by make chaos -->\n"
_LONGEST: Final = 150  # characters of an error in the table
_NOTES: Final = {
    "strangers": "strangers",
    "followers": "followers",
    "verify": "/verify",
    "large_requests": "requests of 8 MiB",
}


def with_table(text: str, record: dict[str, Any]) -> str:
    """Return a document in which the part after the mark is replaced by the record's tables."""
    head, mark, _ = text.partition(_BEGIN)
    assert mark, f"{DOCUMENT} has no line {_BEGIN}"
    return head + mark + rendered(record)


def rendered(record: dict[str, Any]) -> str:
    """Return the tables of a record."""
    lines = [
        "",
        f"Measured at commit {record['commit']}, on {record['machine']}, by `{record['command']}`.",
        "",
        "| fault | what the client saw meanwhile | lost | time to recover |",
        "|---|---|---|---|",
    ]
    ways: list[tuple[str, dict[str, Any]]] = []
    for name, found in record["scenarios"].items():
        if "skipped" in found:
            lines.append(f"| **{name}**: {found['fault']} | not measured: {found['skipped']} | | |")
            continue
        if "ways" in found:
            ways.append((name, found))
        seen = "; ".join(_outcomes(found) if "ways" in found else _seen(found))
        lines.append(
            f"| **{name}**: {found['fault']} | {_cell(seen)} | {_lost(found)} | {_back(found)} |"
        )
    for name, found in ways:
        lines += _ways(name, found)
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _lost(found: dict[str, Any]) -> str:
    more = f", {found['undecided']} more completed" if found.get("undecided") else ""
    return f"{found['lost'] or 'nothing'} of {found['acknowledged']} acknowledged{more}"


def _back(found: dict[str, Any]) -> str:
    seconds = found.get("recovery_seconds")
    return "the next start" if seconds is None else f"{seconds:g} s"


def _seen(found: dict[str, Any]) -> Iterator[str]:
    well = []
    for method, one in found["seen"].items():
        errors = one["errors"]
        if not errors:
            if one["statuses"]:
                well.append(f"{method} ({one['worst_ms']} ms)")
            continue
        statuses = ", ".join(
            f"{count} x {'no answer' if status == '0' else status}"
            for status, count in one["statuses"].items()
        )
        text = max(errors, key=errors.__getitem__)
        yield f"{method}: {statuses}, `{_short(text)}`"
    if well:
        yield f"all 200, at worst after: {', '.join(well)}"
    for key, title in _NOTES.items():
        if key in found:
            yield f"{title}: {_note(found[key])}"
    if "verdicts" in found:
        yield f"/verify: {len(found['verdicts'])} times asked, each refusal with the dates"


def _note(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} x {text}" for text, count in value.items())
    return ", ".join(map(str, value))


def _outcomes(found: dict[str, Any]) -> Iterator[str]:
    yield f"{len(found['ways'])} ways"
    for outcome, count in sorted(found["outcomes"].items()):
        yield f"{count} x {outcome}"


def _short(text: str) -> str:
    text = text.replace("`", "'")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rpartition(' ')[0]} …"


def _ways(name: str, found: dict[str, Any]) -> list[str]:
    return [
        "",
        f"## {name[0].upper()}{name[1:]}",
        "",
        "| what was done | event | evidence | error |",
        "|---|---|---|---|",
        *(
            f"| {_cell(way)} | {was['event']} | {was['evidence']} | "
            f"{_cell('`' + _short(was['error']) + '`') if was['error'] else ''} |"
            for way, was in found["ways"].items()
        ),
    ]


def read_record(path: Path = RECORD) -> dict[str, Any]:
    """Return the record."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
    return found
