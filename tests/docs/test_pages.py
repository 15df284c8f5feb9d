"""Every block of every page runs, or is valid in its language."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from attestkit._formats import toml
from attestkit.serve.config.agent_config_file import parse_config
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from tests.docs import needs, printed
from tests.docs.blocks import PARSED, ROOT, Block, PageError, pages, read_blocks
from tests.docs.session import Ran, run_blocks, why_not

# READMEs whose commands other tests run, in a copy of the folder and with variations.
ELSEWHERE: Final = {
    f"docs/examples/{name}/README.md": f"tests/examples/test_{name}.py"
    for name in (
        *("agent_over_http", "ci_image_check", "from_dstack_sdk", "mcp_server"),
        *("pytest_app", "ra_tls_agents", "wallet_per_user"),
    )
}
SLOW: Final = (  # over some five seconds each; a folder stands for all of its pages
    *(
        "README.md",
        "docs/concepts/",
        "docs/guides/",
        "docs/index.md",
        "docs/run.md",
        "docs/start.md",
    ),
    *("docs/testing.md", "docs/tour.md", "docs/verifier.md"),
)
_BLOCK: Final = re.compile("`{3}|~{3}|<pre|^(?: {4}|\\t)", re.MULTILINE)
WITH_BLOCKS: Final = [page for page in pages() if _BLOCK.search((ROOT / page).read_text())]


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page."""
    return read_blocks((ROOT / page).read_text())


def _is_run_here(page: str) -> bool:
    try:
        return page not in ELSEWHERE and any(block.is_run for block in blocks_of(page))
    except PageError:
        return True  # there the reason is reported


def _with_marks() -> Iterator[object]:
    for page in WITH_BLOCKS:
        if _is_run_here(page):
            marks = [pytest.mark.slow] if page.startswith(SLOW) else []
            yield pytest.param(page, marks=marks, id=page)


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be had")
@pytest.mark.parametrize("page", list(_with_marks()))
def test_blocks_run(page: str, tmp_path: Path) -> None:
    """The blocks run in order; the test skips if one could not be run here."""
    blocks = blocks_of(page)
    missing = [(block, reason) for block in blocks if (reason := needs.why_not(block))]
    left_out = {block.line for block, _ in missing}
    ran = run_blocks([block for block in blocks if block.line not in left_out], tmp_path)
    if page in printed.CHECKS:
        printed.check(page, blocks, ran, tmp_path / "page")
    if missing:
        lines = "; ".join(f"line {block.line}: {reason}" for block, reason in missing)
        pytest.skip(f"the other {len(printed.shown(blocks)) - len(missing)} blocks ran; {lines}")


def _check_parsed(block: Block) -> None:
    if block.language == "toml":
        assert toml.decode(block.text)
    elif block.language == "yaml":
        yaml = pytest.importorskip("yaml", reason="PyYAML is not here")
        list(yaml.safe_load_all(block.text))
    else:
        try:
            json.loads(block.text)
        except ValueError:  # or one value per line
            for line in block.text.splitlines():
                json.loads(line)
    if "policy" in block.marks:
        AppraisalPolicy.from_toml(block.text)
    if "server config" in block.marks:
        found = parse_config(block.text.encode(), "agent.toml")
        assert (list(found.unknown), list(found.unused)) == ([], [])


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_data_blocks_are_valid(page: str) -> None:
    """JSON, TOML and YAML parse; policies and server configurations are valid."""
    for block in blocks_of(page):
        if block.language in PARSED and "not run" not in block.marks:
            _check_parsed(block)


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_every_fence_is_a_block(page: str) -> None:
    """Every fence is a block; one not run has a reason, and a written file is used."""
    text = (ROOT / page).read_text()
    blocks = blocks_of(page)
    fences = re.findall(r"^ *```", text, re.MULTILINE)
    assert len(fences) == 2 * len([block for block in blocks if "hidden" not in block.marks])
    for at, block in enumerate(blocks):
        assert len(block.marks.get("not run", "a reason").split()) > 1, block.line
        if name := block.marks.get("file"):
            assert any(Path(name).name in later.text for later in blocks[at + 1 :]), block.line


def test_pages_run_elsewhere_have_tests() -> None:
    """Each such README has a test that runs its commands; none is listed without."""
    assert ELSEWHERE.keys() <= set(WITH_BLOCKS)
    for page, test in ELSEWHERE.items():
        text = (ROOT / test).read_text()
        assert f'Reader("{Path(page).parent.name}"' in text
        assert re.search(r"run_all\(\)|\.commands\(\)", text)


@pytest.mark.parametrize("page", list(printed.CHECKS))
def test_every_program_has_its_check(page: str) -> None:
    """The number of checks is that of programs, and each page with checks exists."""
    assert page in WITH_BLOCKS
    assert len(printed.shown(blocks_of(page))) == len(printed.CHECKS[page])


@pytest.mark.parametrize("page", list(printed.CHECKS))
def test_checks_reject_empty_output(page: str, tmp_path: Path) -> None:
    """The check of each program fails if it printed nothing."""
    blocks = blocks_of(page)
    for block in printed.shown(blocks):
        with pytest.raises((AssertionError, ValueError, FileNotFoundError)):
            printed.check(page, blocks, [Ran(block, "")], tmp_path)
    printed.check(page, blocks, [], tmp_path)
