"""Evidence as a conceptual message wrapper (CMW): single records and collections.

JSON and CBOR; records of unknown types are returned unchanged, with their media type.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attestkit.attestation.cmw.record import (
        KIND,
        MAX_DEPTH,
        MAX_ENTRIES,
        MAX_MESSAGES,
        Budget,
        Cmw,
        Collection,
        Indicator,
        Label,
        Record,
        content_format,
        make_collection,
        make_record,
        read_cbor,
        tag_number,
        usage_error,
        write_cbor,
        write_tag,
    )

__all__ = [
    "KIND",
    "MAX_DEPTH",
    "MAX_ENTRIES",
    "MAX_MESSAGES",
    "Budget",
    "Cmw",
    "Collection",
    "Indicator",
    "Label",
    "Record",
    "content_format",
    "make_collection",
    "make_record",
    "read_cbor",
    "tag_number",
    "usage_error",
    "write_cbor",
    "write_tag",
]

# Public name: its module, imported on first use.
_HOME = {
    "KIND": "record",
    "MAX_DEPTH": "record",
    "MAX_ENTRIES": "record",
    "MAX_MESSAGES": "record",
    "Budget": "record",
    "Cmw": "record",
    "Collection": "record",
    "Indicator": "record",
    "Label": "record",
    "Record": "record",
    "content_format": "record",
    "make_collection": "record",
    "make_record": "record",
    "read_cbor": "record",
    "tag_number": "record",
    "usage_error": "record",
    "write_cbor": "record",
    "write_tag": "record",
}


if not TYPE_CHECKING:  # type checkers would accept any name

    def __getattr__(name: str) -> object:
        """Import a public name on first use."""
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
