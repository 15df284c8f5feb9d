"""XML that our own programs wrote, read by Python's parser."""

import xml.etree.ElementTree as ET


def parse_xml(text: str) -> ET.Element:
    """Return the root of a document, which is no stranger's: the parser expands entities."""
    return ET.fromstring(text)  # noqa: S314 - what it reads are reports and pictures of our own
