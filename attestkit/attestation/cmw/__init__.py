"""Evidence as a conceptual message wrapper (CMW): single records and collections.

In JSON and in CBOR; other people's records come out as they are, with their media type.
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
        checked_collection,
        checked_record,
        content_format,
        read_cbor,
        tag_number,
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
    "checked_collection",
    "checked_record",
    "content_format",
    "read_cbor",
    "tag_number",
    "write_cbor",
    "write_tag",
]

# Name: the module that has it, loaded once it is asked for.
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
    "checked_collection": "record",
    "checked_record": "record",
    "content_format": "record",
    "read_cbor": "record",
    "tag_number": "record",
    "write_cbor": "record",
    "write_tag": "record",
}


if not TYPE_CHECKING:  # to whom every name would be there

    def __getattr__(name: str) -> object:
        """Load what is asked for, once."""
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
