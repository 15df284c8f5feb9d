"""The strict reader of XML: what it rejects, and its limits."""

import pytest

from attestkit.errors import FormatError
from attestkit.gpu.rim import document
from attestkit.gpu.rim.document import read_document
from tests.gpu.rim.rims import AUTHORITIES, HASHES, SIGNER, chain, manifest, resource, sign
from tests.raising import raises
from tests.runner.cases import every_case

BILLION_LAUGHS = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "ha">
<!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">]><a>&y;</a>"""


def attributes(count: int) -> str:
    """Return an element with this many attributes."""
    return "<a " + " ".join(f'b{number}=""' for number in range(count)) + "/>"


def namespaces(count: int) -> str:
    """Return an element with this many namespaces."""
    return "<a " + " ".join(f'xmlns:b{number}="u:1"' for number in range(count)) + "/>"


REJECTED = {
    "empty": ("", "truncated"),
    "text": ("hello", "syntax"),
    "no end tag": ("<a>", "truncated"),
    "open tag": ("<a", "truncated"),
    "other end tag": ("<a></b>", "syntax"),
    "two roots": ("<a/><b/>", "trailing_data"),
    "text behind": ("<a/>x", "trailing_data"),
    "document type": ("<!DOCTYPE a><a/>", "unsupported"),
    "external document type": ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "unsupported"),
    "billion laughs": (BILLION_LAUGHS, "unsupported"),
    "document type in a section": ("<a><![CDATA[<!DOCTYPE a>]]></a>", "unsupported"),
    "document type in lower case": ("<!doctype a><a/>", "syntax"),
    "document type behind": ("<a/><!DOCTYPE a>", "unsupported"),
    "entity declaration alone": ('<!ENTITY x "y"><a/>', "syntax"),
    "unknown entity": ("<a>&nbsp;</a>", "syntax"),
    "unknown entity in an attribute": ('<a b="&nbsp;"/>', "syntax"),
    "character that is not allowed": ("<a>&#0;</a>", "syntax"),
    "control character": ("<a>\x01</a>", "syntax"),
    "NUL": ("<a>\0</a>", "syntax"),
    "comment": ("<a><!-- c --></a>", "unsupported"),
    "comment before": ("<!-- c --><a/>", "unsupported"),
    "comment behind": ("<a/><!-- c -->", "unsupported"),
    "processing instruction": ("<a><?b c?></a>", "unsupported"),
    "style sheet": ('<?xml-stylesheet href="http://x/"?><a/>', "unsupported"),
    "byte order mark": ("\ufeff<a/>", "encoding"),
    "other encoding": ('<?xml version="1.0" encoding="latin1"?><a/>', "encoding"),
    "UTF-16 by name": ('<?xml version="1.0" encoding="UTF-16"?><a/>', "encoding"),
    "XML 1.1": ('<?xml version="1.1"?><a/>', "unsupported_version"),
    "XML 1.2": ('<?xml version="1.2"?><a/>', "unsupported_version"),
    "declaration not at the start": (' <?xml version="1.0"?><a/>', "syntax"),
    "attribute twice": ('<a b="1" b="2"/>', "duplicate"),
    "attribute twice, by namespace": (
        '<a xmlns:b="u:1" xmlns:c="u:1" b:d="1" c:d="2"/>',
        "duplicate",
    ),
    "declaration twice": ('<a xmlns:b="u:1" xmlns:b="u:1"/>', "duplicate"),
    "undeclared prefix": ("<b:a/>", "wrong_value"),
    "undeclared prefix of an attribute": ('<a b:c=""/>', "wrong_value"),
    "prefix of another element": ('<a><b xmlns:c="u:1"/><c:d/></a>', "wrong_value"),
    "prefix undeclared": ('<a xmlns:b="u:1"><c xmlns:b=""/></a>', "wrong_value"),
    "prefix xml": ('<a xml:lang="en"/>', "wrong_value"),
    "base": ('<a xml:base="http://x/"/>', "wrong_value"),
    "prefix xml declared": (
        '<a xmlns:xml="http://www.w3.org/XML/1998/namespace"/>',
        "wrong_value",
    ),
    "prefix xmlns": ('<xmlns:a xmlns:xmlns="u:1"/>', "wrong_value"),
    "namespace of xml": ('<a xmlns:b="http://www.w3.org/XML/1998/namespace"/>', "wrong_value"),
    "namespace of xmlns": ('<a xmlns="http://www.w3.org/2000/xmlns/"/>', "wrong_value"),
    "relative namespace": ('<a xmlns="../b"/>', "wrong_value"),
    "namespace with a line break": ('<a xmlns="u:1&#10;"/>', "wrong_value"),
    "namespace with an escape": ('<a xmlns="u:%"/>', "wrong_value"),
    "two colons": ('<a:b:c xmlns:a="u:1"/>', "unsupported"),
    "colon at the start": ("<:a/>", "unsupported"),
    "colon at the end": ('<a: xmlns:a="u:1"/>', "unsupported"),
    "digit behind the colon": ('<a:1 xmlns:a="u:1"/>', "unsupported"),
    "name that is not ASCII": ("<é/>", "unsupported"),
    "prefix that is not ASCII": ('<a xmlns:é="u:1"/>', "unsupported"),
    "empty prefix declared": ('<a xmlns:="u:1"/>', "unsupported"),
    "too deep": ("<a>" * 17 + "</a>" * 17, "too_deep"),
    "very deep": ("<a>" * 100_000, "too_deep"),
    "too many elements": (f"<a>{'<b/>' * 1024}</a>", "too_many"),
    "too many attributes": (
        attributes(65),
        "too_many",
    ),
    "too many namespaces": (
        namespaces(33),
        "too_many",
    ),
}


