"""Strict reader of a small XML document, over expat, that keeps the prefixes.

A reference integrity manifest (RIM) of NVIDIA needs elements, attributes, text and namespaces, and
nothing else of XML. So these are rejected: document types and with them entities, comments,
processing instructions, attributes with the prefix `xml`, names that are not ASCII, and encodings
other than UTF-8. Without `xml:` attributes Canonical XML 1.0 and 1.1 are the same.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from xml.parsers import expat

from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.errors import FormatError

MAX_SIZE: Final = 512 * 1024
"""Maximum size of a document in bytes; NVIDIA's largest is below 30 kB."""

MAX_DEPTH: Final = 16  # levels; a RIM has 6
MAX_ELEMENTS: Final = 1024  # a RIM of 64 measurements has 86
MAX_ATTRIBUTES: Final = 64  # of an element, with its namespace declarations
MAX_NAMESPACES: Final = 32  # in scope of an element
WHITE_SPACE: Final = " \t\r\n"  # XML 1.0, section 2.3

_NAME: Final = re.compile(r"(?:([A-Za-z_][A-Za-z0-9._-]*):)?([A-Za-z_][A-Za-z0-9._-]*)")
# Canonical XML does not define the result for a relative namespace name (section 1.3). Of absolute
# URIs, only those without queries, user names, ports and escapes are accepted.
_PATH: Final = "[A-Za-z0-9._~:/=-]*"
_ABSOLUTE: Final = re.compile(
    rf"[A-Za-z][A-Za-z0-9+.-]*:(//[A-Za-z0-9.-]+(/{_PATH})?|[A-Za-z0-9]{_PATH})(#{_PATH})?"
)
_RESERVED: Final = frozenset(
    {"http://www.w3.org/XML/1998/namespace", "http://www.w3.org/2000/xmlns/"}
)
_DOCTYPE: Final = b"<!DOCTYPE"
_REASONS: Final[Mapping[int, FormatReason]] = {
    3: "truncated",  # XML_ERROR_NO_ELEMENTS
    5: "truncated",  # XML_ERROR_UNCLOSED_TOKEN
    8: "duplicate",  # XML_ERROR_DUPLICATE_ATTRIBUTE
    9: "trailing_data",  # XML_ERROR_JUNK_AFTER_DOC_ELEMENT
}


class XmlAttribute(NamedTuple):
    """An attribute that is not a namespace declaration."""

    name: str  # as written, with its prefix
    namespace: str  # empty without a prefix
    local: str
    value: str  # normalized (XML 1.0, section 3.3.3)


@dataclass(slots=True, eq=False)
class XmlElement:
    """An XML element; `scope` has the namespaces in scope by prefix, "" for the default one."""

    name: str  # as written, with its prefix
    namespace: str
    local: str
    attributes: tuple[XmlAttribute, ...]
    scope: Mapping[str, str]
    offset: int  # of the start tag, in bytes
    children: "list[XmlElement | str]" = field(default_factory=list)

    def elements(self) -> "list[XmlElement]":
        """Return the child elements."""
        return [child for child in self.children if isinstance(child, XmlElement)]

    def descendants(self) -> "Iterator[XmlElement]":
        """Yield this element and all elements in it, in document order."""
        yield self
        for child in self.elements():
            yield from child.descendants()

    def text(self) -> str:
        """Return the text directly in this element, without that of child elements."""
        return "".join(child for child in self.children if isinstance(child, str))

    def plain_attributes(self) -> dict[str, str]:
        """Return the values of the attributes without a namespace, by name."""
        return {one.local: one.value for one in self.attributes if not one.namespace}


def read_document(data: bytes) -> XmlElement:
    """Parse a document and return its root element.

    Args:
        data: UTF-8, without a byte order mark; an XML declaration of version 1.0 is allowed.

    Raises:
        FormatError: If the document is not well-formed, has a part that this module rejects, or
            exceeds a limit.
    """
    if len(data) > MAX_SIZE:
        raise FormatError(f"XML: {len(data)} bytes, at most {MAX_SIZE}", reason="too_large")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FormatError("XML: must be UTF-8", reason="encoding", offset=error.start) from error
    if text.startswith("\ufeff"):
        raise FormatError("XML: byte order mark not allowed", reason="encoding", offset=0)
    if (at := data.find(_DOCTYPE)) >= 0:  # so that no version of expat sees an entity declaration
        raise FormatError("XML: document type not allowed", reason="unsupported", offset=at)
    return _TreeBuilder().read(data)


