"""Key file of the guest agent, `.appkeys.json`. Unknown keys are ignored; hex has no `0x`."""

import hmac
import json
from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple, NoReturn, TypeVar

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.zeroize import wipe
from attestkit._formats.strict_json import config_reason, decode_strictly, has_surrogate
from attestkit._native import unhex
from attestkit._outcomes.reasons import ConfigReason
from attestkit.errors import ConfigError, FormatError, UsageError

ProviderName = Literal["none", "local", "tpm", "kms"]

LARGEST: Final = 1 << 20
"""Largest size of a key file in bytes (1 MiB); a real one has about 3,000."""


class KmsProvider(NamedTuple):
    """Origin of keys of a KMS, and the values that its certificates require."""

    url: str
    """Base URL of the KMS; ends with `/prpc`."""
    tmp_ca_key: str
    """Private key of the KMS's temporary CA, PEM. Every client gets it, so it protects nothing."""
    tmp_ca_cert: str
    """Certificate of the temporary CA, PEM."""

    def __repr__(self) -> str:
        return f"KmsProvider(url={self.url!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse to pickle, so that the private key does not leak into a file or queue."""
        message = "KmsProvider: contains a private key and cannot be pickled"
        raise UsageError(message, reason="not_picklable")


_Keys = TypeVar("_Keys")
_DISK_KEY: Final = "disk_crypt_key"
_WRITTEN: Final = (  # members in the order of upstream's file
    *("disk_crypt_key", "env_crypt_key", "k256_key", "k256_signature"),
    *("gateway_app_id", "ca_cert"),
)
_NAMES: Final = frozenset(  # of members; errors contain no others
    [
        *("ca_cert", "disk_crypt_key", "env_crypt_key", "gateway_app_id", "k256_key"),
        *("k256_signature", "key_provider", "Kms", "Local", "None", "Tpm"),
        *("key", "mr", "pubkey", "tmp_ca_cert", "tmp_ca_key", "url"),
    ]
)
# Key in the file: name of the provider, and the field with its identity.
_PROVIDERS: Final[Mapping[str, tuple[ProviderName, str]]] = {
    "None": ("none", ""),
    "Local": ("local", "mr"),
    "Tpm": ("tpm", "pubkey"),
    "Kms": ("kms", "pubkey"),
}


def read_app_keys(make: Callable[..., _Keys], text: str | bytes, name: str = "") -> _Keys:
    """Parse the text of a key file, and return the keys that `make` creates from its fields.

    Args:
        make: Called with the fields of `AppKeys` as keyword arguments: `k256_key`,
            `k256_signature`, `env_crypt_key` and `disk_crypt_key` (bytes), `gateway_app_id`,
            `ca_cert`, `key_provider` and `key_provider_id` (text), `ca_key` (None for a KMS) and
            `kms_provider` (None for others). Its UsageError becomes a ConfigError.
        text: Text of the file; bytes are UTF-8.
        name: Name of the file, with which errors begin; may be empty.

    Raises:
        ConfigError: If the text is invalid or over 1 MiB. The message names the file and the JSON
            key, and never contains a value.
    """
    return _Reader(text, name).read(make)


def write_app_keys(
    *,
    provider: ProviderName,
    provider_id: str,
    kms: KmsProvider | None,
    ca_key: P256Key | None,
    texts: Mapping[str, str],
) -> str:
    """Return the text of a key file: compact JSON with its members in dstack's order.

    Args:
        provider: Kind of the key provider.
        provider_id: Id of the key provider in hex.
        kms: For a KMS, its URL and temporary CA.
        ca_key: For providers other than a KMS, the private key of `ca_cert`.
        texts: The other members by their names, bytes in hex.

    Raises:
        UsageError: If a text has an unpaired surrogate, which JSON cannot encode.
    """
    key_of_provider = next(key for key, (name, _) in _PROVIDERS.items() if name == provider)
    id_field = _PROVIDERS[key_of_provider][1]
    details: dict[str, str]
    if provider == "kms":
        kms = kms or KmsProvider("", "", "")
        details = {"url": kms.url, id_field: provider_id, **kms._asdict()}
    else:
        assert ca_key is not None
        details = {"key": ca_key.pkcs8_pem} | ({id_field: provider_id} if id_field else {})
    for name, value in (*texts.items(), *details.items()):
        if has_surrogate(value):
            raise UsageError(f"{name}: unpaired surrogate in text", reason="encoding")
    fields = {name: texts[name] for name in _WRITTEN} | {"key_provider": {key_of_provider: details}}
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


