"""Every link of every page has a target."""

from urllib.parse import urlsplit

import pytest

from tests.docs.blocks import ROOT, pages
from tests.docs.links import Link, anchors, links, markdown_files, objection

PAGES = markdown_files()


@pytest.mark.parametrize("page", PAGES)
def test_links_have_targets(page: str) -> None:
    """Linked files, pictures and headings exist; other addresses are well-formed."""
    found = links((ROOT / page).read_text())
    wrong = [(*link, why) for link in found if (why := objection(page, link.target))]
    assert wrong == []


def test_every_page_is_checked() -> None:
    """The pages include those whose blocks are run, and contain links."""
    assert set(pages()) <= set(PAGES)
    assert len(links((ROOT / "docs/index.md").read_text())) > 10


def test_other_hosts_are_linked_by_tls_only() -> None:
    """Pages link to other hosts by TLS only, except loopback and reserved example names."""
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
def test_broken_link_is_reported(target: str, why: str) -> None:
    """A broken link, seen from docs/index.md, is reported."""
    found = objection("docs/index.md", target)
    assert (why in found) if why else not found


def test_links_are_found() -> None:
    """Links in text, as references, as pictures, in HTML and bare ones count, not those in code."""
    text = (
        'a [b](c.md) ![d](e.svg "f")\n<a href="g.md">x</a>\n[h]: i.md\nhttps://example.com/j.\n'
        "`[k](l.md)`\n```text\n[m](n.md)\n```\n"
    )
    assert links(text) == [
        *(Link(1, "c.md"), Link(1, "e.svg"), Link(2, "g.md"), Link(3, "i.md")),
        Link(4, "https://example.com/j"),
    ]


def test_anchors_match_forges() -> None:
    """Anchors are in lower case, with hyphens and without punctuation."""
    found = anchors(ROOT / "docs" / "errors.md")
    assert {"errors-exit-codes-and-statuses", "formaterror", "elsewhere"} <= found
