"""Collateral of Intel SGX and TDX platforms: TCB info, QE identity, CRLs and their issuer chains.

A `Collateral` has fields of the right type and size and a validity period; its signatures are
checked by the verifier. Its JSON has the nine fields that DCAP verification libraries exchange,
and a tenth for a PCK certificate chain.
"""

import json
import os
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, ClassVar, Final

from attestkit._formats.strict_json import from_hex, read_object, wrong_json_type
from attestkit._system.atomic_file import load_document, save_document
from attestkit.errors import CollateralError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

    from attestkit._crypto.x509.simulated.certificate_encoder import Window
    from attestkit.collateral.cache import CollateralCache
    from attestkit.collateral.responses import Getter
    from attestkit.quote import Quote

_LIMIT: Final = 1 << 20  # bytes or characters of a field; Intel's largest is below 50 kB
_JSON_LIMIT: Final = 16 << 20  # nine such fields, with bytes in hex
_SIGNATURE: Final = 64  # r then s


def json_object(name: str, text: str | bytes) -> dict[str, Any]:
    """Return the JSON object in `text`.

    Raises:
        CollateralError: If `text` is not a JSON object, or has a duplicate key, whose value would
            depend on the reader; the message starts with `name`.
    """
    try:
        return read_object(text.decode("utf-8-sig") if isinstance(text, bytes) else text, name)
    except UnicodeDecodeError as error:
        raise CollateralError(f"{name}: JSON must be UTF-8", reason="malformed") from error
    except FormatError as error:
        raise CollateralError(str(error), reason="malformed") from error


