"""Files of the repository on the site beside those of docs/, and links that hold in both.

A page links to a file by its path in the repository, so that it can be read there. Whatever is
linked and lies outside docs/ is brought in under `repository/`: a Markdown file as a page, any
other as it is, a folder as its README. Comments in the sources of pages, which tell the tests how
to run a block, stay out of the site. Long names in tables may break behind their parts; options
of a command do not break behind their hyphens.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[2]
PREFIX: Final = "repository"
# Pages of the navigation that no page need link to.
OUTSIDE: Final = (
    *("SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("deploy/README.md", "fuzz/README.md", "benchmarks/README.md"),
)

_FENCE: Final = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"(?<=\]\()(?![a-z]+:)([^)\s#]+)(#[^)\s]*)?")
_CELL: Final = re.compile(r"<td.*?</td>", re.DOTALL)
_CODE: Final = re.compile(r"(?<=<code>).*?(?=</code>)", re.DOTALL)
_UNBROKEN: Final = 20  # characters of a name in a table that does not break
_UNBROKEN_FIRST: Final = 30  # the same in the first column
_OPTION: Final = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
_PART: Final = re.compile(r"(::|[/_(]|(?<=\w)\.)(?=\w)")
_COMMENT: Final = re.compile(r"^ *<!--.*?-->[ \t]*\n?", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/ and is linked, and what is linked from there."""
    docs = Path(config.docs_dir).relative_to(ROOT).as_posix()
    waiting = [path for path in OUTSIDE if (ROOT / path).exists()]
    for file in files.documentation_pages():
        waiting += _targets(f"{docs}/{file.src_uri}", file.content_string)
    seen = set()
    while waiting:
        path = waiting.pop()
        if path in seen or path.startswith(f"{docs}/"):
            continue
        seen.add(path)
        added = File.generated(config, f"{PREFIX}/{path}", abs_src_path=str(ROOT / path))
        files.append(added)
        if path.endswith(".md"):
            waiting += _targets(path, added.content_string)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point each link to where its target is on the site, and leave comments out."""
    docs = Path(config.docs_dir).relative_to(ROOT).as_posix()
    here = page.file.src_uri
    prefix = f"{PREFIX}/"
    source = here.removeprefix(prefix) if here.startswith(prefix) else f"{docs}/{here}"

    def moved(link: re.Match[str]) -> str:
        path = _resolve(source, link[1])
        uri = path.removeprefix(f"{docs}/") if path.startswith(f"{docs}/") else prefix + path
        if files.get_file_from_path(uri) is None:
            return link[0]  # which MkDocs then complains of
        return posixpath.relpath(uri, posixpath.dirname(here) or ".") + (link[2] or "")

    return "".join(
        text if is_code else _LINK.sub(moved, _COMMENT.sub("", text))
        for text, is_code in _parts(markdown)
    )


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Set where the names of tables and options may break; remove backslashes before bars."""
    del page, config, files

    def edit(cell: re.Match[str]) -> str:
        is_first = not html.startswith("</td>", cell.start() - len("</td>\n"))
        longest = _UNBROKEN_FIRST if is_first else _UNBROKEN
        return _CODE.sub(lambda code: _split(code[0].replace("\\|", "|"), longest), cell[0])

    return _CODE.sub(
        lambda code: _OPTION.sub(r'<span class="option">\g<0></span>', code[0]),
        _CELL.sub(edit, html),
    )


def _split(name: str, longest: int) -> str:
    """Allow breaks behind the parts of a name that is longer."""
    return name if len(name) <= longest else _PART.sub(r"\1<wbr>", name)


def _parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """Yield the text in order, and of each part whether it is a block of code."""
    end = 0
    for fence in _FENCE.finditer(markdown):
        yield markdown[end : fence.start()], False
        yield fence[0], True
        end = fence.end()
    yield markdown[end:], False


def _resolve(source: str, link: str) -> str:
    """Return what a link in a file means, as a path in the repository; a folder is its README."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    readme = f"{path}/README.md"
    return readme if (ROOT / readme).exists() else path


def _targets(source: str, markdown: str) -> Iterator[str]:
    """Yield the files that a page links to, as paths in the repository."""
    for text, is_code in _parts(markdown):
        for link in () if is_code else _LINK.finditer(text):
            path = _resolve(source, link[1])
            if path.startswith("../"):
                raise PluginError(f"{source}: {link[1]} leaves the repository")
            if (ROOT / path).is_file():
                yield path
