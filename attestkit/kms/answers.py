"""Answers of a KMS in JSON, and the checks of the keys in them.

Bytes are hex. Unknown members are ignored, because newer versions have more. Errors contain no
value of an answer.
"""

import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from attestkit._crypto.ecdsa import k256_public_key
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.app_certificates import Certificate, read_certificate
from attestkit._crypto.zeroize import Secret, wipe_field
from attestkit._formats.protobuf import ProtobufReader
from attestkit._formats.strict_json import (
    decode_strictly,
    from_hex,
    has_surrogate,
    number_field,
    string,
    wrong_json_type,
)
from attestkit._sanitize import one_line
from attestkit.errors import FormatError, KmsError, SignatureError, UsageError
from attestkit.keys import AppKeys
from attestkit.keys.key_chain import recover_kms_root
from attestkit.kms.root import KmsRoot
from attestkit.kms.url import KmsUrl

if TYPE_CHECKING:
    from attestkit.verifier import AttestationResult

MAX_ANSWER: Final = 1 << 20
"""Maximum size of the body of an answer in bytes (1 MiB)."""
MAX_CHAIN: Final = 8
"""Maximum number of certificates in the answer to SignCert, which has three."""
MAX_GATEWAY: Final = 1024
"""Maximum number of characters of a gateway's app id, which has 40."""
_T = TypeVar("_T")
_MAX_ERROR: Final = 300  # characters of a refusal or error that are shown
_NAMES: Final = frozenset(  # of members; errors contain no others
    [
        *("ca_cert", "temp_ca_cert", "temp_ca_key", "certificate_chain", "error"),
        *("disk_crypt_key", "env_crypt_key", "k256_key", "k256_signature", "os_image_hash"),
        *("gateway_app_id", "tproxy_app_id", "public_key", "signature", "signature_v1"),
        *("timestamp", "k256_pubkey", "ca_pubkey", "attestation", "allow_any_upgrade", "is_dev"),
        *("bootstrap_info", "kms_contract_address", "chain_id", "app_auth_implementation"),
    ]
)
_BOOTSTRAP: Final = ("ca_pubkey", "k256_pubkey", "attestation")  # as members
_SIZES: Final = (
    ("disk_crypt_key", (32,)),
    ("env_crypt_key", (32,)),
    ("k256_key", (32,)),
    ("k256_signature", (65,)),
    ("os_image_hash", (0, 32)),
)


class BootstrapStatement(NamedTuple):
    """Root keys of a KMS (DER, compressed SEC1) and its evidence over them, not verified."""

    ca_spki: bytes
    k256_public_key: bytes
    attestation: bytes  # empty without attestation

    def to_json(self) -> str:
        """Return the compact JSON of dstack's bootstrap-info.json, with bytes in hex."""
        fields = {name: value.hex() for name, value in zip(_BOOTSTRAP, self, strict=True)}
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "BootstrapStatement":
        """Create a statement from the members of bootstrap-info.json (hex); ignore unknown ones.

        Raises:
            FormatError: If a member is missing or not hex, or a key has a wrong size.
        """
        sizes = (91, 33, None)
        named = zip(_BOOTSTRAP, sizes, strict=True)
        return cls(*(from_hex(fields.get(name), name, size) for name, size in named))


class KmsMeta(NamedTuple):
    """Unverified statements of a KMS about itself: the answer to GetMeta."""

    ca_cert: str  # certificate of the root CA, PEM
    k256_public_key: bytes  # compressed secp256k1, 33 bytes
    allow_any_upgrade: bool
    is_dev: bool  # no authorization service: every verified guest is allowed
    bootstrap: BootstrapStatement | None
    gateway_app_id: str | None
    kms_contract_address: str | None
    chain_id: int | None
    app_auth_implementation: str | None

    @classmethod
    def from_json(cls, data: bytes) -> "KmsMeta":
        """Decode `data`, the answer to GetMeta in JSON.

        Raises:
            FormatError: If it is malformed, too large, or a member is missing.
        """
        fields = _read_object(data)
        bootstrap = fields.get("bootstrap_info")
        return cls(
            ca_cert=_text(fields, "ca_cert"),
            k256_public_key=_hex(fields, "k256_pubkey"),
            allow_any_upgrade=_flag(fields, "allow_any_upgrade"),
            is_dev=_flag(fields, "is_dev"),
            bootstrap=None if bootstrap is None else _bootstrap(bootstrap),
            gateway_app_id=_optional(fields, "gateway_app_id", _text),
            kms_contract_address=_optional(fields, "kms_contract_address", _text),
            chain_id=_optional(fields, "chain_id", _number),
            app_auth_implementation=_optional(fields, "app_auth_implementation", _text),
        )