def part_window(name: str, value: str | bytes) -> "Window":
    """Return the validity period that a part of collateral states; no signature is verified.

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
        raise CollateralError(f"{name}: {key} must be an ISO date", reason="malformed") from error
    raise CollateralError(f"{name}: {key} must have a time zone", reason="malformed")


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
        raise FormatError(f"{name}: missing", reason="missing")
    if not isinstance(members[name], dict):
        raise wrong_json_type(name, "a JSON object", members[name])
    signature = from_hex(members.get("signature"), "signature", _SIGNATURE)
    verbatim = msgspec.json.decode(response, type=dict[str, msgspec.Raw])
    return bytes(verbatim[name]).decode(), signature


@dataclass(frozen=True, slots=True, repr=False)
class Collateral:
    """Endorsements for the verification of a quote, each as Intel's PCS serves it.

    CRLs are in DER, issuer chains in PEM, TCB info and QE identity the signed JSON; signatures are
    r and s, 64 bytes.

    Raises:
        CollateralError: If a field has the wrong type, is empty or over 1 MiB, or a signature is
            not 64 bytes. The message names the field.
    """

    pck_crl_issuer_chain: str  # PEM: PCK CA, root
    root_ca_crl: bytes  # DER
    pck_crl: bytes  # DER
    tcb_info_issuer_chain: str  # PEM: TCB signing, root
    tcb_info: str  # the signed JSON, byte for byte
    tcb_info_signature: bytes  # r then s, 64 bytes
    qe_identity_issuer_chain: str  # PEM: TCB signing, root
    qe_identity: str  # the signed JSON, byte for byte
    qe_identity_signature: bytes  # r then s, 64 bytes
    # PEM: PCK certificate, PCK CA, root; only for quotes without their chain.
    pck_certificate_chain: str | None = None

    # Set by the package, because the fetching module imports this class.
    fetcher: ClassVar["Callable[..., Collateral]"]

    def __post_init__(self) -> None:
        for name in _FIELDS:
            _check(name, getattr(self, name))
        if self.pck_certificate_chain is not None:
            _check(_OPTIONAL, self.pck_certificate_chain)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Collateral":
        """Decode the JSON of `to_json`: nine or ten fields, bytes in hex; ignore unknown keys.

        Raises:
            CollateralError: If `text` is not a JSON object or over 16 MiB, or a field is missing
                or malformed.
        """
        if len(text) > _JSON_LIMIT:
            message = f"collateral: {len(text)} bytes, at most {_JSON_LIMIT}"
            raise CollateralError(message, reason="too_large")
        values = json_object("collateral", text)
        missing = [name for name in _FIELDS if name not in values]
        if missing:
            raise CollateralError(f"collateral: lacks {', '.join(missing)}", reason="missing")
        for name in _BINARY:
            values[name] = _from_hex(name, values[name])
        return cls(**{name: values[name] for name in (*_FIELDS, _OPTIONAL) if name in values})

    def to_json(self) -> str:
        """Return the nine-field JSON, with bytes in lower-case hex and one field a line.

        It has a tenth field if `pck_certificate_chain` is set.
        """
        values = {name: getattr(self, name) for name in (*_FIELDS, _OPTIONAL)}
        shown = {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in values.items()
            if value is not None
        }
        return json.dumps(shown, indent=1) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Collateral":
        """Read collateral from a file with the JSON of `to_json`.

        Raises:
            CollateralError: If the file cannot be read, or `from_json` rejects its content. The
                message names the file.
        """
        return load_document(path, _JSON_LIMIT, cls.from_json, CollateralError)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON of `to_json` to the file `path`, replacing it atomically.

        Raises:
            CollateralError: If the file cannot be written.
        """
        # Collateral is public, so the file is readable by all.
        save_document(path, self.to_json().encode(), CollateralError, mode=0o644)

    @classmethod
    def fetch(
        cls,
        quote: "Quote",
        pccs_url: str,
        *,
        getter: "Getter | None" = None,
        cache: "CollateralCache | None" = None,
        max_age: timedelta | None = None,
    ) -> "Collateral":
        """Return the collateral for `quote` from a PCCS or Intel's PCS, without verifying it.

        Args:
            quote: Quote of a TD or an SGX enclave; it does not need to be verified.
            pccs_url: Base URL of the service, `https://api.trustedservices.intel.com` for Intel's,
                optionally followed by `/`, `/sgx/certification/v4` or `/tdx/certification/v4`. With
                plain http, a network attacker can read and withhold responses, and replay older
                ones that are still valid; all of them are signed.
            getter: Function that gets a URL and returns a `Response`; None is
                `http_getter.HttpGetter`, which ignores the proxies of the environment.
            cache: Cache that is looked up first and stores responses until their next update.
            max_age: Maximum age of cached responses; None uses them until their next update.

        Raises:
            CollateralError: If the service cannot be reached or its response is malformed, where
                the message names the URL; or if the quote has no data from which its PCK
                certificate can be found. An expired cache entry is not used instead.
            FormatError: If the quote's certificates are malformed.
            UsageError: If `quote` is not a Quote, `pccs_url` is not an http or https URL, or has a
                user name, query or fragment, or `max_age` for `cache` is negative.
        """
        return cls.fetcher(quote, pccs_url, getter, cache, max_age)

    def __repr__(self) -> str:
        sizes = (f"{name}: {len(getattr(self, name))}" for name in _FIELDS)
        return f"<Collateral, sizes {', '.join(sizes)}>"

    @property
    def size(self) -> int:
        """Sum of the lengths of all fields: bytes of binary fields, characters of text."""
        return sum(len(getattr(self, name) or "") for name in (*_FIELDS, _OPTIONAL))

    @property
    def valid_from(self) -> datetime:
        """Start of the period in which all parts are valid, as an aware datetime.

        The dates are not authenticated: use them for caches only. Raises the same errors as
        `valid_until`.
        """
        return max(window.start for window in self._windows())

    @property
    def valid_until(self) -> datetime:
        """End of the period in which all parts are valid, as an aware datetime.

        It is the earliest nextUpdate of TCB info, QE identity and CRLs, or notAfter of the
        certificates.

        Raises:
            CollateralError: If a part has no such dates; the message names the field.
        """
        return min(window.end for window in self._windows())

    def _windows(self) -> "list[Window]":
        return [
            part_window(name, getattr(self, name)) for name in _FIELDS if name not in _SIGNATURES
        ]


