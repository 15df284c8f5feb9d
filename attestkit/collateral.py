"""Intel's word about a platform as one value: TCB info, QE identity, CRLs, and who signed them.

Nothing is believed here: a `Collateral` has the right shape and a span of validity, and a verifier
checks its signatures. Its JSON is the nine-field form that DCAP verification libraries exchange.
"""

import json
import os
import tempfile
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attestkit._json import check_depth
from attestkit.errors import CollateralError, FormatError

if TYPE_CHECKING:
    from attestkit._crypto.x509 import Window

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
        values = _json_object("collateral", text)
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
            _replace(Path(path), self.to_json().encode())
        except (OSError, ValueError) as error:
            raise CollateralError(f"cannot write {os.fspath(path)}: {error}") from error

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
        return [_window(name, getattr(self, name)) for name in _FIELDS if name not in _SIGNATURES]


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


def _json_object(name: str, text: str | bytes) -> dict[str, Any]:
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


def _from_hex(name: str, value: str) -> bytes:
    try:
        return bytes.fromhex(value)
    except (TypeError, ValueError) as error:  # TypeError: JSON had something else than a string
        raise CollateralError(f"{name} is not hex") from error


def _window(name: str, value: str | bytes) -> "Window":
    """Return when the field `name` is valid."""
    from attestkit._crypto.x509 import Window, chain_window, crl_window  # late: loads X.509

    try:
        if isinstance(value, bytes):
            return crl_window(value)
        if name.endswith("_chain"):
            return chain_window(value)
    except FormatError as error:
        raise CollateralError(f"{name}: {error}") from error
    dates = _json_object(name, value)
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


def _replace(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, flush it to the disk, and put it in its place."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # public words; mkstemp makes files for one user
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