class ReceivedKeys(Secret):
    """The answer to GetAppKey, not checked; `wipe` and its destruction wipe the keys."""

    __slots__ = (
        *("ca_cert", "disk_crypt_key", "env_crypt_key", "gateway_app_id"),
        *("k256_key", "k256_signature", "os_image_hash"),
    )

    def __init__(self, fields: Mapping[str, Any]) -> None:
        """Decode the members of the answer, of which bytes are in hex.

        Raises:
            FormatError: If a member is missing or malformed.
        """
        self.ca_cert: str = _text(fields, "ca_cert")
        self.disk_crypt_key: bytes = _hex(fields, "disk_crypt_key")
        self.env_crypt_key: bytes = _hex(fields, "env_crypt_key")
        self.k256_key: bytes = _hex(fields, "k256_key")
        self.k256_signature: bytes = _hex(fields, "k256_signature")
        # `tproxy_app_id` is its old name; both are always equal.
        newest = "gateway_app_id" if "gateway_app_id" in fields else "tproxy_app_id"
        self.gateway_app_id: str = _text(fields, newest) if newest in fields else ""
        if len(self.gateway_app_id) > MAX_GATEWAY:  # it is written to the key file
            message = f"{newest}: {len(self.gateway_app_id)} characters, at most {MAX_GATEWAY}"
            raise FormatError(message, reason="too_large")
        has_hash = fields.get("os_image_hash") is not None
        self.os_image_hash: bytes = _hex(fields, "os_image_hash") if has_hash else b""

    @classmethod
    def from_json(cls, data: bytes) -> "ReceivedKeys":
        """Decode `data`, the answer to GetAppKey in JSON.

        Raises:
            FormatError: If it is malformed, too large, or a member is missing.
        """
        try:
            return cls(_read_object(data))
        except FormatError as error:
            problem = error.with_traceback(None)
        # Outside of the handler, because the local variables of its frames hold the keys.
        raise problem

    def wipe(self, *, _wipe: Callable[[object, str], None] = wipe_field) -> None:
        """Overwrite the keys with zeros. `_wipe` is bound early, for calls at interpreter exit."""
        for name in ("disk_crypt_key", "env_crypt_key", "k256_key"):
            _wipe(self, name)

    def __del__(self) -> None:
        self.wipe()

    def __repr__(self) -> str:
        return "ReceivedKeys()"


class SignedEnvKey(NamedTuple):
    """The answer to GetAppEnvEncryptPubKey, not verified: X25519 key, signatures, time."""

    public_key: bytes  # X25519
    signature: bytes  # without a time, so it can be replayed
    timestamp: int  # seconds since 1970
    signature_v1: bytes  # also over the time

    @classmethod
    def from_json(cls, data: bytes) -> "SignedEnvKey":
        """Decode `data`, the answer to GetAppEnvEncryptPubKey in JSON.

        Raises:
            FormatError: If it is malformed, too large, or a member is missing.
        """
        fields = _read_object(data)
        return cls(
            _hex(fields, "public_key"),
            _hex(fields, "signature"),
            _number(fields, "timestamp"),
            _hex(fields, "signature_v1"),
        )


