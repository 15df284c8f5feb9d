"""Canonical XML: the bytes are those of libxml2, for all samples and for made documents."""

from random import Random
from typing import Any

import pytest
from hypothesis import strategies

from attestkit.errors import FormatError
from attestkit.gpu.rim.document import read_document
from attestkit.gpu.rim.xml_signature import XMLDSIG, canonical_bytes
from fuzz.havoc import havoc
from tests.gpu.rim import samples
from tests.gpu.rim.canonical_forms import canonical_document, canonical_signed_info
from tests.gpu.rim.rims import manifest, sign
from tests.runner.cases import every_case
from tests.thorough import thorough

etree = pytest.importorskip("lxml.etree", reason="lxml is the reference, and is not here")

URIS = ("u:1", "u:2", "http://example.com/a#b")
PREFIXES = ("", "a", "b", "_c.1-d")
CHARACTERS = "ab <>&\"']\n\t\ré€\U0001f600"


def parse(xml: bytes) -> Any:
    """Parse a document as libxml2 does, without entities and network."""
    return etree.fromstring(xml, etree.XMLParser(resolve_entities=False, no_network=True))


def canonical(element: Any) -> bytes:
    """Return the canonical form by libxml2."""
    return bytes(etree.tostring(element, method="c14n", with_comments=False))


def check_document(xml: bytes) -> None:
    """Assert that both write the same for a signed document."""
    root = parse(xml)
    assert canonical_bytes(read_document(xml)) == canonical(root)
    signature = root.find(f"{{{XMLDSIG}}}Signature")
    assert canonical_signed_info(xml) == canonical(signature[0])
    assert not signature.tail  # which `remove` would remove too
    root.remove(signature)
    assert canonical_document(xml) == canonical(root)


@pytest.mark.slow
@samples.needs_shared
@every_case("name", samples.SIGNED)
def test_canonical_bytes_of_samples_are_those_of_libxml2(name: str) -> None:
    """Document, document without its signature, and SignedInfo are as libxml2 writes them."""
    check_document(samples.read(name))


@samples.needs_shared
def test_all_signed_samples_are_compared() -> None:
    """The data have 85 signed files."""
    assert len(samples.SIGNED) == 85


def test_signed_document_of_tests_is_as_libxml2_writes_it() -> None:
    """The tests' own documents do not depend on this package's canonical form alone."""
    check_document(sign(manifest()))


@every_case(
    ("xml", "expected"),
    [
        ("<a/>", "<a></a>"),
        ("<a   c='1'\n b='2'/>", '<a b="2" c="1"></a>'),
        ('<?xml version="1.0" encoding="utf-8"?>\n<a/>\n', "<a></a>"),
        ("<a>&#13;\r\n\r&#xA;&#9;</a>", "<a>&#xD;\n\n\n\t</a>"),
        ("<a b='&#13;&#10;&#9;\r\n\t'/>", '<a b="&#xD;&#xA;&#x9;  "></a>'),
        ("<a b='&lt;&gt;&amp;&quot;&apos;'/>", '<a b="&lt;>&amp;&quot;\'"></a>'),
        ("<a>&lt;&gt;&amp;&quot;&apos;]]&gt;</a>", "<a>&lt;&gt;&amp;\"']]&gt;</a>"),
        ("<a><![CDATA[<b>&amp;]]>&#x20;<![CDATA[]]></a>", "<a>&lt;b&gt;&amp;amp; </a>"),
        ("<a>é&#x1F600;</a>", "<a>é\U0001f600</a>"),
        ("<a xmlns='u:1'><b xmlns='u:1'/></a>", '<a xmlns="u:1"><b></b></a>'),
        ("<a xmlns='u:1'><b xmlns=''/></a>", '<a xmlns="u:1"><b xmlns=""></b></a>'),
        ("<a xmlns=''><b xmlns=''/></a>", "<a><b></b></a>"),
        (
            "<a xmlns:z='u:1' xmlns:b='u:2' xmlns='u:3'/>",
            '<a xmlns="u:3" xmlns:b="u:2" xmlns:z="u:1"></a>',
        ),
        (
            "<a xmlns:x='u:1'><x:b xmlns:x='u:2'><x:c xmlns:x='u:1'/></x:b></a>",
            '<a xmlns:x="u:1"><x:b xmlns:x="u:2"><x:c xmlns:x="u:1"></x:c></x:b></a>',
        ),
        (  # by namespace, not by prefix; those without a namespace are the first
            "<a xmlns:z='u:1' xmlns:b='u:2' b:d='4' z:y='3' z:c='2' e='1'/>",
            '<a xmlns:b="u:2" xmlns:z="u:1" e="1" z:c="2" z:y="3" b:d="4"></a>',
        ),
    ],
)
def test_canonical_form(xml: str, expected: str) -> None:
    """Each rule of Canonical XML, section 1.1, that documents without `xml:` attributes need."""
    found = canonical_bytes(read_document(xml.encode()))
    assert found.decode() == expected
    assert canonical(parse(xml.encode())) == found


