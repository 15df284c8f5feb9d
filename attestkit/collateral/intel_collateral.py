"""Collateral of Intel SGX and TDX platforms: TCB info, QE identity, CRLs and their issuer chains.

A `Collateral` has fields of the right type and size and a validity period; its signatures are
checked by the verifier. Its JSON has the nine fields that DCAP verification libraries exchange.
"""

import json
import os
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from attestkit._system.atomic_file import load_document, save_document
from attestkit.collateral.parts import json_object, part_window
from attestkit.errors import CollateralError

if TYPE_CHECKING:
    from collections.abc import Callable

    from attestkit._crypto.x509.simulated.certificate_encoder import Window
    from attestkit.collateral.cache import CollateralCache
    from attestkit.collateral.responses import Getter
    from attestkit.quote import Quote

_LIMIT: Final = 1 << 20  # bytes or characters of a field; Intel's largest is below 50 kB
_JSON_LIMIT: Final = 16 << 20  # nine such fields, with bytes in hex
_SIGNATURE: Final = 64  # r then s


@dataclass(frozen=True, slots=True, repr=False)
class Collateral:
    """Endorsements for the verification of a quote, each as Intel's PCS serves it.

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
        """Decode the nine-field JSON, with bytes in hex; unknown keys are ignored.

        Raises:
            CollateralError: If it is not a JSON object or over 16 MiB, or a field is missing or
                malformed.
        """
        if len(text) > _JSON_LIMIT:
            message = f"collateral: {len(text)} bytes, at most {_JSON_LIMIT}"
            raise CollateralError(message, reason="too_large")
        values = json_object("collateral", text)
        missing = [name for name in _FIELDS if name not in values]
        if missing:
            raise CollateralError(f"collateral: missing: {', '.join(missing)}", reason="missing")
        for name in _BINARY:
            values[name] = _from_hex(name, values[name])
        return cls(**{name: values[name] for name in (*_FIELDS, _OPTIONAL) if name in values})

    def to_json(self) -> str:
        """Return the nine-field JSON, with bytes in lower-case hex and one field a line."""
        values = {name: getattr(self, name) for name in (*_FIELDS, _OPTIONAL)}
        shown = {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in values.items()
            if value is not None
        }
        return json.dumps(shown, indent=1) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Collateral":
        """Read a file of the nine-field JSON.

        Raises:
            CollateralError: If the file cannot be read, or `from_json` rejects its content. The
                message names the file.
        """
        return load_document(
            path, _JSON_LIMIT, cls.from_json, partial(CollateralError, reason="unreadable")
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the nine-field JSON, replacing the file atomically.

        Raises:
            CollateralError: If the file cannot be written.
        """
        # Collateral is public, so the file is readable by all.
        save_document(
            path, self.to_json().encode(), partial(CollateralError, reason="unwritable"), mode=0o644
        )

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
            getter: Function that gets a URL; None is `http_getter.HttpGetter`, which ignores the
                proxies of the environment.
            cache: Cache that is looked up first and stores responses until their next update.
            max_age: Maximum age of cached responses.

        Raises:
            CollateralError: If the service cannot be reached or its response is malformed; the
                message names the URL. An expired cache entry is not used instead.
            FormatError: If the quote's certificates are malformed.
            UsageError: If `pccs_url` is not an http or https URL, or contains a password.
        """
        return cls.fetcher(quote, pccs_url, getter, cache, max_age)

    def __repr__(self) -> str:
        sizes = (f"{name}: {len(getattr(self, name))}" for name in _FIELDS)
        return f"<Collateral, sizes {', '.join(sizes)}>"

    @property
    def size(self) -> int:
        """Size of all fields in bytes or characters."""
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
        raise CollateralError(f"{name}: empty", reason="missing")
    if len(value) > _LIMIT:
        raise CollateralError(f"{name}: {len(value)} bytes, at most {_LIMIT}", reason="too_large")
    if name in _SIGNATURES and len(value) != _SIGNATURE:
        message = f"{name}: must be {_SIGNATURE} bytes, not {len(value)}"
        raise CollateralError(message, reason="malformed")


def _from_hex(name: str, value: str) -> bytes:
    try:
        return bytes.fromhex(value)
    except (TypeError, ValueError) as error:  # TypeError: not a string in the JSON
        raise CollateralError(f"{name}: invalid hex", reason="malformed") from error
