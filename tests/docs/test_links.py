"""Every link of every page leads somewhere."""

from urllib.parse import urlsplit

import pytest

from tests.docs.blocks import ROOT, pages
from tests.docs.links import Link, anchors, links, markdown_files, objection

PAGES = markdown_files()


@pytest.mark.parametrize("page", PAGES)
def test_the_links_hold(page: str) -> None:
    """Files, pictures and headings are there; an address elsewhere has the form of one."""
    found = links((ROOT / page).read_text())
    wrong = [(*link, why) for link in found if (why := objection(page, link.target))]
    assert wrong == []


def test_every_page_is_looked_at() -> None:
    """Those whose blocks are run too, and there are links to look at."""
    assert set(pages()) <= set(PAGES)
    assert len(links((ROOT / "docs/index.md").read_text())) > 10


def test_strangers_are_few() -> None:
    """Pages name other hosts over TLS only; a loopback and names that are none are examples."""
    plain = {
        (page, link.target)
        for page in PAGES
        for link in links((ROOT / page).read_text())
        if link.target.startswith("http://")
        and "." in (host := urlsplit(link.target).hostname or "")
        and not host.startswith(("127.", "192.0.2."))
    }
    assert plain == set()


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("errors.md", ""),
        ("errors.md#formaterror", ""),
        ("../SECURITY.md", ""),
        ("https://example.com/x", ""),
        ("reference/keys.md#attestkit.keys.AppKeys", ""),
        ("no.md", "no such file"),
        ("errors.md#nothing", "no such heading"),
        ("#nothing", "no such heading"),
        ("reference/keys.md#attestkit.keys.Nothing", "no such heading"),
        ("examples#nothing", "no such heading"),
        ("/docs/errors.md", "absolute"),
        ("../../" * 9, "leaves the repository"),
        ("https:///x", "no address"),
        ("ftp://example.com", "no address"),
    ],
)
def test_what_does_not_hold_is_found_out(target: str, why: str) -> None:
    """As seen from docs/index.md."""
    found = objection("docs/index.md", target)
    assert (why in found) if why else not found


def test_what_is_a_link() -> None:
    """In text, as a reference, as a picture, in HTML, bare; nothing in code."""
    text = (
        'a [b](c.md) ![d](e.svg "f")\n<a href="g.md">x</a>\n[h]: i.md\nhttps://example.com/j.\n'
        "`[k](l.md)`\n```text\n[m](n.md)\n```\n"
    )
    assert links(text) == [
        *(Link(1, "c.md"), Link(1, "e.svg"), Link(2, "g.md"), Link(3, "i.md")),
        Link(4, "https://example.com/j"),
    ]


def test_headings_have_the_names_of_forges() -> None:
    """Lower case, hyphens, no punctuation."""
    found = anchors(ROOT / "docs" / "errors.md")
    assert {"errors-exit-codes-and-statuses", "formaterror", "elsewhere"} <= found