_OPTIONAL: Final = "pck_certificate_chain"
_FIELDS: Final = tuple(field.name for field in fields(Collateral) if field.name != _OPTIONAL)
_BINARY: Final = frozenset(field.name for field in fields(Collateral) if field.type is bytes)
_SIGNATURES: Final = frozenset({"tcb_info_signature", "qe_identity_signature"})


def _check(name: str, value: object) -> None:
    kind = bytes if name in _BINARY else str
    if not isinstance(value, kind):
        message = f"{name}: must be {kind.__name__}, not {type(value).__name__}"
        raise CollateralError(message, reason="malformed")
    if not value:
        raise CollateralError(f"{name}: must not be empty; fetch it again", reason="missing")
    if len(value) > _LIMIT:
        raise CollateralError(f"{name}: {len(value)} bytes, at most {_LIMIT}", reason="too_large")
    if name in _SIGNATURES and len(value) != _SIGNATURE:
        message = f"{name}: must be {_SIGNATURE} bytes, not {len(value)}"
        raise CollateralError(message, reason="malformed")


def _from_hex(name: str, value: str) -> bytes:
    try:
        return bytes.fromhex(value)
    except (TypeError, ValueError) as error:  # TypeError: not a string in the JSON
        message = f"{name}: must be hex digits; fetch the collateral again"
        raise CollateralError(message, reason="malformed") from error


def issue_time(collateral: Collateral) -> datetime:
    """Return the latest issue date of TCB info, QE identity and CRLs.

    The dates of the issuer chains do not count: the verifier does not check those of every
    certificate, so that a network attacker could choose them.

    Raises:
        CollateralError: If a part has no dates.
    """
    return max(part_window(name, getattr(collateral, name)).start for name, *_ in SIGNED_PARTS)


def merge_newest(verified: Collateral, fetched: Collateral) -> Collateral:
    """Return `fetched`; parts that are older than those in `verified` are replaced by the latter.

    Args:
        verified: Collateral of a successful verification.
        fetched: Collateral that may be forged. A malformed part is not replaced: the verifier will
            reject it.
    """
    newer = {
        name: getattr(verified, name)
        for names in SIGNED_PARTS
        if _is_newer(names[0], verified, fetched)
        for name in names
    }
    return replace(fetched, **newer) if newer else fetched


def _is_newer(part: str, verified: Collateral, fetched: Collateral) -> bool:
    try:
        return _version(part, verified) > _version(part, fetched)
    except CollateralError:
        return False


def _version(part: str, collateral: Collateral) -> tuple[int, datetime]:
    """Return the version of field `part`: TCB info, QE identity or a CRL.

    `tcbEvaluationDataNumber` grows with each TCB recovery; Intel issues the same evaluation again
    with a new issue date.

    It is a pair of `tcbEvaluationDataNumber` (0 for a CRL) and issue date (thisUpdate of a CRL).
    """
    value: str | bytes = getattr(collateral, part)
    number: object = 0
    if isinstance(value, str):
        number = json_object(part, value).get("tcbEvaluationDataNumber")
    if not isinstance(number, int):
        raise CollateralError(f"{part}: must have tcbEvaluationDataNumber", reason="malformed")
    return number, part_window(part, value).start


# Parts with a version, each followed by the fields that belong to it.
SIGNED_PARTS: Final = (
    ("tcb_info", "tcb_info_signature", "tcb_info_issuer_chain"),
    ("qe_identity", "qe_identity_signature", "qe_identity_issuer_chain"),
    ("pck_crl", "pck_crl_issuer_chain"),
    ("root_ca_crl",),
)
