"""Canonical XML 1.1 without comments, for documents that `document.read_document` accepts.

Those have no attributes with the prefix `xml`, which 1.0 and 1.1 treat differently. The standard
library has Canonical XML 2.0 only, which is another format.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from attestkit.gpu.rim.document import XmlElement

_TEXT: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#xD;"})
_VALUE: Final = str.maketrans(
    {"&": "&amp;", "<": "&lt;", '"': "&quot;", "\t": "&#x9;", "\n": "&#xA;", "\r": "&#xD;"}
)


def canonical_bytes(element: XmlElement, *, without: XmlElement | None = None) -> bytes:
    """Return an element with all in it in canonical form.

    Args:
        element: The root of a document, or the element that is signed. The latter is written with
            all namespaces in scope, declared by it or not (Canonical XML 1.1, section 2.4).
        without: Element that is left out; the text around it is kept.
    """
    return "".join(_write(element, {}, without)).encode()


def _write(
    element: XmlElement, outer: Mapping[str, str], without: XmlElement | None
) -> Iterator[str]:
    """Yield the parts of an element below one with the namespaces `outer` in scope."""
    yield f"<{element.name}"
    if element.scope is not outer:  # it declares a namespace, or is not below another element
        for prefix, uri in sorted(element.scope.items()):
            if uri != outer.get(prefix, ""):
                yield f' xmlns{":" if prefix else ""}{prefix}="{uri.translate(_VALUE)}"'
    for attribute in sorted(element.attributes, key=lambda one: (one.namespace, one.local)):
        yield f' {attribute.name}="{attribute.value.translate(_VALUE)}"'
    yield ">"
    for child in element.children:
        if isinstance(child, str):
            yield child.translate(_TEXT)
        elif child is not without:
            yield from _write(child, element.scope, without)
    yield f"</{element.name}>"
