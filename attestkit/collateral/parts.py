"""The parts of collateral one by one: JSON objects, and when a part is valid."""

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from attestkit._json import check_depth
from attestkit.errors import CollateralError, FormatError

if TYPE_CHECKING:
    from attestkit._crypto.x509 import Window

__all__ = ["json_object", "part_window"]


def json_object(name: str, text: str | bytes) -> dict[str, Any]:
    """Return the JSON object that `text` is.

    Raises:
        CollateralError: It is something else; the text starts with `name`.
    """
    try:
        # Decoded here: json would take UTF-16 as well, whose depth nobody has checked.
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        check_depth(text)
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CollateralError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CollateralError(f"{name} is not a JSON object")
    return value


def part_window(name: str, value: str | bytes) -> "Window":
    """Return when a part of collateral is valid.

    Args:
        name: The field that the part is in; one that ends in `_chain` is PEM.
        value: A CRL in DER as bytes; as text a chain, or a JSON body with its dates.

    Raises:
        CollateralError: It has no such dates; the text starts with `name`.
    """
    from attestkit._crypto.x509 import Window, chain_window, crl_window  # late: loads X.509

    try:
        if isinstance(value, bytes):
            return crl_window(value)
        if name.endswith("_chain"):
            return chain_window(value)
    except FormatError as error:
        raise CollateralError(f"{name}: {error}") from error
    dates = json_object(name, value)
    return Window(*(_date(name, key, dates.get(key)) for key in ("issueDate", "nextUpdate")))


def _date(name: str, key: str, value: object) -> datetime:
    try:
        # datetime of Python 3.10 does not know the Z.
        moment = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        if moment.tzinfo is not None:
            return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError) as error:
        raise CollateralError(f"{name}: {key} is not a date") from error
    raise CollateralError(f"{name}: {key} has no time zone")
