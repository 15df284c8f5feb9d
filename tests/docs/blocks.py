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

ROOT: Final = Path(__file__).resolve().parents[2]
SHELLS: Final = ("sh", "bash")
RUN: Final = (*SHELLS, "console", "python")
PARSED: Final = ("json", "toml", "yaml")
SHOWN: Final = ("text", "diff")

_PART: Final = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=fence) *$"
    r"|<!--(?P<comment>.*?)-->",
    re.MULTILINE | re.DOTALL,
)
_MARK: Final = re.compile(
    r"(not run|needs|file|run)\s*:\s*(.+)|(continued|policy|server config)", re.DOTALL
)
# Unsupported ways to write a block: a fence of tildes, in a quotation or behind a list marker, an
# unclosed fence, HTML, and four spaces after text outside of a list.
_OTHER: Final = re.compile(
    r"^[ \t>*+-]*(?:\d+[.)][ \t]+)?(?:`{3,}|~{3,})|<pre\b"
    r"|^(?=\S)(?![*+-] |\d+[.)] |:::|!!!|\?\?\?)[^\n]*\n\s*\n(?: {4}|\t)(?=\S)",
    re.MULTILINE,
)


class PageError(ValueError):
    """A page contains unsupported markup."""


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
    _refuse_others(markdown)
    blocks: list[Block] = []
    marks: dict[str, str] = {}
    end = 0
    for part in _PART.finditer(markdown):
        if markdown[end : part.start()].strip():
            _refuse_left(marks)
            marks = {}
        end = part.end()
        line = markdown.count("\n", 0, part.start()) + 1
        if part["comment"] is None:
            blocks.append(_block(part, line, marks))
            marks = {}
            continue
        mark = _MARK.fullmatch(part["comment"].strip())
        if mark and mark[1] == "run":
            blocks.append(Block(line, "sh", f"{mark[2]}\n", {"hidden": ""}))
        elif mark:
            marks[mark[1] or mark[3]] = mark[2] or ""
    _refuse_left(marks)
    return blocks


def _refuse_others(markdown: str) -> None:
    """Reject blocks in unsupported markup."""
    rest = _PART.sub(lambda part: " -" + "\n" * part[0].count("\n"), markdown)
    if other := _OTHER.search(rest):
        line = rest.count("\n", 0, other.end()) + 1
        raise PageError(f"line {line}: only a block between lines of ``` is run; make it one")


def _refuse_left(marks: dict[str, str]) -> None:
    if marks:
        raise PageError(f"nothing to run follows the comment {next(iter(marks))!r}")


def _block(part: re.Match[str], line: int, marks: dict[str, str]) -> Block:
    language = (part["language"].split() or [""])[0]
    if language not in (*RUN, *PARSED, *SHOWN) and not {"not run", "file"} & marks.keys():
        raise PageError(
            f"line {line}: no rule for blocks of {language or 'no language'!r}; "
            "mark it <!-- not run: REASON -->"
        )
    text = re.sub(rf"^{part['indent']}", "", part["text"], flags=re.MULTILINE)
    return Block(line, language, text, marks)


def pages() -> list[str]:
    """Return the path of every page whose blocks are run."""
    top = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
    found = [ROOT / name for name in top]
    for folder in ("docs", "deploy", "fuzz", "benchmarks"):
        found += sorted((ROOT / folder).rglob("*.md"))
    return [path.relative_to(ROOT).as_posix() for path in found if path.exists()]
