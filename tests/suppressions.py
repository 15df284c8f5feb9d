"""Suppressed findings of checkers, with reasons: `python -m tests.suppressions` prints the list.

First each comment that suppresses ruff, mypy, pyright, codespell, clang-format or clang-tidy in one
place, then the rules that pyproject.toml disables, for a folder or everywhere.
"""

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
_SUFFIXES: Final = frozenset({".py", ".pyi", ".c", ".h", ".inc", ".md", ".toml", ".yml", ".sh"})
_NOT_OURS: Final = frozenset({"node_modules", "build", "dist", "site", "__pycache__"})

_OPENERS: Final = {"<!--": frozenset({".md"}), "/*": frozenset({".c", ".h", ".inc"})}
_MARK: Final = re.compile(
    r"""(?P<opener>\#|/\*|<!--)\s*
    (?P<what>(?:noqa|type:\s*ignore|pyright:\s*\w+|NOLINT\w*|nosec|clang-format\s+off
        |(?:fmt|isort):\s*(?:off|skip)|pragma:\s*no\s+\w+|(?:pylint|mypy):\s*[\w=,-]+
        |(?:ruff|flake8):\s*noqa|codespell:ignore\s+\w+)
    (?::?\s*(?:\[[^]]*\]|\([^)]*\)|[A-Z]+\d+(?:,\s*[A-Z]+\d+)*))?)""",
    re.VERBOSE,
)


class Suppression(NamedTuple):
    """A suppression: its place, its rules, and the reason given, or ""."""

    place: str
    what: str
    reason: str


def inline() -> list[Suppression]:
    """Return every suppressing comment of the tree."""
    found = []
    for path in sorted(_files()):
        text = path.read_text("utf-8")
        if _MARK.search(text):
            found += suppressions_in(path.relative_to(ROOT).as_posix(), text)
    return found


def suppressions_in(name: str, text: str) -> list[Suppression]:
    """Return the suppressing comments of a file, not those in strings and prose."""
    python = name.endswith((".py", ".pyi"))
    found = []
    for line, comment in _comments(text) if python else enumerate(text.splitlines(), 1):
        marks = [mark for mark in _MARK.finditer(comment) if mark["opener"] == _opener(name)]
        reason = ""  # of two in one comment, the last may give the reason of both
        for number in reversed(range(len(marks))):
            end = marks[number + 1].start() if number + 1 < len(marks) else len(comment)
            own = comment[marks[number].end() : end].strip(" \t#-*/<>")
            reason = own if re.search(r"[A-Za-z]{3}", own) else reason
            found.append(Suppression(f"{name}:{line}", marks[number]["what"], reason))
    return found


def _opener(name: str) -> str:
    suffix = Path(name).suffix
    return next((opener for opener, kinds in _OPENERS.items() if suffix in kinds), "#")


def _comments(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _files() -> Iterator[Path]:
    """Yield the files that git tracks or would add; without git, all but build products."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        every = (ROOT / name for name in done.stdout.split("\0") if name)
    else:
        every = (
            path
            for path in ROOT.rglob("*")
            if not any(
                part in _NOT_OURS or part.startswith(".") for part in path.relative_to(ROOT).parts
            )
        )
    return (path for path in every if path.suffix in _SUFFIXES and path.is_file())


_EVERYWHERE: Final = ("tool.ruff.lint", "ignore")
_RULE: Final = r'"([A-Z]+\d*)"'


def exceptions(text: str) -> list[Suppression]:
    """Return the rules that a pyproject.toml disables, each with its line's comment.

    For a line without one, the preceding comment of its group counts.
    """
    found, section, key, above = [], "", "", ""
    for line in text.splitlines():
        code, _, comment = line.partition("#")
        if header := re.fullmatch(r"\[+([\w.-]+)\]+\s*", code):
            section, key = header[1], ""
            if section == "tool.mypy.overrides":
                found.append(Suppression("mypy", "override", ""))
        elif entry := re.match(r'"?([^"=]+?)"? = ', code):
            key, code = entry[1], code[entry.end() :]
        if not code.strip():
            above = comment.strip()
            if section == "tool.mypy.overrides" and above and not found[-1].reason:
                found[-1] = found[-1]._replace(reason=above)
        elif section == "tool.ruff.lint.per-file-ignores" or (section, key) == _EVERYWHERE:
            where = "everywhere" if (section, key) == _EVERYWHERE else key
            reason = comment.strip() or above
            found += [Suppression(where, rule, reason) for rule in re.findall(_RULE, code)]
            above = "" if comment else above
        elif section == "tool.pyright" and re.fullmatch(r'(false|"none")\s*', code):
            found.append(Suppression("pyright", key, comment.strip() or above))
    return found


def main() -> None:
    """Print the list."""
    comments, configured = inline(), exceptions((ROOT / "pyproject.toml").read_text())
    for one in (*comments, *configured):
        sys.stdout.write(f"{one.place}: {one.what}: {one.reason or 'NO REASON'}\n")
    sys.stdout.write(f"{len(comments)} comments, {len(configured)} exceptions of pyproject.toml\n")


if __name__ == "__main__":
    main()