def read_temporary_ca(data: bytes) -> tuple[str, str, str]:
    """Decode `data`, the JSON answer to GetTempCaCert: temporary CA for clients, and the root.

    Returns:
        Certificate and key of the temporary CA, which every client gets, and certificate of the
        root CA: PEM.

    Raises:
        FormatError: If it is malformed, too large, or a member is missing.
    """
    fields = _read_object(data)
    return (
        _text(fields, "temp_ca_cert"),
        _text(fields, "temp_ca_key"),
        _text(fields, "ca_cert"),
    )


def read_certificate_chain(data: bytes) -> tuple[str, ...]:
    """Return the texts of `certificate_chain` in `data`, the JSON answer to SignCert, in its order.

    Whether they are certificates in PEM is not checked.

    Raises:
        FormatError: If it is malformed, too large, or has no certificates or too many.
    """
    chain = _read_object(data).get("certificate_chain")
    if not isinstance(chain, list) or not all(isinstance(one, str) for one in chain):
        message = "certificate_chain: must be an array of texts"
        raise FormatError(message, reason="missing" if chain is None else "wrong_type")
    if not 1 <= len(chain) <= MAX_CHAIN:
        message = f"certificate_chain: must have 1 to {MAX_CHAIN} certificates, not {len(chain)}"
        raise FormatError(message, reason="wrong_size")
    return tuple(chain)


def read_only_certificate(pem: str) -> Certificate:
    """Parse the only certificate in PEM; text around it is ignored.

    Raises:
        FormatError: If `pem` has no certificate, or more than one, or a malformed one.
    """
    found = split_pem(pem)
    if len(found) != 1:
        message = f"PEM: must have one certificate, not {len(found)}"
        raise FormatError(message, reason="wrong_size")
    return read_certificate(found[0])


def read_refusal(body: bytes) -> str:
    """Return the text in `body`, an error answer of a KMS (JSON or protobuf), on one line and cut.

    It is empty if the answer has none. Errors before the body of the request is read are in
    protobuf, whatever was requested.
    """
    text: object = ""
    try:
        if body.startswith(b"\n"):  # field 1, a string
            text = ProtobufReader(body).read_fields()[0].bytes_value("error").decode()
        else:
            text = _read_object(body).get("error")
    except (FormatError, UnicodeDecodeError):
        pass
    return one_line(text, _MAX_ERROR) if isinstance(text, str) else ""


def _read_object(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_ANSWER:
        raise FormatError(f"answer: {len(data)} bytes, at most {MAX_ANSWER}", reason="too_large")
    found = decode_strictly(data, known_keys=_NAMES)
    if not isinstance(found, dict):
        raise wrong_json_type("answer", "a JSON object", found)
    return found


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = string(fields, name)
    if has_surrogate(value):
        raise FormatError(f"{name}: unpaired surrogate in text", reason="encoding")
    return value


def _hex(fields: Mapping[str, Any], name: str) -> bytes:
    return from_hex(_text(fields, name), name)


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, bool):
        raise FormatError(f"{name}: must be true or false", reason="wrong_type")
    return value


def _number(fields: Mapping[str, Any], name: str) -> int:
    return number_field(fields, name, 64)


def _optional(
    fields: Mapping[str, Any], name: str, read: Callable[[Mapping[str, Any], str], _T]
) -> _T | None:
    return None if fields.get(name) is None else read(fields, name)


def _bootstrap(value: object) -> BootstrapStatement:
    if not isinstance(value, dict):
        raise wrong_json_type("bootstrap_info", "an object or null", value)
    return BootstrapStatement.of(value)


class FetchedKeys(NamedTuple):
    """Keys of a KMS that passed all checks.

    `is_kept` is whether they are from the key file, so that no KMS was called. `not_proven` names
    the root keys that no pin confirms: `kms_root`, `kms_k256_root`.
    """

    app_keys: AppKeys
    os_image_hash: bytes  # payload of the event `os-image-hash`; 32 bytes or empty
    root: KmsRoot  # both root keys of the KMS
    url: str  # base URL that released them
    evidence: "AttestationResult | None"  # of the KMS; None without a verifier, or if kept
    not_proven: tuple[str, ...]
    """`kms_root` if the KMS was trusted on first use, `kms_k256_root` if no k256 key is pinned."""
    is_kept: bool = False  # from the key file; the KMS was not asked


