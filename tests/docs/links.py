"""The links of Markdown files, and the anchors in them."""

import importlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from tests.docs.blocks import ROOT

_FENCE: Final = re.compile(r"^( *)(`{3,}).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_CODE: Final = re.compile(r"(`+)[^`\n].*?\1")
_INLINE: Final = re.compile(r"\]\(\s*<?([^)\s>]*)>?[^)]*\)")
_REFERENCE: Final = re.compile(r"^ {0,3}\[[^\]^]+\]:\s*(\S+)", re.MULTILINE)
_BARE: Final = re.compile(r"(?<![(<\"'`\w])https?://[^\s<>)\"'`|]+")
_HTML: Final = re.compile(r"<(?:a|img|source)\b[^>]*?(?:href|src)=\"([^\"]+)\"")
_SKIPPED: Final = {"node_modules", "site", "build", "dist"}


class Link(NamedTuple):
    """A link, and its line in the page."""

    line: int
    target: str


def markdown_files() -> list[str]:
    """Return the path of every Markdown file in the repository."""
    found: list[Path] = []
    for entry in sorted(ROOT.iterdir()):
        if entry.suffix == ".md":
            found.append(entry)
        elif entry.is_dir() and entry.name not in _SKIPPED:
            visible = entry.name == ".github" or not entry.name.startswith(".")
            found += sorted(entry.rglob("*.md")) if visible else []
    paths = [path.relative_to(ROOT) for path in found]
    return [path.as_posix() for path in paths if not _SKIPPED & set(path.parts[:-1])]


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def links(markdown: str) -> list[Link]:
    """Return the links and pictures of a page, except those in code."""
    text = _CODE.sub(_blank, _FENCE.sub(_blank, markdown))
    found = [
        Link(text.count("\n", 0, match.start()) + 1, match[match.re.groups and 1].rstrip(".,;:"))
        for pattern in (_INLINE, _REFERENCE, _BARE, _HTML)
        for match in pattern.finditer(text)
    ]
    return sorted(set(found))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page: headings as forges and the site name them, and ids."""
    text = _FENCE.sub(_blank, path.read_text())
    seen: Counter[str] = Counter()
    found = set(re.findall(r"\b(?:id|name)=\"([^\"]+)\"", text))
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(f"{slug}_{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found | set(_documented(text))


def _documented(text: str) -> Iterator[str]:
    """Yield the names that a reference page documents."""
    for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE):
        module = importlib.import_module(name)
        yield name
        yield from (f"{name}.{member}" for member in module.__all__)


def objection(page: str, target: str) -> str:
    """Return the fault of a link in a page; "" if it is valid."""
    parts = urlsplit(target)
    if parts.scheme or target.startswith("//"):
        well = parts.scheme == "mailto" or (parts.scheme in {"https", "http"} and parts.hostname)
        return "" if well else "it is no address"
    if parts.path.startswith("/"):
        return "it is absolute: it holds on no reader's machine"
    path = (ROOT / page).parent / parts.path if parts.path else ROOT / page
    if not path.exists():
        return "there is no such file"
    if not path.resolve().is_relative_to(ROOT):
        return "it leaves the repository"
    if parts.fragment and path.is_dir():
        path /= "README.md"
    if parts.fragment and path.suffix == ".md" and parts.fragment not in anchors(path):
        return "the page has no such heading"
    return ""
