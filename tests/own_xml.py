"""Parser for XML that our own programs wrote."""

import xml.etree.ElementTree as ET


def parse_xml(text: str) -> ET.Element:
    """Return the root element of a trusted document: the parser expands entities."""
    return ET.fromstring(text)  # noqa: S314 - the input is our own reports and pictures
