"""Parameters of `POST /verify`: the expected value, and the format of the response.

`nonce` is 8 to 64 bytes in hex, `report_data` 1 to 64: the evidence must be bound to the nonce, or
have this report data. They are in the query, which the relying party writes; the body is evidence,
and its `report_data` is the attester's.

`format=ear` requests a signed result (EAR). `encoding` selects jwt or cose; its default comes from
the Accept header, else jwt. Without `format=ear` it is refused, and so is any other parameter.
"""

import re
from typing import TYPE_CHECKING, Final, NamedTuple, cast
from urllib.parse import parse_qsl

from attestkit._formats.strict_json import from_hex
from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError
from attestkit.report_data import check_nonce

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attestkit.verifier.ear.signed_token import TokenFormat

MEDIA_TYPES: Final = {"jwt": b"application/eat+jwt", "cose": b"application/eat+cwt"}
"""Media type of each encoding of an EAR (RFC 9782)."""

_SIGNED: Final = frozenset(MEDIA_TYPES.values())
_NO_WEIGHT: Final = re.compile(rb"q=0(?:\.0*)?")
_PARAMETERS: Final = frozenset({"format", "encoding", "nonce", "report_data"})
_LONGEST: Final = 1024  # bytes of a query
_REPORT_DATA_SIZE: Final = range(1, 65)


class VerifyQuery(NamedTuple):
    """Parameters of a request; at most one of `nonce` and `report_data` is not None."""

    form: "TokenFormat | None" = None  # of an EAR; None for the JSON response
    nonce: bytes | None = None
    report_data: bytes | None = None

    @classmethod
    def from_request(
        cls, query: bytes, headers: "Iterable[tuple[bytes, bytes]]" = ()
    ) -> "VerifyQuery":
        """Parse a raw query string and the Accept header, which selects the format of an EAR.

        `headers` are pairs of a lower-case name and a value.

        Raises:
            FormatError: If a parameter is unknown, invalid or given more than once, two contradict
                each other, or the query has over 1,024 bytes.
        """
        if not query:
            return _ANY
        found = _parameters(query)
        form: str | None = None
        output_format = found.get("format", "json")
        if output_format not in {"json", "ear"}:
            message = f"format: must be json or ear, not {shown(output_format)}"
            raise FormatError(message, reason="wrong_value")
        if output_format == "ear":
            accepted = b",".join(value for name, value in headers if name == b"accept").lower()
            form = found.get("encoding", "cose" if _prefers_cwt(accepted) else "jwt")
            if form not in {"jwt", "cose"}:
                message = f"encoding: must be jwt or cose, not {shown(form)}"
                raise FormatError(message, reason="wrong_value")
        elif "encoding" in found:
            raise FormatError("encoding: requires format=ear", reason="inconsistent")
        nonce, report_data = _nonce(found.get("nonce")), _report_data(found.get("report_data"))
        if nonce is not None and report_data is not None:
            raise FormatError("nonce and report_data: give at most one", reason="inconsistent")
        return cls(cast("TokenFormat | None", form), nonce, report_data)

    @property
    def expects(self) -> bool:
        """Whether the evidence is compared with a nonce or report data."""
        return self.nonce is not None or self.report_data is not None


_ANY: Final = VerifyQuery()


def _parameters(query: bytes) -> dict[str, str]:
    """Return the parameters of a raw query string.

    Raises:
        FormatError: If a parameter is repeated or unknown, or the query is over 1,024 bytes.
    """
    if len(query) > _LONGEST:
        raise FormatError(f"query: must be at most {_LONGEST} bytes", reason="too_large")
    found: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name in found:
            raise FormatError(f"{name}: given more than once", reason="duplicate")
        if name not in _PARAMETERS:  # a misspelt nonce must not disable its comparison
            known = ", ".join(sorted(_PARAMETERS))
            message = f"query: unknown parameter {shown(name)}; known parameters: {known}"
            raise FormatError(message, reason="unknown_field")
        found[name] = value
    return found


def _prefers_cwt(accepted: bytes) -> bool:
    """Return whether an Accept header lists the CWT, and before the JWT if it lists both.

    Args:
        accepted: The header in lower case. A type with weight 0 is not acceptable (RFC 9110,
            section 12.4.2); other weights are ignored.
    """
    for media_range in accepted.split(b","):
        name, *parameters = [part.strip(b" \t") for part in media_range.split(b";")]
        if name in _SIGNED and not any(_NO_WEIGHT.fullmatch(part) for part in parameters):
            return name == MEDIA_TYPES["cose"]
    return False


def _nonce(text: str | None) -> bytes | None:
    if text is None:
        return None
    nonce = from_hex(text, "nonce")
    try:
        check_nonce(nonce)
    except UsageError as error:
        raise FormatError(str(error), reason="wrong_size") from error
    return nonce


def _report_data(text: str | None) -> bytes | None:
    if text is None:
        return None
    report_data = from_hex(text, "report_data")
    if len(report_data) not in _REPORT_DATA_SIZE:
        size = len(report_data)
        raise FormatError(f"report_data: must be 1 to 64 bytes, not {size}", reason="wrong_size")
    return report_data
