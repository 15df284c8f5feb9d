"""Intel's word about a platform as one value: TCB info, QE identity, CRLs, and who signed them.

Nothing is believed here: a `Collateral` has the right shape and a span of validity, and a verifier
checks its signatures. Its JSON is the nine-field form that DCAP verification libraries exchange.
"""

import json
import os
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from attestkit._system.atomic_file import replace_file
from attestkit.collateral.parts import json_object, part_window
from attestkit.errors import CollateralError

if TYPE_CHECKING:
    from collections.abc import Callable

    from attestkit._crypto.x509.sgx_pki_writer import Window
    from attestkit.collateral.cache import CollateralCache
    from attestkit.collateral.pccs_client import Getter
    from attestkit.quote import Quote

__all__ = ["Collateral"]

_LIMIT: Final = 1 << 20  # bytes or characters of one field; Intel's largest is below 50 kB
_JSON_LIMIT: Final = 16 << 20  # nine such fields, their bytes in hex
_SIGNATURE: Final = 64  # r then s


@dataclass(frozen=True, slots=True, repr=False)
class Collateral:
    """What a verifier needs beside a quote; every field as Intel's PCS serves it.

    A field of another type, an empty one, one over 1 MiB, or a signature that is not 64 bytes
    raises CollateralError, which names the field.
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
    # PEM: leaf, CA, root; only for quotes that do not carry their chain.
    pck_certificate_chain: str | None = None

    # Who fetches knows this class, so the package hands it in.
    fetcher: ClassVar["Callable[..., Collateral]"]

    def __post_init__(self) -> None:
        for name in _FIELDS:
            _check(name, getattr(self, name))
        if self.pck_certificate_chain is not None:
            _check(_OPTIONAL, self.pck_certificate_chain)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Collateral":
        """Read the nine-field JSON, bytes in hex; keys that are not its own are left out.

        Raises:
            CollateralError: it is no JSON object, over 16 MiB, or a field is missing or malformed.
        """
        if len(text) > _JSON_LIMIT:
            raise CollateralError(f"collateral is over {_JSON_LIMIT} bytes")
        values = json_object("collateral", text)
        missing = [name for name in _FIELDS if name not in values]
        if missing:
            raise CollateralError(f"collateral lacks {', '.join(missing)}")
        for name in _BINARY:
            values[name] = _from_hex(name, values[name])
        return cls(**{name: values[name] for name in (*_FIELDS, _OPTIONAL) if name in values})

    def to_json(self) -> str:
        """Return the nine-field JSON, bytes in lower-case hex, one field a line."""
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
            CollateralError: the file cannot be read, or as `from_json`; the text names the file.
        """
        try:
            with Path(path).open("rb") as file:
                text = file.read(_JSON_LIMIT + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise CollateralError(f"cannot read {os.fspath(path)}: {error}") from error
        try:
            return cls.from_json(text)
        except CollateralError as error:
            raise CollateralError(f"{os.fspath(path)}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the nine-field JSON: `path` holds the old or the new content, never a part.

        Raises:
            CollateralError: the file cannot be written.
        """
        try:
            # Public words, so readable by all.
            replace_file(Path(path), self.to_json().encode(), mode=0o644)
        except (OSError, ValueError) as error:
            raise CollateralError(f"cannot write {os.fspath(path)}: {error}") from error

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
        """Return the collateral for `quote` from a PCCS or Intel's service.

        Nothing fetched is believed: parts are looked at for their shape and dates alone.

        Args:
            quote: Of a TD or an SGX enclave; nobody need have verified it.
            pccs_url: The service's base URL, `https://api.trustedservices.intel.com` for Intel's.
                Behind it there may be `/`, `/sgx/certification/v4` or `/tdx/certification/v4`. Over
                plain http others can read and withhold the answers, and replace them by older ones
                that still hold; all of them are signed.
            getter: What gets a URL; None is `http_getter.HttpGetter`, which takes no proxy from the
                environment.
            cache: Where answers are kept until their next update, and looked for first.
            max_age: Fetch again what the cache has had for longer.

        Raises:
            CollateralError: The service cannot be reached, or answers something else; the text
                names the URL. An expired answer in the cache does not take its place.
            FormatError: The quote's certificates are malformed.
            UsageError: `pccs_url` is no http or https URL, or holds a password.
        """
        return cls.fetcher(quote, pccs_url, getter, cache, max_age)

    def __repr__(self) -> str:
        sizes = (f"{name}: {len(getattr(self, name))}" for name in _FIELDS)
        return f"<Collateral, sizes {', '.join(sizes)}>"

    @property
    def valid_from(self) -> datetime:
        """The first moment at which every part is valid, aware; CollateralError as `valid_until`.

        Signatures are not checked, so this is a hint for caches, not a verdict.
        """
        return max(window.start for window in self._windows())

    @property
    def valid_until(self) -> datetime:
        """The moment from which some part is not valid any more, aware.

        The smallest of the nextUpdates of bodies and CRLs and the ends of the certificates.

        Raises:
            CollateralError: a part has no such dates; the text names the field.
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
        raise CollateralError(f"{name} is of type {type(value).__name__}, not {kind.__name__}")
    if not 0 < len(value) <= _LIMIT:
        raise CollateralError(f"{name} has {len(value)} bytes, not 1 to {_LIMIT}")
    if name in _SIGNATURES and len(value) != _SIGNATURE:
        raise CollateralError(f"{name} has {len(value)} bytes, not {_SIGNATURE}")


def _from_hex(name: str, value: str) -> bytes:
    try:
        return bytes.fromhex(value)
    except (TypeError, ValueError) as error:  # TypeError: JSON had something else than a string
        raise CollateralError(f"{name} is not hex") from error