def check_received_keys(
    keys: ReceivedKeys,
    *,
    app_id: bytes,
    root: Certificate,
    roots: Sequence[KmsRoot],
    image_hash: bytes,
) -> bytes:
    """Check released keys; return the secp256k1 root key of the KMS that signed them.

    Args:
        keys: The answer to GetAppKey.
        app_id: Id of this app, 20 bytes.
        root: Certificate of the root CA in the answer to GetTempCaCert.
        roots: The pinned roots whose CA is that of this KMS; they differ in the secp256k1 key.
        image_hash: Hash of the OS image in this VM's configuration, 32 bytes; empty if it has none.

    Raises:
        KmsError: If a length is wrong (reason `wrong_size`), the app's root key is not a scalar
            (`invalid_key`), its signature is not by a pinned key for this app (`bad_signature`),
            `ca_cert` is not of the root CA (`wrong_root`) or malformed (`malformed`), or the image
            is not that of the VM configuration (`wrong_image`).
    """
    for name, sizes in _SIZES:
        if (size := len(getattr(keys, name))) not in sizes:
            message = f"{name}: must have {sizes[-1]} bytes, not {size}"
            raise KmsError(message, reason="wrong_size")
    k256_root = _check_signature(keys, app_id, roots)
    try:
        known = keys.ca_cert == root.pem
        spki = (root if known else read_only_certificate(keys.ca_cert)).spki_der
    except FormatError as error:
        raise KmsError(f"ca_cert: {error.message}", reason="malformed") from error
    if not all(root.is_of_ca(spki) for root in roots):
        message = (
            "ca_cert: must be of the root CA that certifies the server; discard all "
            "answers of this KMS, and contact its owner"
        )
        raise KmsError(message, reason="wrong_root")
    if image_hash and not hmac.compare_digest(keys.os_image_hash, image_hash):
        found = keys.os_image_hash.hex() or "none"
        message = f"os_image_hash: must be {image_hash.hex()}, of the VM's image, not {found}"
        raise KmsError(message, reason="wrong_image")
    return k256_root


def _check_signature(keys: ReceivedKeys, app_id: bytes, roots: Sequence[KmsRoot]) -> bytes:
    public_key, problem = None, ""
    try:
        public_key = k256_public_key(keys.k256_key)
    except UsageError as error:
        problem = str(error)
    if public_key is None:  # outside of the handler, because the frames of its error hold the key
        raise KmsError(f"k256_key: {problem}", reason="invalid_key")
    try:
        k256_root = recover_kms_root(public_key, app_id, keys.k256_signature)
    except SignatureError as error:
        raise KmsError(f"k256_signature: {error}", reason="bad_signature") from error
    if not any(root.may_be_k256(k256_root) for root in roots):
        message = (
            f"k256_signature: must be by a pinned key, not {k256_root.hex()}; it may be the "
            "signature for a different app"
        )
        raise KmsError(message, reason="bad_signature")
    return k256_root


def not_proven(root: KmsRoot, pins: Sequence[KmsRoot] | None) -> tuple[str, ...]:
    """Return which accepted root keys of a KMS no pin confirms, as in `FetchedKeys.not_proven`.

    Args:
        root: Both root keys of the KMS.
        pins: The pinned roots; None if the KMS was trusted on first use.
    """
    if pins is None:
        return ("kms_root", "kms_k256_root")
    return () if root in pins else ("kms_k256_root",)  # accepted by a pin of the CA alone


def malformed_answer(error: FormatError, url: KmsUrl, method: str) -> KmsError:
    """Return the KmsError for a malformed answer to a method; its cause is `error`."""
    message = f"KMS {url.base}: malformed answer for {method}: {one_line(str(error), _MAX_ERROR)}"
    found = KmsError(message, reason="malformed", url=url.base)
    found.__cause__ = error
    return found
