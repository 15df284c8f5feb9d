"""The drawn pictures match docs/pictures/draw.py and a quote's layout."""

from pathlib import Path

import pytest

import attestkit

DRAWN = Path(__file__).resolve().parents[2] / "docs/pictures/drawn"

pytestmark = pytest.mark.skipif(not DRAWN.exists(), reason="docs/pictures/drawn is not here")


@pytest.fixture(scope="module", name="drawn")
def _drawn() -> dict[str, str]:
    """Every picture, drawn again."""
    from docs.pictures.draw import PICTURES  # lazy: an sdist may lack them

    return {name: draw() for name, draw in PICTURES.items()}


def test_pictures_match_script(drawn: dict[str, str]) -> None:
    """No picture was edited or is obsolete; `python -m docs.pictures.draw` draws them again."""
    assert {path.name: path.read_text(encoding="utf-8") for path in DRAWN.glob("*.svg")} == drawn


def test_data_paths_follow_imports() -> None:
    """Each file of a data path is reached by imports from the first, unless chosen at run time."""
    grimp = pytest.importorskip("grimp")
    from docs.pictures.data_paths import DATA_PATHS, step_module

    graph = grimp.build_graph("attestkit", cache_dir=None)
    for path in DATA_PATHS.values():
        first = step_module(path.steps[0])
        for step in path.steps[1:]:
            module = step_module(step)
            reached = module == first or graph.chain_exists(first, module)
            assert reached or step.at_run_time, (path.title, step.text)


def test_drawn_offsets_match_quote() -> None:
    """The bytes at the drawn offsets of a quote's body are the fields of `Quote`."""
    from docs.pictures.quotes import body_parts, quote_parts

    with attestkit.open("simulator") as tee:
        quote = tee.get_quote(b"nonce")
    places = {part.name: part for part in (*quote_parts(), *body_parts())}

    def at(name: str) -> bytes:
        _, start, size = places[name]
        return quote.raw[start : start + size]

    assert at("mrtd") == quote.mrtd
    assert tuple(at(f"rtmr{n}") for n in range(4)) == quote.rtmrs
    assert at("report_data") == quote.report_data
    assert at("signature") == quote.signature
    assert at("QE report") == quote.qe_report.raw
    assert at("header") + at("body") == quote.signed_region
