"""Decoding of the parts of collateral: JSON objects and validity periods."""

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from attestkit._formats.strict_json import from_hex, read_object
from attestkit.errors import CollateralError, FormatError

if TYPE_CHECKING:
    from attestkit._crypto.x509.simulated.certificate_encoder import Window

_SIGNATURE: Final = 64  # bytes


def json_object(name: str, text: str | bytes) -> dict[str, Any]:
    """Return the JSON object in `text`.

    Raises:
        CollateralError: If `text` is not a JSON object, or has a key twice, of which readers take
            one or the other; the message starts with `name`.
    """
    try:
        return read_object(text.decode("utf-8-sig") if isinstance(text, bytes) else text, name)
    except UnicodeDecodeError as error:
        raise CollateralError(f"{name}: invalid JSON: not UTF-8", reason="malformed") from error
    except FormatError as error:
        raise CollateralError(f"{name}: invalid JSON: {error}", reason="malformed") from error


def part_window(name: str, value: str | bytes) -> "Window":
    """Return the validity period of a part of collateral.

    Args:
        name: Field of the part; a name that ends in `_chain` is a PEM chain.
        value: CRL in DER as bytes; PEM chain, TCB info or QE identity as text.

    Raises:
        CollateralError: If the part has no dates; the message starts with `name`.
    """
    from attestkit._crypto.x509.simulated.certificate_encoder import Window
    from attestkit._crypto.x509.simulated.sgx_certificates import chain_window, crl_window

    try:
        if isinstance(value, bytes):
            return crl_window(value)
        if name.endswith("_chain"):
            return chain_window(value)
    except FormatError as error:
        raise CollateralError(f"{name}: {error}", reason="malformed") from error
    dates = json_object(name, value)
    return Window(*(_date(name, key, dates.get(key)) for key in ("issueDate", "nextUpdate")))


def _date(name: str, key: str, value: object) -> datetime:
    try:
        # fromisoformat of Python 3.10 does not accept Z.
        moment = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        if moment.tzinfo is not None:
            return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError) as error:
        raise CollateralError(f"{name}: {key} is not a valid date", reason="malformed") from error
    raise CollateralError(f"{name}: {key} has no time zone", reason="malformed")


def split_signed(response: bytes, name: str) -> tuple[str, bytes]:
    """Return the member `name` of a JSON object, unchanged, and its signature.

    Args:
        response: UTF-8 text, `{"name":BODY,"signature":"HEX"}`; other members are ignored.
        name: "tcbInfo" or "enclaveIdentity".

    Returns:
        The JSON text of the member, and the 64 bytes of the signature: r, then s.

    Raises:
        FormatError: If the response is not a JSON object, or the member or its signature is
            missing, duplicate or of the wrong type; the message names the member.
    """
    import msgspec  # lazy: only for fetching

    members = read_object(response, "response")
    if name not in members:
        raise FormatError(f"missing member: {name}", reason="missing")
    if not isinstance(members[name], dict):
        raise FormatError(f"{name}: not a JSON object", reason="wrong_type")
    signature = from_hex(members.get("signature"), "signature", _SIGNATURE)
    verbatim = msgspec.json.decode(response, type=dict[str, msgspec.Raw])
    return bytes(verbatim[name]).decode(), signature
