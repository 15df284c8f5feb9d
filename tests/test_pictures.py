"""The drawn pictures match docs/pictures/draw.py and a quote's layout."""

import re
from pathlib import Path
from xml.parsers import expat

import pytest

import attestkit

HERE = Path(__file__).resolve().parents[1] / "docs/pictures"

pytestmark = pytest.mark.skipif(not HERE.exists(), reason="docs/pictures is not here")


@pytest.fixture(scope="module", name="drawn")
def _drawn() -> dict[str, str]:
    """Every picture, drawn again."""
    from docs.pictures.draw import PICTURES  # lazy: an sdist may lack them

    return {name: draw() for name, draw in PICTURES.items()}


def test_pictures_match_script(drawn: dict[str, str]) -> None:
    """No picture was edited or is obsolete; `python -m docs.pictures.draw` draws them again."""
    assert {path.name: path.read_text(encoding="utf-8") for path in HERE.glob("*.svg")} == drawn


def test_pictures_have_title_and_description(drawn: dict[str, str]) -> None:
    """Each is well-formed, loads nothing, and has its own title and description."""
    described = set()
    for text in drawn.values():
        expat.ParserCreate().Parse(text, True)  # raises if not well-formed
        found = re.search(r"<title id=.*?>(.+)</title>\n<desc id=.*?>(.+)</desc>", text)
        assert found
        assert "href" not in text
        described.add(found.groups())
    assert len(described) == len(drawn)


def test_drawn_offsets_match_quote() -> None:
    """The bytes at the drawn offsets of a quote's body are the fields of `Quote`."""
    from docs.pictures.quotes import body_parts, quote_parts

    with attestkit.open("simulator") as tee:
        quote = tee.get_quote(b"nonce")
    places = {part.name: part for part in (*quote_parts(), *body_parts())}

    def at(name: str) -> bytes:
        _, start, size = places[name]
        return quote.raw[start : start + size]

    assert at("mr_td") == quote.mrtd
    assert tuple(at(f"rtmr{n}") for n in range(4)) == quote.rtmrs
    assert at("report_data") == quote.report_data
    assert at("signature") == quote.signature
    assert at("QE report") == quote.qe_report.raw
    assert at("header") + at("body") == quote.signed_region


def test_text_larger_than_box_is_refused() -> None:
    """A text larger than its box is an error, so that none overlap."""
    from docs.pictures.canvas import Box, Canvas

    canvas = Canvas(100, "title", "description")
    with pytest.raises(ValueError, match="does not fit"):
        canvas.box(Box(10, 10, 60, 40), "wider than its box")
    with pytest.raises(ValueError, match="higher than its box"):
        canvas.box(Box(10, 10, 200, 20), "one\ntwo")