def test_element_is_written_with_all_namespaces_in_scope() -> None:
    """An element alone has the declarations of its ancestors, used or not."""
    root = read_document(b'<a xmlns="u:1" xmlns:b="u:2"><c xmlns:d="u:3"><e xmlns=""/></c></a>')
    element = root.elements()[0].elements()[0]
    assert canonical_bytes(element) == b'<e xmlns:b="u:2" xmlns:d="u:3"></e>'
    assert canonical_bytes(root.elements()[0], without=element) == (
        b'<c xmlns="u:1" xmlns:b="u:2" xmlns:d="u:3"></c>'
    )


@strategies.composite
def text(draw: strategies.DrawFn) -> str:
    """Return character data, in which each character is written in one of its ways."""
    parts = []
    for character in draw(strategies.text(CHARACTERS, max_size=8)):
        ways = [f"&#{ord(character)};", f"&#x{ord(character):X};"]
        if character not in "<&>":
            ways += [character, f"<![CDATA[{character}]]>"]
        parts.append(draw(strategies.sampled_from(ways)))
    return "".join(parts)


@strategies.composite
def value(draw: strategies.DrawFn) -> str:
    """Return an attribute's value with its quotes."""
    quote = draw(strategies.sampled_from("\"'"))
    parts = []
    for character in draw(strategies.text(CHARACTERS, max_size=6)):
        ways = [f"&#{ord(character)};"]
        if character not in f"<&{quote}":
            ways.append(character)
        parts.append(draw(strategies.sampled_from(ways)))
    return quote + "".join(parts) + quote


@strategies.composite
def elements(draw: strategies.DrawFn, scope: dict[str, str] | None = None, depth: int = 0) -> str:
    """Return an element: namespaces, attributes, text and elements at random."""
    sampled = strategies.sampled_from
    declared = draw(strategies.dictionaries(sampled(PREFIXES), sampled(URIS), max_size=3))
    if draw(strategies.booleans()) and "" not in declared:
        declared[""] = ""
    scope = {**(scope or {}), **declared}
    written = [f'xmlns{":" if prefix else ""}{prefix}="{uri}"' for prefix, uri in declared.items()]
    prefixes = [None, *(prefix for prefix in scope if prefix)]
    used = set()
    for prefix in draw(strategies.lists(sampled(prefixes), max_size=3)):
        local = draw(sampled(("a", "b", "Z", "xmln")))
        name = ("" if prefix is None else scope[prefix], local)
        if name not in used:
            used.add(name)
            qualified = local if prefix is None else f"{prefix}:{local}"
            written.append(f"{qualified} = {draw(value())}")
    prefix = draw(sampled(prefixes))
    tag = "e" if prefix is None else f"{prefix}:e"
    head = " ".join([f"<{tag}", *draw(strategies.permutations(written))])
    if depth == 2 or draw(strategies.booleans()):
        return f"{head}{draw(sampled(('/>', f'></{tag}>', f' ></{tag} >')))}"
    inner = strategies.one_of(text(), elements(scope, depth + 1))
    return f"{head}>{''.join(draw(strategies.lists(inner, max_size=3)))}</{tag}>"


@thorough(elements(), few=40, many=2000)
def test_made_documents_are_as_libxml2_writes_them(xml: str) -> None:
    """Any document has the same canonical form by both, and again when it is read back."""
    data = xml.encode()
    found = canonical_bytes(read_document(data))
    assert found == canonical(parse(data))
    assert canonical_bytes(read_document(found)) == found


SEEDS = (
    b'<a xmlns="u:1" x:c="&lt;1" xmlns:x="u:2" b="2"><b xmlns="">&amp;</b><x:d>\r\n</x:d></a>',
    b'<?xml version="1.0"?><a:b xmlns:a="u:1">t&#13;<![CDATA[<&]]><a:c a:d=\'"\'/></a:b>',
)


@pytest.mark.parametrize(
    ("seed", "count"), [(1, 2000), pytest.param(2, 100_000, marks=pytest.mark.slow)]
)
def test_changed_documents_that_are_accepted_are_as_libxml2_reads_them(
    seed: int, count: int
) -> None:
    """Documents of the strict reader are accepted by libxml2, with the same canonical form."""
    dice = Random(seed)
    accepted = 0
    for _ in range(count):
        data = dice.choice(SEEDS)
        for _ in range(dice.randrange(1, 3)):
            data = havoc(dice, data)
        try:
            found = canonical_bytes(read_document(data))
        except FormatError:
            continue
        accepted += 1
        assert found == canonical(parse(data)), data
    assert accepted > count // 50
