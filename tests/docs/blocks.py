"""The fenced blocks of a page, and the comments before them that define how they are run.

| before a block | effect |
|---|---|
| nothing | run (`sh`, `bash`, `console`, `python`), parsed (`json`, `toml`, `yaml`), or `text` |
| `<!-- not run: REASON -->` | not run, for a reason stated for readers of the source |
| `<!-- needs: fuse go -->` | run if these are available, see NEEDS |
| `<!-- continued -->` | continues the Python program of the preceding block |
| `<!-- file: NAME -->` | written to a file, which a later block of the page uses |
| `<!-- policy -->`, `<!-- server config -->` | also validated as this document |

`<!-- run: COMMAND -->` is run in the page's session and not shown, wherever it stands.
"""

import re
from pathlib import Path
from typing import Final, NamedTuple

from sybil import Document
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

ROOT: Final = Path(__file__).resolve().parents[2]
SHELLS: Final = ("sh", "bash")
RUN: Final = (*SHELLS, "console", "python")
PARSED: Final = ("json", "toml", "yaml")
SHOWN: Final = ("text", "diff")

_FENCES: Final = RawFencedCodeBlockLexer(re.compile(r"(?P<language>\S*)[^\n]*\n"))
_MARK: Final = re.compile(
    r"<!--\s*(?:(not run|needs|file|run)\s*:\s*(.+?)|(continued|policy|server config))\s*-->",
    re.DOTALL,
)


class PageError(ValueError):
    """A page has a block without a known treatment, or a comment without a block."""


class Block(NamedTuple):
    """One block of a page, or a hidden command.

    Attributes:
        line: Line of its fence in the page, from 1.
        language: Language of the fence, such as `sh`.
        text: Content, without the fence's indentation.
        marks: Comments before it, by name; the value may be empty.
    """

    line: int
    language: str
    text: str
    marks: dict[str, str]

    @property
    def is_run(self) -> bool:
        """Whether it runs in the page's session."""
        return self.language in RUN and not {"not run", "file"} & self.marks.keys()

    @property
    def is_test(self) -> bool:
        """Whether it is a pytest module."""
        return bool(re.search(r"^(def test_|import pytest\b)", self.text, re.MULTILINE))


def read_blocks(markdown: str) -> list[Block]:
    """Return the blocks of a page in order; PageError for one without a known treatment."""
    blocks: list[Block] = []
    marks: dict[str, str] = {}
    end = 0
    for region in [*_FENCES(Document(markdown, "page")), None]:
        start = region.start if region else len(markdown)
        for mark in _MARK.finditer(markdown, end, start):
            if mark[1] == "run":
                line = markdown.count("\n", 0, mark.start()) + 1
                blocks.append(Block(line, "sh", f"{mark[2]}\n", {"hidden": ""}))
            else:
                marks[mark[1] or mark[3]] = mark[2] or ""
        if region:
            block = Block(
                markdown.count("\n", 0, start) + 1,
                str(region.lexemes["language"]),
                str(region.lexemes["source"]),
                marks,
            )
            if not {"not run", "file"} & marks.keys() | {block.language} & {*RUN, *PARSED, *SHOWN}:
                raise PageError(f"line {block.line}: no rule for blocks of {block.language!r}")
            blocks.append(block)
            marks, end = {}, region.end
    if marks:
        raise PageError(f"no block follows the comment {next(iter(marks))!r}")
    return blocks


def pages() -> list[str]:
    """Return the path of every page whose blocks are run."""
    top = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
    found = [ROOT / name for name in top]
    for folder in ("docs", "deploy", "fuzz", "benchmarks"):
        found += sorted((ROOT / folder).rglob("*.md"))
    return [path.relative_to(ROOT).as_posix() for path in found if path.exists()]