@every_case(("xml", "reason"), REJECTED.values(), ids=REJECTED)
def test_document_is_rejected(xml: str, reason: str) -> None:
    """Documents that are malformed, or have parts that a RIM does not need, are rejected."""
    with raises(FormatError, reason, start="XML: ") as caught:
        read_document(xml.encode())
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset <= len(xml.encode())


@every_case("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_rejected(encoding: str) -> None:
    """Only UTF-8 is read, whatever expat could detect."""
    with raises(FormatError, "encoding", "syntax"):
        read_document('<?xml version="1.0"?><a>é</a>'.encode(encoding))


def test_bytes_that_are_not_utf8_are_rejected() -> None:
    """The position of the first invalid byte is reported."""
    with raises(FormatError, "encoding", offset=3):
        read_document(b"<a>\xff</a>")
    with raises(FormatError, "encoding", offset=3):
        read_document(b"<a>\xed\xa0\x80</a>")  # a surrogate


def test_size_is_limited() -> None:
    """A document of the maximum size is read, a byte more is rejected before it is parsed."""
    xml = b"<a>" + b"b" * (document.MAX_SIZE - 7) + b"</a>"
    assert len(read_document(xml).text()) == document.MAX_SIZE - 7
    with raises(FormatError, "too_large"):
        read_document(b"<" * (document.MAX_SIZE + 1))


def test_limits_are_inclusive() -> None:
    """Depth, elements, attributes and namespaces may reach their limits."""
    read_document(b"<a>" * 16 + b"</a>" * 16)
    read_document(b"<a>" + b"<b/>" * 1023 + b"</a>")
    read_document(attributes(64).encode())
    read_document(namespaces(32).encode())


def test_element_has_names_namespaces_and_text() -> None:
    """Prefixes are kept; an attribute without a prefix has no namespace."""
    root = read_document(
        b'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
        b'<a xmlns="u:1" xmlns:b="u:2" b:c=" 1\n" d="&lt;">x<b:e xmlns=""/><![CDATA[y]]>&#122;</a>'
    )
    assert (root.name, root.namespace, root.local) == ("a", "u:1", "a")
    assert root.attributes == (("b:c", "u:2", "c", " 1 "), ("d", "", "d", "<"))
    assert root.plain_attributes() == {"d": "<"}
    (child,) = root.elements()
    assert (child.name, child.namespace, child.local) == ("b:e", "u:2", "e")
    assert root.text() == "xyz"
    assert [one.name for one in root.descendants()] == ["a", "b:e"]
    assert child.scope == {"": "", "b": "u:2"}
    assert root.offset == 56


@pytest.mark.slow
def test_every_prefix_is_rejected() -> None:
    """A document that ends early is rejected, wherever it ends."""
    xml = sign(manifest([resource(0, HASHES[0])]), chain(SIGNER, AUTHORITIES[-1]))
    for end in range(len(xml)):
        with raises(FormatError, "truncated", "syntax"):
            read_document(xml[:end])


def test_error_does_not_show_long_names() -> None:
    """Names in errors are cut and escaped."""
    with raises(FormatError, "wrong_value") as caught:
        read_document(b"<" + b"a" * 1000 + b":b/>")
    assert len(str(caught.value)) < 160
