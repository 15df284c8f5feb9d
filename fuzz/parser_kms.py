"""Targets: what a KMS and its clients read."""

from typing import Final

from attestkit._crypto.ecdsa import K256Key, P256Key
from attestkit.errors import ConfigError
from attestkit.kms.root import KmsRoot
from attestkit.kms.url import KmsUrl, kms_base_url, parse_kms_url
from fuzz.parser_contract import ParserTarget, check, check_same, obeys

_ONE: Final = bytes(31) + b"\1"
_SPKI: Final = P256Key.from_scalar(_ONE).spki_der


def _root(_raw: bytes, found: KmsRoot) -> None:
    check_same("written and read again", KmsRoot.from_json(found.to_json()), found)


def root_samples() -> list[bytes]:
    """Return pins with one key and with both."""
    both = KmsRoot(_SPKI, K256Key(_ONE).public_key)
    return [both.to_json().encode(), KmsRoot(_SPKI).to_json().encode()]


def _url(raw: bytes) -> KmsUrl:
    return parse_kms_url(raw.decode("latin-1"))


def _url_parts(_raw: bytes, found: KmsUrl) -> None:
    check("an https URL", found.base.startswith("https://") and found.base.endswith(found.path))
    check("a port", 0 < found.port < 1 << 16)
    check_same("the base of the base", kms_base_url(found.base), found.base)


def url_samples() -> list[bytes]:
    """Return URLs of every form."""
    return [b"https://kms.example.com:8000/a/prpc/", b"https://[::1]", b"https://a/?b", b"x://a@b"]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    root = obeys(KmsRoot.from_json, ConfigError, accepted=_root)
    url = obeys(_url, ConfigError, accepted=_url_parts)
    return [
        ParserTarget("kms_root", root, root_samples, "config.dict", 512),
        ParserTarget("kms_url", url, url_samples, "config.dict", 128),
    ]
