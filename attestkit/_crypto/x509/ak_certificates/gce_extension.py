"""Google's extension of AK and EK certificates: the instance of Compute Engine."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from attestkit._crypto.der import SEQUENCE, DerReader, context
from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError

GCE_EXTENSION: Final = "1.3.6.1.4.1.11129.2.1.21"
"""OID of the extension."""

_UTF8_STRING: Final = 0x0C
_LONGEST: Final = 128  # bytes of a text; a project id has 30, with a domain some more
_SECURITY_FIELDS: Final = 6


class GceInstance(NamedTuple):
    """An instance of Google Compute Engine as a certificate names it: zone, project, id, name."""

    zone: str  # such as us-central1-a
    project_number: int  # 64 bits, unsigned
    project_id: str
    instance_id: int  # 64 bits, unsigned
    instance_name: str
    security_version: int | None  # None without security properties
    is_production: bool | None  # False on test hosts of Google


def read_gce_extension(extensions: Mapping[str, bytes]) -> GceInstance | None:
    """Parse Google's extension of a certificate; return None for a certificate without it.

    Args:
        extensions: Contents of the extensions' OCTET STRINGs, by dotted OID.

    Raises:
        FormatError: If the extension is malformed.
    """
    value = extensions.get(GCE_EXTENSION)
    return None if value is None else _parse_instance(value)


@lru_cache(maxsize=64)  # all evidence of an instance has the same certificate
def _parse_instance(value: bytes) -> GceInstance:
    fields = DerReader(value).enter_only(SEQUENCE)
    zone, project_number = _text(fields, "zone"), _number(fields, "project number")
    project_id, instance_id = _text(fields, "project id"), _number(fields, "instance id")
    instance_name = _text(fields, "instance name")
    security: tuple[int | None, bool | None] = (None, None)
    if fields.tag() is not None:
        security = _security(fields)
    fields.finish()
    return GceInstance(zone, project_number, project_id, instance_id, instance_name, *security)


def _security(fields: DerReader) -> tuple[int | None, bool | None]:
    """Parse the security properties: fields [0] to [5], explicitly tagged, each optional.

    [0] is the security version and [1] `is_production`; the others are read for their form only.
    """
    entries = fields.enter(context(0)).enter_only(SEQUENCE)
    version: int | None = None
    production: bool | None = None
    least = 0
    while (tag := entries.tag()) is not None:
        number = tag - context(0)
        if not least <= number < _SECURITY_FIELDS:
            raise _bad(f"security property of tag {tag:#04x} out of order", "not_canonical")
        least = number + 1
        entry = entries.enter(tag)
        if number == 0:
            version = _number(entry, "security version")
        elif number == 1:
            production = entry.boolean()
        else:
            entry.whole()
        entry.finish()
    return version, production


def _number(fields: DerReader, what: str) -> int:
    """Read an unsigned number of at most 64 bits; `what` names it in the error."""
    found = fields.integer()
    if not 0 <= found < 1 << 64:
        raise _bad(f"{what}: must be 0 to 2^64 - 1", "wrong_value")
    return found


def _text(fields: DerReader, what: str) -> str:
    content = fields.content(_UTF8_STRING)
    if not 1 <= len(content) <= _LONGEST:
        raise _bad(f"{what}: must have 1 to {_LONGEST} bytes, not {len(content)}", "wrong_size")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise _bad(f"{what}: not UTF-8", "encoding") from error
    if not text.isprintable():
        raise _bad(f"{what}: has unprintable characters", "wrong_value")
    return text


def _bad(problem: str, reason: FormatReason) -> FormatError:
    return FormatError(f"Google's certificate extension: {problem}", reason=reason)
