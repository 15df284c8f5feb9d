"""The messages that the guides show are those of the code, in tables and in blocks not run."""

import re
from collections.abc import Iterator
from typing import Final

from tests.docs.blocks import ROOT

SOURCES: Final = [*(ROOT / "attestkit").rglob("*.py"), ROOT / "attestkit/cli/doctor/remedies.toml"]
COLUMNS: Final = {"message", "message or reason", "reason or message", "without it"}
FOREIGN: Final = {
    "Unix socket file /var/run/dstack.sock does not exist",  # of dstack-sdk
    "fixture 'tee' not found",  # of pytest
}
# Plain words that the code inserts into messages; they are searched alone.
INSERTED: Final = re.compile(
    r"(extended|Intel SGX PCK Certificate|the PCK CA|the root CA|the ASK|AMD's root for Genoa|"
    r"no RTMR files in sysfs \(added in Linux 6\.16\))"
)
ERRNO: Final = re.compile(r"\(E[A-Z]+[^)]*\)")
GAP: Final = "\0"  # a placeholder, and both ends of a literal
_STRING: Final = r'"(?:[^"\\\n]|\\.)*"' + r"|'(?:[^'\\\n]|\\.)*'"
_TOKEN: Final = re.compile(rf'#.*|"""(?s:.*?)"""|((?:[bfr]*(?:{_STRING})\s*)+)')
_PIECE: Final = re.compile(rf"([bfr]*)({_STRING})")


def _literals(source: str) -> Iterator[str]:
    """Yield the string literals, adjacent ones joined; no docstrings (`ast` takes too long)."""
    for token in _TOKEN.finditer(source):
        text = ""
        for prefix, quoted in _PIECE.findall(token[1] or ""):
            piece = re.sub(r"\\(.)", r"\1", quoted[1:-1])
            text += re.sub(r"\{[^{}]+\}", GAP, piece) if "f" in prefix else piece
        if text:
            yield f"{GAP}{text}{GAP}"


def _messages(page: str) -> Iterator[str]:
    """Yield the code of the columns with messages, and the errors in console blocks."""
    titles: list[str] = []
    for line in page.splitlines():
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        titles = titles if titles and cells else [cell.strip() for cell in cells]
        for title, cell in zip(titles, cells, strict=False):
            yield from re.findall("`([^`]+)`", cell) if title in COLUMNS else ()
        yield from re.findall("^attestkit: (.+)", line)


def _parts(message: str) -> list[str]:
    """Return the parts of a message that a literal has each."""
    text = ERRNO.sub("…", INSERTED.sub(r"…\1…", message.removeprefix("attestkit serve: ")))
    return [found for part in re.split("…|; ", text) if (found := part.strip(" .:,;()"))]


def _has(literals: list[str], text: str, start: str = "") -> bool:
    """Return whether a literal has the text after `start`; gaps replace no plain words."""
    words = text.split(" ")
    plain = [word for word in words if re.fullmatch("[a-z,-]+", word)]
    pattern = start + " ".join(
        re.escape(word) if word in plain else f"(?:{re.escape(word)}|[^ ]*{GAP}[^ ]*)"
        for word in words
    )
    longest = max(plain, key=len, default="")
    return any(longest in one and re.search(pattern, one) for one in literals)


def _is_in(literals: list[str], part: str) -> bool:
    """Return whether a literal has the part, or begins with it after a subject and a colon."""
    tails = [part[colon.end() :] for colon in re.finditer(": ", part)]
    return _has(literals, part) or any(_has(literals, one, f"{GAP}(?:: )?") for one in tails)


def test_messages_in_guides_are_those_of_the_code() -> None:
    """Each part of each message is in a literal; drifted texts are not."""
    literals = [text for path in SOURCES for text in _literals(path.read_text())]
    shown = {
        (page.name, part)
        for page in (ROOT / "docs/guides").rglob("*.md")
        for message in _messages(page.read_text())
        for part in _parts(message)
        if message not in FOREIGN
    }
    assert len(shown) > 200
    assert {one for one in shown if not _is_in(literals, one[1])} == set()
    for drifted in ("the host throttled the request", "no app keys: start it with --app-keys"):
        assert not _is_in(literals, drifted)