class _TreeBuilder:
    """Handlers of expat that build the tree of elements and enforce the module's limits."""

    def __init__(self) -> None:
        # Not expat's own processing of namespaces, which does not report prefixes of attributes.
        self._parser = expat.ParserCreate("utf-8")
        self._parser.ordered_attributes = True
        self._parser.buffer_text = True
        self._root: XmlElement | None = None
        self._open: list[XmlElement] = []
        self._count = 0

    def read(self, data: bytes) -> XmlElement:
        """Parse `data`, a document in UTF-8; return its root element, as `read_document`."""
        parser = self._parser
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.XmlDeclHandler = self._declaration
        parser.CommentHandler = self._comment
        parser.ProcessingInstructionHandler = self._instruction
        try:
            parser.Parse(data, True)  # noqa: FBT003 - expat takes no keywords
        except expat.ExpatError as error:
            problem = f"XML: not well-formed: {expat.ErrorString(error.code)}"
            reason: FormatReason = _REASONS.get(error.code, "syntax")
            offset = min(max(parser.ErrorByteIndex, 0), len(data))
            raise FormatError(problem, reason=reason, offset=offset) from error
        if self._root is None:  # not reached: expat reports an empty document
            raise FormatError("XML: no element", reason="truncated")
        return self._root

    def _start(self, name: str, written: list[str]) -> None:
        self._count += 1
        if self._count > MAX_ELEMENTS:
            raise self._error(f"more than {MAX_ELEMENTS} elements", "too_many")
        if len(self._open) == MAX_DEPTH:
            raise self._error(f"elements nested deeper than {MAX_DEPTH} levels", "too_deep")
        if len(written) > 2 * MAX_ATTRIBUTES:
            raise self._error(f"more than {MAX_ATTRIBUTES} attributes of an element", "too_many")
        pairs = list(zip(written[::2], written[1::2], strict=True))
        scope = self._scope(pairs)
        namespace, local = self._resolve(name, scope, scope.get("", ""))
        element = XmlElement(
            name,
            namespace,
            local,
            self._attributes(pairs, scope),
            scope,
            self._parser.CurrentByteIndex,
        )
        if self._open:
            self._open[-1].children.append(element)
        else:
            self._root = element
        self._open.append(element)

    def _end(self, _name: str) -> None:
        self._open.pop()

    def _characters(self, text: str) -> None:
        self._open[-1].children.append(text)

    def _scope(self, pairs: list[tuple[str, str]]) -> Mapping[str, str]:
        """Return the namespaces by prefix in an element with attributes `pairs` (name, value)."""
        outer = self._open[-1].scope if self._open else {}
        declared = {name[6:]: value for name, value in pairs if _declares(name)}
        if not declared:
            return outer
        for prefix, uri in declared.items():
            if prefix in {"xml", "xmlns"} or uri in _RESERVED:
                raise self._error(f"declares a reserved namespace: {shown(uri)}", "wrong_value")
            if not (uri or prefix == "") or (uri and not _ABSOLUTE.fullmatch(uri)):
                raise self._error(f"namespace must be an absolute URI: {shown(uri)}", "wrong_value")
        scope = {**outer, **declared}
        if len(scope) > MAX_NAMESPACES:
            raise self._error(f"more than {MAX_NAMESPACES} namespaces in scope", "too_many")
        return scope

    def _attributes(
        self, pairs: list[tuple[str, str]], scope: Mapping[str, str]
    ) -> tuple[XmlAttribute, ...]:
        found: dict[tuple[str, str], XmlAttribute] = {}
        for name, value in pairs:
            if _declares(name):
                self._resolve(name, {"xmlns": "xmlns"}, "")
                continue
            namespace, local = self._resolve(name, scope, "")
            if (namespace, local) in found:  # under two prefixes
                raise self._error(f"attribute occurs twice: {shown(name)}", "duplicate")
            found[namespace, local] = XmlAttribute(name, namespace, local, value)
        return tuple(found.values())

    def _resolve(self, name: str, scope: Mapping[str, str], default: str) -> tuple[str, str]:
        """Return namespace and local part of a name; without a prefix the former is `default`.

        `scope` has the namespaces by prefix.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise self._error(f"unsupported name: {shown(name)}", "unsupported")
        prefix, local = match.groups()
        if prefix is None:
            return default, local
        if prefix not in scope:
            problem = f"undeclared or unsupported prefix: {shown(name)}"
            raise self._error(problem, "wrong_value")
        return scope[prefix], local

    def _declaration(self, version: str, encoding: str | None, _standalone: int) -> None:
        if version != "1.0":
            raise self._error(f"version must be 1.0: {shown(version)}", "unsupported_version")
        if encoding is not None and encoding.lower() != "utf-8":
            raise self._error(f"encoding must be UTF-8: {shown(encoding)}", "encoding")

    def _comment(self, _: str) -> None:
        raise self._error("comment not allowed", "unsupported")

    def _instruction(self, *_: object) -> None:
        raise self._error("processing instruction not allowed", "unsupported")

    def _error(self, problem: str, reason: FormatReason) -> FormatError:
        offset = self._parser.CurrentByteIndex
        return FormatError(f"XML: {problem}", reason=reason, offset=max(offset, 0))


def _declares(name: str) -> bool:
    """Return whether an attribute declares a namespace."""
    return name == "xmlns" or name.startswith("xmlns:")