class _Reader:
    """Parser of `.appkeys.json`; neither errors nor their causes contain a value."""

    def __init__(self, text: str | bytes, name: str) -> None:
        self._name = name
        if len(text) > LARGEST:
            raise self._error("", "too_large", f"{len(text)} bytes, over the limit of {LARGEST}")
        try:
            value = decode_strictly(text, known_keys=_NAMES)
        except FormatError as error:  # contains no value of the file
            raise self._error("", config_reason(error), str(error)) from error
        self._fields = self._object("", value)

    def read(self, make: Callable[..., _Keys]) -> _Keys:
        """Decode the members, and return `make(**fields)`; `read_app_keys` lists the fields."""
        provider_key, details = self._provider()
        provider, id_field = _PROVIDERS[provider_key]
        where = f"key_provider.{provider_key}"
        ca_cert = self._text("ca_cert", self._fields)
        ca_key = kms_provider = None
        if provider == "kms":
            kms_provider = KmsProvider(
                *(self._text(key, details, where, default="") for key in KmsProvider._fields)
            )
        else:
            ca_key = self._ca_key(f"{where}.key", self._text("key", details, where), ca_cert)
        provider_id = self._hex(id_field, details, where).hex() if id_field else ""
        signature = self._hex("k256_signature", self._fields, sizes=(0, 65))
        secrets: list[bytes] = []
        try:
            for key, sizes in (("k256_key", (32,)), ("env_crypt_key", (0, 32)), (_DISK_KEY, ())):
                secrets.append(self._hex(key, self._fields, sizes=sizes))
            return make(
                k256_key=secrets[0],
                k256_signature=signature,
                env_crypt_key=secrets[1],
                disk_crypt_key=secrets[2],
                gateway_app_id=self._text("gateway_app_id", self._fields, default=""),
                ca_cert=ca_cert,
                ca_key=ca_key,
                key_provider=provider,
                key_provider_id=provider_id,
                kms_provider=kms_provider,
            )
        except UsageError as error:
            raise self._error("k256_key", "wrong_value", str(error)) from error
        finally:
            for secret in secrets:
                wipe(secret)  # AppKeys has its own copy

    def _provider(self) -> tuple[str, Mapping[str, object]]:
        found = self._object("key_provider", self._fields.get("key_provider"))
        if len(found) != 1 or next(iter(found)) not in _PROVIDERS:
            problem = f"must have exactly one of the keys {', '.join(_PROVIDERS)}"
            raise self._error("key_provider", "wrong_value", problem)
        key, details = next(iter(found.items()))
        return key, self._object(f"key_provider.{key}", details)

    def _ca_key(self, where: str, pem: str, ca_cert: str) -> P256Key:
        from attestkit._crypto.x509.app_certificates import read_certificate  # late: loads X.509

        try:
            key = P256Key.from_pem(pem)
        except FormatError as error:
            raise self._error(where, "wrong_value", str(error)) from error
        try:
            certificate = read_certificate(ca_cert)
        except FormatError as error:
            raise self._error("ca_cert", "wrong_value", str(error)) from error
        if not hmac.compare_digest(certificate.spki_der, key.spki_der):
            raise self._error("ca_cert", "conflict", f"its public key must be that of {where}")
        return key

    def _hex(
        self, key: str, fields: Mapping[str, object], where: str = "", sizes: tuple[int, ...] = ()
    ) -> bytes:
        text = self._text(key, fields, where, default="" if not sizes or 0 in sizes else None)
        where = f"{where}.{key}" if where else key
        if (data := unhex(text)) is None:
            raise self._error(where, "encoding", "must be hex")
        if sizes and len(data) not in sizes:
            expected = " or ".join(map(str, sizes))
            raise self._error(where, "wrong_size", f"must be {expected} bytes, not {len(data)}")
        return data

    def _text(
        self, key: str, fields: Mapping[str, object], where: str = "", default: str | None = None
    ) -> str:
        value = fields.get(key, default)
        if not isinstance(value, str):
            path = f"{where}.{key}" if where else key
            if key not in fields:
                raise self._error(path, "missing", "missing")
            raise self._error(path, "wrong_type", "must be text")
        if has_surrogate(value):
            path = f"{where}.{key}" if where else key
            raise self._error(path, "encoding", "unpaired surrogate in text")
        return value

    def _object(self, where: str, value: object) -> Mapping[str, object]:
        if value is None:
            raise self._error(where, "missing", "missing")
        if not isinstance(value, dict):
            raise self._error(where, "wrong_type", "must be an object")
        return value

    def _error(self, key: str, reason: ConfigReason, problem: str) -> ConfigError:
        message = ": ".join(part for part in (self._name, key, problem) if part)
        return ConfigError(message, reason=reason)
